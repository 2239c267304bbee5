"""The learning rate of local training, as a function of the round and the step.

A schedule is one of `torch.optim.lr_scheduler`, stepped from its beginning on an optimizer that
trains nothing. So a client that was away, or whose process started again, needs no state, and all
engines have the same rates.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler

from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.imports import load_object, one_line
from feddkd.optimizers import eager

LEARNING_RATE = "learning_rate"
"""Metric of local training: the mean learning rate of the steps, where a schedule changes it."""

CHECKED = 10_000
"""Rounds, and steps of the first round, whose learning rates are computed before a run starts."""

_SGD = eager(torch.optim.SGD)

SCHEDULERS: Mapping[str, Callable[..., lr_scheduler.LRScheduler]] = {
    "step": lr_scheduler.StepLR,
    "multistep": lr_scheduler.MultiStepLR,
    "exponential": lr_scheduler.ExponentialLR,
    "linear": lr_scheduler.LinearLR,
    "polynomial": lr_scheduler.PolynomialLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "cosine_restarts": lr_scheduler.CosineAnnealingWarmRestarts,
}


def _horizon(name: str, count: int) -> dict[str, Any]:
    """Return the arguments of a scheduler that end it after `count` rounds or steps."""
    known: dict[str, dict[str, Any]] = {
        "linear": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": count},
        "polynomial": {"total_iters": count},
        "cosine": {"T_max": count},
    }
    return known.get(name, {})


class LearningRate:
    """The learning rates of a run's local steps.

    Where a schedule runs over rounds, the steps of a round differ only by their warm-up. Where it
    runs over steps, rounds differ only by theirs. A function of the user's own may do both.
    """

    def __init__(self, config: Config) -> None:
        """Take the keys of `[training]`, and the number of rounds.

        Raises:
            ConfigError: `training.schedule` names a function that is not there.
        """
        self._training = config.training
        self._rounds = config.rounds
        self._own = load_object(self._training.schedule, "training.schedule") if self._training.has_own_schedule else None

    def rates(self, number: int, steps: int) -> Iterator[float]:
        """Compute the learning rates of the steps of one round, one after the other.

        Args:
            number: of the round, from 1.
            steps: how many the round has; a schedule over steps ends with the last one.

        Raises:
            ConfigError: a rate is not positive, or the user's function fails.
        """
        for step, rate in enumerate(itertools.islice(self._unchecked(number, steps), steps)):
            yield self._checked(rate, number, step)

    def _unchecked(self, number: int, steps: int) -> Iterator[float]:
        training = self._training
        if self._own is not None:
            ramp = training.lr * _warmed(number - 1, training.warmup_rounds)
            return (ramp * self._own_multiple(number, step, steps) * _warmed(step, training.warmup_steps) for step in range(steps))
        if training.schedule_over == "steps":
            ramp = _warmed(number - 1, training.warmup_rounds)
            return (rate * ramp for rate in self._along(steps, training.warmup_steps))
        of_round = self.of_round(number)
        return (of_round * _warmed(step, training.warmup_steps) for step in range(steps))

    def of_round(self, number: int) -> float:
        """Compute the learning rate of a round, before what a schedule over steps makes of it."""
        training = self._training
        if self._own is not None:
            return training.lr
        if training.schedule_over == "steps":
            return training.lr * _warmed(number - 1, training.warmup_rounds)
        return next(itertools.islice(self._along(self._rounds, training.warmup_rounds), number - 1, None))

    def effective_steps(self, number: int, steps: int, taken: int | None = None) -> float:
        """Convert the first local steps of a round into the steps of plain SGD that go equally far.

        Those have the learning rate `of_round`, and no momentum.

        Args:
            steps: how many were planned.
            taken: how many were taken; all of them by default.
        """
        momentum = self._training.momentum
        if not self._training.changes_within_round:
            return effective_steps(steps if taken is None else taken, momentum)
        of_round, velocity, way = self.of_round(number), 0.0, 0.0
        for rate in itertools.islice(self.rates(number, steps), taken):
            velocity = momentum * velocity + 1
            way += rate / of_round * velocity
        return way

    def check(self, steps: int) -> None:
        """Compute learning rates before the run starts: those of round 1, and the first of each round.

        Args:
            steps: how many a site takes in a round.

        Raises:
            ConfigError: an argument in `training.schedule_options` is wrong, or a rate is not positive.
        """
        self._check_options()
        for _ in itertools.islice(self.rates(1, steps), CHECKED):
            pass
        numbers = range(1, min(self._rounds, CHECKED) + 1)
        if self._own is not None:
            for number in numbers:
                next(self.rates(number, steps))
        elif self._training.schedule_over == "rounds":
            for number, rate in zip(numbers, self._along(self._rounds, self._training.warmup_rounds), strict=False):
                self._checked(rate, number, 0)

    def _check_options(self) -> None:
        """Check that the scheduler or the user's function takes the options. Raises ConfigError."""
        training = self._training
        try:
            if self._own is not None:
                inspect.signature(self._own).bind(1, self._rounds, 0, 1, **training.schedule_options)
            elif training.schedule != "constant":
                self._scheduler(1)
            elif training.schedule_options:
                raise TypeError("a constant learning rate takes none")
        except Exception as error:  # a scheduler may raise anything, and so may what is no function
            raise ConfigError(f"{self._named}: {one_line(error)}") from error

    @property
    def _named(self) -> str:
        options = self._training.schedule_options
        return f"training.schedule = {self._training.schedule!r}" + (f" with schedule_options = {options}" if options else "")

    def _checked(self, rate: float, number: int, step: int) -> float:
        """Return a positive rate. Raises ConfigError for any other."""
        if math.isfinite(rate) and rate > 0:
            return rate
        where = f"training.schedule = {self._training.schedule!r}: the learning rate of round {number}, step {step + 1}"
        raise ConfigError(f"{where} is {rate:g}; it must be positive")

    def _along(self, count: int, warmup: int) -> Iterator[float]:
        """Yield the rates along rounds or steps, without an end: the warm-up, then the schedule.

        Args:
            count: rounds or steps in all; a schedule that has an end reaches it there.
        """
        training = self._training
        for index in range(warmup):
            yield training.lr * _warmed(index, warmup)
        if training.schedule == "constant":
            yield from itertools.repeat(training.lr)
        scheduler = self._scheduler(max(1, count - warmup))
        while True:
            yield float(scheduler.get_last_lr()[0])
            try:
                scheduler.step()
            except Exception as error:  # also an argument of a wrong type may be noticed here
                raise ConfigError(f"{self._named}: {one_line(error)}") from error

    def _scheduler(self, count: int) -> lr_scheduler.LRScheduler:
        training = self._training
        optimizer = _SGD([torch.zeros(1, requires_grad=True)], lr=training.lr)
        arguments = {**_horizon(training.schedule, count), **training.schedule_options}
        scheduler = SCHEDULERS[training.schedule](optimizer, **arguments)
        optimizer.step()  # there is no gradient; a scheduler wants it to come before its own step
        return scheduler

    def _own_multiple(self, number: int, step: int, steps: int) -> float:
        """Ask the user's function. Raises ConfigError where it fails."""
        assert self._own is not None
        try:
            return float(self._own(number, self._rounds, step, steps, **self._training.schedule_options))
        except Exception as error:  # a user's function may raise anything
            where = f"training.schedule = {self._training.schedule!r}: round {number}, step {step + 1}"
            raise ConfigError(f"{where}: {one_line(error)}") from error


def _warmed(index: int, warmup: int) -> float:
    """Return the share of the learning rate at a round or step, counted from 0.

    It is 1 / (warmup + 1) at first, and 1 after the warm-up.
    """
    return min(1.0, (index + 1) / (warmup + 1))


def effective_steps(steps: int, momentum: float) -> float:
    """Convert steps of SGD with momentum into the steps of plain SGD that go equally far.

    All are at one learning rate. With momentum rho and K steps it is
    sum_{s<=K} (1 - rho^s) / (1 - rho) = (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho)
    (Wang et al., FedNova, arXiv 2007.07481, a_i for momentum SGD), and K without momentum.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
