"""Build networks by their name in the configuration, or by an import path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError, FedDKDError
from feddkd.imports import load_object, one_line
from feddkd.registry import MODELS


def build_model(config: ModelConfig, info: DataInfo, seed: int) -> nn.Module:
    """Build a network on the CPU that maps float32 [B, *input_shape] to logits [B, num_classes].

    The same `seed` gives the same parameters, bit for bit; torch's global random state is not
    touched. A user's `package.module:function` is called as function(input_shape, num_classes).

    Raises:
        ConfigError: the model cannot be imported or built, or does not fit the data.
    """
    own = ":" in config.name
    build = load_object(config.name, "model.name") if own else MODELS[config.name]
    where = f"model.name = {config.name!r}"
    with torch.random.fork_rng(devices=[]):
        # Of the default generator alone: torch.manual_seed would reseed the accelerators' too.
        torch.default_generator.manual_seed(seed)
        try:
            model = build(info.input_shape, info.num_classes)
        except FedDKDError:
            raise
        except Exception as error:  # a user's function may raise anything
            called = f"calling it as function({info.input_shape}, {info.num_classes}) failed with"
            reason = f"{called} {one_line(error)}" if own else str(error)
            raise ConfigError(f"{where} cannot be built for inputs of shape {info.input_shape}: {reason}") from error
        if not isinstance(model, nn.Module):
            raise ConfigError(f"{where}: it returned {type(model).__name__}, not a torch.nn.Module")
        _check_fits(model, info, where)
    return model


def _check_fits(model: nn.Module, info: DataInfo, where: str) -> None:
    """Run one example of zeros through the model.

    Raises:
        ConfigError: it fails, or the outcome is not one logit for each class.
    """
    mode = model.training
    model.eval()  # so that batch normalisation neither refuses a single example nor learns from it
    try:
        logits = _logits_of_zeros(model, info, where)
    finally:
        model.train(mode)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, info.num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{where} maps one input of shape {info.input_shape} to {found}, not to (1, {info.num_classes}) logits")


def _logits_of_zeros(model: nn.Module, info: DataInfo, where: str) -> object:
    """Run zeros of the data's dtype through the model; where that is not known, of the first that the model takes.

    Raises:
        ConfigError: it takes none.
    """
    problem: Exception | None = None
    for dtype in info.possible_dtypes:
        try:
            with torch.no_grad():
                return model(torch.zeros(1, *info.input_shape, dtype=dtype))
        except Exception as error:  # noqa: BLE001  # a user's model may raise anything
            problem = problem or error
    assert problem is not None
    kind = "" if info.input_dtype is None else f" and dtype {str(info.input_dtype).removeprefix('torch.')}"
    shape = f"inputs of shape {info.input_shape}{kind}"
    raise ConfigError(f"{where} does not take {shape}: {one_line(problem)}{_way_out(info, problem)}") from problem


def _way_out(info: DataInfo, problem: Exception) -> str:
    """Say what to do where a model does not take inputs of this dtype; nothing where that is not the problem."""
    if info.input_dtype == torch.int64:
        return '; the data are integers (token ids): for numbers convert them to float32, for images of bytes set data.scale = "uint8"'
    return "; token ids must be integers in the data, or the model calls x.long()" if "Long" in str(problem) else ""
