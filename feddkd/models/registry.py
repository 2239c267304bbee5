"""Build networks by their name in the configuration, or by an import path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError, FedDKDError
from feddkd.imports import load_object, named, one_line
from feddkd.models.check import check_model
from feddkd.models.parts import Parts
from feddkd.models.wrappers import without_wrappers
from feddkd.registry import MODELS

TRIED_EXAMPLES = 2
"""Examples in the batch that a network is tried on: the fewest that every BatchNorm takes."""


class Built(NamedTuple):
    """A network, and which of its tensors travel when."""

    module: nn.Module
    parts: Parts


def build(config: ModelConfig, info: DataInfo, seed: int) -> Built:
    """Build a network, try it on a random batch, and divide its tensors. As `build_model` otherwise."""
    where = named("model.name", config.name)
    with torch.random.fork_rng(devices=[]):
        # Of the default generator alone: torch.manual_seed would reseed the accelerators' too.
        torch.default_generator.manual_seed(seed)
        module = without_wrappers(_called(config.name, info, where))
        changed = check_model(module, *_tried(info), where, info.num_classes)
    return Built(module, Parts.of(module, changed, local_buffers=config.local_buffers))


def build_model(config: ModelConfig, info: DataInfo, seed: int) -> nn.Module:
    """Build a network on the CPU that maps float32 [B, *input_shape] to logits [B, num_classes].

    The same `seed` gives the same parameters, bit for bit; torch's global random state is not
    touched. A user's `package.module:function` is called as function(input_shape, num_classes).

    Raises:
        ConfigError: the model cannot be imported or built, does not fit the data, or cannot be trained.
    """
    return build(config, info, seed).module


def _called(name: str, info: DataInfo, where: str) -> nn.Module:
    """Call the function that a name stands for. Raises ConfigError."""
    own = ":" in name
    function = load_object(name, "model.name") if own else MODELS[name]
    try:
        model = function(info.input_shape, info.num_classes)
    except FedDKDError:
        raise
    except Exception as error:  # a user's function may raise anything
        called = f"calling it as function({info.input_shape}, {info.num_classes}) failed with"
        reason = f"{called} {one_line(error)}" if own else str(error)
        raise ConfigError(f"{where} cannot be built for inputs of shape {info.input_shape}: {reason}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{where}: it returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _tried(info: DataInfo) -> tuple[Tensor, Tensor]:
    """Draw the batch that a network is tried on, the same everywhere: zeros would leave BatchNorm's means as they are."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(TRIED_EXAMPLES, *info.input_shape, generator=generator)
    return inputs, torch.arange(TRIED_EXAMPLES) % info.num_classes
