"""Build networks by their name in the configuration, or by an import path."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feddkd.config import ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError, FedDKDError
from feddkd.imports import load_object, named, one_line
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
    where = named("model.name", config.name)
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
        with torch.no_grad():
            logits = model(torch.zeros(1, *info.input_shape))
    except Exception as error:  # a user's model may raise anything
        raise ConfigError(f"{where} does not take inputs of shape {info.input_shape}: {one_line(error)}") from error
    finally:
        model.train(mode)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, info.num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{where} maps one input of shape {info.input_shape} to {found}, not to (1, {info.num_classes}) logits")
