"""Build networks by their name in the configuration, or by an import path."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError, FedDKDError
from feddkd.imports import load_object, named, one_line
from feddkd.models.check import InputsRefusedError, check_model
from feddkd.models.parts import Parts
from feddkd.models.wrappers import without_wrappers
from feddkd.registry import MODELS
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION

TRIED_EXAMPLES = 2
"""Examples in the batch that a network is tried on: the fewest that every BatchNorm takes."""


class Built(NamedTuple):
    """A network, and which of its tensors travel when."""

    module: nn.Module
    parts: Parts


def build(config: ModelConfig, info: DataInfo, seed: int, task: LearningTask[Any] = CLASSIFICATION, *, key: str = "model.name") -> Built:
    """Build a network, try it on a random batch, and divide its tensors. As `build_model` otherwise.

    Args:
        key: the configuration key that names the network, for messages.
    """
    where = named(key, config.name)
    with torch.random.fork_rng(devices=[]):
        # Of the default generator alone: torch.manual_seed would reseed the accelerators' too.
        torch.default_generator.manual_seed(seed)
        module = without_wrappers(_called(config.name, info, key))
        changed = _check(module, info, task, where)
    return Built(module, Parts.of(module, changed, local_buffers=config.local_buffers))


def build_model(config: ModelConfig, info: DataInfo, seed: int, task: LearningTask[Any] = CLASSIFICATION) -> nn.Module:
    """Build a network on the CPU that maps float32 or int64 [B, *input_shape] to what the task expects, as logits [B, num_classes].

    The same `seed` gives the same parameters, bit for bit; torch's global random state is not
    touched. A user's `package.module:function` is called as function(input_shape, num_classes).

    Raises:
        ConfigError: the model cannot be imported or built, does not fit the data, or cannot be trained.
    """
    return build(config, info, seed, task).module


def _called(name: str, info: DataInfo, key: str) -> nn.Module:
    """Call the function that a name stands for. Raises ConfigError."""
    own, where = ":" in name, named(key, name)
    function = load_object(name, key) if own else MODELS[name]
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


def _check(module: nn.Module, info: DataInfo, task: LearningTask[Any], where: str) -> frozenset[str]:
    """Try a network as `check_model` does, on inputs of the data's dtype; where that is not known, of the first that it takes.

    Raises:
        ConfigError: it cannot be trained or sent.
    """
    problem: InputsRefusedError | None = None
    for dtype in info.possible_dtypes:
        try:
            return check_model(module, *task.trial_batch(info.shapes, dtype, TRIED_EXAMPLES), where, task, info.num_classes)
        except InputsRefusedError as error:
            problem = problem or error
    assert problem is not None
    raise ConfigError(f"{problem}{_way_out(info, problem)}") from problem


def _way_out(info: DataInfo, problem: InputsRefusedError) -> str:
    """Say what to do where a network does not take inputs of this dtype; nothing where that is not the problem."""
    if info.input_dtype == torch.int64:
        return '; the data are integers (token ids): for numbers convert them to float32, for images of bytes set data.scale = "uint8"'
    return "; token ids must be integers in the data, or the model calls x.long()" if "Long" in str(problem) else ""
