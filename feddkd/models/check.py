"""Try one training step of a network before a run, on a few examples."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddkd.errors import ConfigError
from feddkd.imports import one_line


def check_model(module: nn.Module, inputs: Tensor, labels: Tensor, where: str) -> None:
    """Run a batch in eval mode and in train mode, each with a backward pass, in a copy of the network.

    Args:
        module: the network, on the device of `inputs`; it stays as it is, and so does the random state.
        inputs: [B, ...].
        labels: int64 [B], class numbers.
        where: begins every message; names the key, as `model.name = 'mine:net'`.

    Raises:
        ConfigError: the network does not take the inputs, does not return logits, has no trainable
            parameter, or cannot be differentiated.
    """
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            own = copy.deepcopy(module)
        except Exception as error:  # a user's module may raise anything
            raise ConfigError(f"{where} cannot be copied: {one_line(error)}") from error
        for training in (False, True):
            _try(own.train(training), inputs, labels, f"{where} in {'train' if training else 'eval'} mode")


def _try(module: nn.Module, inputs: Tensor, labels: Tensor, where: str) -> None:
    """Run one forward and backward pass. Raises ConfigError."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError(f"{where} has no trainable parameter: none has requires_grad = True")
    try:
        logits = module(inputs)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{where} does not take inputs of shape {tuple(inputs.shape[1:])}: {one_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{where} maps {len(labels)} inputs to {found}, not to logits of shape ({len(labels)}, classes)")
    try:
        torch.autograd.grad(F.cross_entropy(logits.float(), labels), trainable, allow_unused=True)
    except Exception as error:  # likewise
        raise ConfigError(f"{where}: no gradient can be computed: {one_line(error)}") from error
