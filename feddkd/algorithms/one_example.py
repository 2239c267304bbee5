"""Find out whether a network trains on a single example: BatchNorm may not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from feddkd.algorithms.site import Site
from feddkd.data.examples import first_example
from feddkd.errors import ConfigError
from feddkd.structures import Structure, leaves, to_device
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION


def check_batch_size(site: Site) -> None:
    """Check that the site's network can train on batches of `training.batch_size`.

    Raises:
        ConfigError: batches are of one example, and the network refuses those in training.
        DataError: they are, and no labelled example can be used.
    """
    if site.config.training.batch_size > 1 or len(site.labelled) == 0:
        return
    if not can_train_on_one(site):
        raise ConfigError(
            f"training.batch_size = 1: model {site.config.model.name!r} (its BatchNorm) "
            "cannot train on one example at a time; use at least 2"
        )


def can_train_on_one(site: Site) -> bool:
    """Try whether a site's network can train on its first labelled example alone that can be used. Raises DataError if none can."""
    site.module.train()
    with torch.random.fork_rng(devices=[]):  # a data set may augment the example at random
        inputs, _ = first_example(site.labelled)
    return takes_one_example(site.module, to_device(inputs, site.device), site.learning_task)


def takes_one_example(module: nn.Module, inputs: Structure, task: LearningTask[Any] = CLASSIFICATION) -> bool:
    """Try whether `module`, in train mode, accepts `inputs`, a batch of one example.

    BatchNorm1d refuses a single value of each channel; BatchNorm2d accepts an image of more than
    one pixel. Buffers and the random state are restored afterwards.
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=accelerators(next(leaves(inputs)).device)):
            task.outputs(module, inputs)
    except ValueError:
        return False
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
    return True


def accelerators(device: torch.device) -> list[torch.device]:
    """List the devices besides the CPU whose random state computing on `device` changes."""
    return [device] if device.type == "cuda" else []


def seed_global_generators(device: torch.device, seed: int) -> None:
    """Seed what computing on `device` draws from; to look for other accelerators takes as long as steps of a small network."""
    if accelerators(device):
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
