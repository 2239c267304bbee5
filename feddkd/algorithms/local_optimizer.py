"""The optimizer of local training: its construction, its learning rate, and clipping."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from feddkd.algorithms.learning_rate import LearningRate
from feddkd.algorithms.site import Site
from feddkd.config import TrainingConfig
from feddkd.config.problems import did_you_mean
from feddkd.config.training import WITH_MOMENTUM
from feddkd.errors import ClientError, ConfigError
from feddkd.exchange import Task
from feddkd.imports import load_object, one_line
from feddkd.optimizers import eager

CLASSES: Mapping[str, type[torch.optim.Optimizer]] = {
    "sgd": eager(torch.optim.SGD),
    "adam": eager(torch.optim.Adam),
    "adamw": eager(torch.optim.AdamW),
    "adamax": eager(torch.optim.Adamax),
    "nadam": eager(torch.optim.NAdam),
    "radam": eager(torch.optim.RAdam),
    "rmsprop": eager(torch.optim.RMSprop),
    "adagrad": eager(torch.optim.Adagrad),
    "adadelta": eager(torch.optim.Adadelta),
}

FUSED: Mapping[str, tuple[str, ...]] = {"sgd": ("cpu", "cuda"), "adam": ("cpu", "cuda"), "adamw": ("cpu", "cuda"), "adagrad": ("cpu",)}
"""Optimizers that need one pass over memory, and the devices where they are asked to. Adagrad on CUDA was not tried."""

KEYS = ("lr", "momentum", "weight_decay")
"""Arguments that are keys of `[training]`."""


class LocalOptimizer:
    """Steps the parameters of a site through one round of local training."""

    def __init__(self, site: Site, task: Task, parameters: Iterable[nn.Parameter], steps: int) -> None:
        """Build the optimizer, which has no state.

        Args:
            parameters: those that take gradients.
            steps: how many are planned; the learning rate may depend on it.

        Raises:
            ConfigError: `training.optimizer` or `training.schedule` is not there, or cannot be used.
        """
        training = site.config.training
        self._parameters = list(parameters)
        self._training = training
        self._clip_norm = training.clip_norm
        self._where = f"{site.client_id}: {task.id}"
        self._optimizer = build_optimizer(self._parameters, training)
        self._rates: Iterator[float] | None = None
        if training.is_scheduled:
            self._rates = LearningRate(site.config).rates(task.id.round, steps)
            # The user's own optimizer may have groups with different rates: their ratios stay.
            self._multiples = [group["lr"] / training.lr for group in self._optimizer.param_groups]
        self._steps = 0
        self._sum_of_rates = 0.0

    def zero_grad(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Clip the gradient and take one step at its learning rate.

        Raises:
            ClientError: the gradient's norm is not finite where it is to be clipped.
            ConfigError: the learning rate is not positive.
        """
        self._steps += 1
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        if self._rates is not None:
            rate = next(self._rates)
            for group, multiple in zip(self._optimizer.param_groups, self._multiples, strict=True):
                group["lr"] = rate * multiple
            self._sum_of_rates += rate
        self._optimizer.step()

    @property
    def mean_rate(self) -> float | None:
        """The mean learning rate of the steps so far, at least one; None where no schedule changes it."""
        return None if self._rates is None else self._sum_of_rates / self._steps

    @property
    def why_not_repeated(self) -> str | None:
        """Why a CUDA graph cannot repeat a step: something of it is computed or read on the CPU; None where it can."""
        training = self._training
        if self._clip_norm is not None:
            return f"training.clip_norm = {self._clip_norm:g} reads the gradient's norm in each step"
        if training.changes_within_round:
            return f"training.schedule = {training.schedule!r} changes the learning rate within a round"
        is_fused_adam = isinstance(self._optimizer, torch.optim.Adam) and all(group["fused"] for group in self._optimizer.param_groups)
        if type(self._optimizer) is CLASSES["sgd"] or (is_fused_adam and training.optimizer in CLASSES):
            return None
        return f"training.optimizer = {training.optimizer!r} counts its steps on the CPU, or is not known"

    @contextmanager
    def capturable(self) -> Iterator[None]:
        """Tell Adam that its step is being recorded; fused, it has all that it needs on the device."""
        groups = [group for group in self._optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in groups:
                group["capturable"] = False

    def _clip(self, clip_norm: float) -> None:
        norm = float(nn.utils.clip_grad_norm_(self._parameters, clip_norm))
        if not math.isfinite(norm):
            where = f"{self._where}, step {self._steps}"
            raise ClientError(f"{where}: the gradient's norm is {norm}, and training.clip_norm = {clip_norm:g} cannot clip it")


def build_optimizer(parameters: list[nn.Parameter], training: TrainingConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer.

    Raises:
        ConfigError: it is not there, or refuses its arguments or these parameters.
    """
    build = _factory(training)
    device = parameters[0].device.type if parameters else "cpu"
    arguments = {**_arguments(training, device), **training.optimizer_options}
    try:
        optimizer: Any = build(parameters, **arguments)
    except Exception as error:  # torch raises several, and a user's function anything
        raise ConfigError(f"{_named(training)}: {one_line(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{_named(training)}: it returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def check_optimizer(training: TrainingConfig) -> None:
    """Check the arguments of the optimizer against its signature, and try a step.

    Raises:
        ConfigError: it does not take an argument or its value, or a step needs a closure.
    """
    _check_arguments(training)
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer([parameter], training)
    parameter.grad = torch.zeros(2, 2)
    try:
        optimizer.step()
    except Exception as error:
        raise ConfigError(f"{_named(training)}: a step without a closure failed with {one_line(error)}") from error


def require_sgd(training: TrainingConfig, algorithm: str, reason: str) -> None:
    """Check that local training is SGD, with or without momentum. Raises ConfigError."""
    if training.optimizer != "sgd":
        raise ConfigError(f"training.optimizer = {training.optimizer!r}: {algorithm} needs sgd, because {reason}")
    if training.optimizer_options:
        name = next(iter(training.optimizer_options))
        raise ConfigError(f"training.optimizer_options.{name}: {algorithm} needs sgd without options, because {reason}")


def check_fits(site: Site) -> None:
    """Check that the optimizer takes the parameters of a site's network. Raises ConfigError."""
    trainable = [parameter for parameter in site.module.parameters() if parameter.requires_grad]
    build_optimizer(trainable, site.config.training)


def _factory(training: TrainingConfig) -> Callable[..., Any]:
    name = training.optimizer
    found: Callable[..., Any] = CLASSES[name] if name in CLASSES else load_object(name, "training.optimizer")
    return found


def _named(training: TrainingConfig) -> str:
    options = training.optimizer_options
    return f"training.optimizer = {training.optimizer!r}" + (f" with optimizer_options = {options}" if options else "")


def _arguments(training: TrainingConfig, device: str = "cpu") -> dict[str, Any]:
    """Return what the keys of `[training]` say; the user's own function is not given zeros."""
    given = {key: getattr(training, key) for key in KEYS}
    if training.optimizer not in CLASSES:
        return {key: value for key, value in given.items() if key == "lr" or value}
    if training.optimizer not in WITH_MOMENTUM:
        del given["momentum"]
    return {**given, "fused": True} if device in FUSED.get(training.optimizer, ()) else given


def _check_arguments(training: TrainingConfig) -> None:
    """Check the names of the arguments. Raises ConfigError."""
    known = _signature(_factory(training))
    for name in training.optimizer_options:
        key = f"training.optimizer_options.{name}"
        if name in KEYS:
            raise ConfigError(f"{key}: use training.{name}")
        if known is not None and name not in known:
            others = [argument for argument in known if argument not in KEYS]
            meant = did_you_mean(name, others) or f"; it has {', '.join(others) or 'none'}"
            raise ConfigError(f"{key}: {training.optimizer} has no such argument{meant}")
    for name in _arguments(training):
        if known is not None and name not in known:
            raise ConfigError(f"training.{name} = {getattr(training, name):g}: {training.optimizer} takes no {name}")


def _signature(build: Callable[..., Any]) -> list[str] | None:
    """List the arguments after the parameters; None if that is unknown, or if any is taken."""
    try:
        arguments = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):
        return None
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
        return None
    return [argument.name for argument in arguments[1:]]
