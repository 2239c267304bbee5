"""The table `[training]`: how clients train on their own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from feddkd.config.table import COUNT_MAX, ImportPath, Table

OptimizerName = Literal["sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta"]

ScheduleName = Literal["constant", "step", "multistep", "exponential", "linear", "polynomial", "cosine", "cosine_restarts"]

WITH_MOMENTUM = ("sgd", "rmsprop")
"""Optimizers that take `training.momentum`."""


class OptimizerDefaults(NamedTuple):
    """What `lr`, `momentum` and `weight_decay` are where the configuration does not say."""

    lr: float
    momentum: float
    weight_decay: float


DEFAULTS: Mapping[str, OptimizerDefaults] = {
    "sgd": OptimizerDefaults(0.05, 0.9, 1e-5),
    "adam": OptimizerDefaults(0.001, 0.0, 0.0),
    "adamw": OptimizerDefaults(0.001, 0.0, 0.01),
    "adamax": OptimizerDefaults(0.002, 0.0, 0.0),
    "nadam": OptimizerDefaults(0.002, 0.0, 0.0),
    "radam": OptimizerDefaults(0.001, 0.0, 0.0),
    "rmsprop": OptimizerDefaults(0.01, 0.0, 0.0),
    "adagrad": OptimizerDefaults(0.01, 0.0, 0.0),
    "adadelta": OptimizerDefaults(1.0, 0.0, 0.0),
}
"""All but those of sgd are torch's."""

OWN_DEFAULTS = OptimizerDefaults(0.05, 0.0, 0.0)
"""For an optimizer that is named by an import path."""


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _plain_values(options: dict[str, Any]) -> dict[str, Any]:
    """Check what TOML allows and a constructor may be given. Raises ValueError."""
    for name, value in options.items():
        if not (_is_plain(value) or (isinstance(value, list | tuple) and all(map(_is_plain, value)))):
            raise ValueError(f"{name} must be a finite number, a string, a boolean or an array of these")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


Options = Annotated[dict[str, Any], AfterValidator(_plain_values), Field(max_length=64)]
"""Keyword arguments of a constructor or a function."""


class TrainingConfig(Table):
    """Local training on a client's own labelled data."""

    epochs: int = Field(
        5,
        ge=1,
        le=COUNT_MAX,
        description="passes over the client's data per round; unlabelled examples count for the number of steps, but are not trained on",
    )
    steps: int | None = Field(None, ge=1, le=COUNT_MAX, description="local steps per round, instead of `epochs`")
    batch_size: int = Field(32, ge=1, le=COUNT_MAX, description="examples per mini-batch")
    optimizer: OptimizerName | ImportPath = Field(
        "sgd",
        description="optimizer of `torch.optim`, without state at the beginning of every round; "
        "or package.module:function that takes the parameters and lr and returns an optimizer",
    )
    lr: float = Field(DEFAULTS["sgd"].lr, gt=0, description="learning rate; default: 0.05 for sgd and your own, torch's for the others")
    momentum: float = Field(
        DEFAULTS["sgd"].momentum, ge=0, lt=1, description="momentum of sgd, rmsprop or your own; default: 0.9 for sgd, 0 for the others"
    )
    weight_decay: float = Field(
        DEFAULTS["sgd"].weight_decay,
        ge=0,
        description="weight decay (L2 penalty; decoupled with adamw); default: 1e-5 for sgd, torch's for the others, 0 for your own",
    )
    optimizer_options: Options = Field({}, description="further arguments of the optimizer, such as betas = [0.9, 0.99]")
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="largest norm of the gradient of a local step; it is clipped after the algorithm has added its own terms",
    )
    schedule: ScheduleName | ImportPath = Field(
        "constant",
        description="learning rate over rounds or steps, by the scheduler of `torch.optim.lr_scheduler` of this name; "
        "or package.module:function of (round, rounds, step, steps) that returns a multiple of lr",
    )
    schedule_over: Literal["rounds", "steps"] = Field(
        "rounds",
        description="unit of the schedule: rounds sets one learning rate for each round, steps begins again in every round; "
        "your own function always sees both",
    )
    schedule_options: Options = Field(
        {}, description="arguments of the scheduler, such as gamma = 0.5, in units of `schedule_over`; or of your own function"
    )
    warmup_rounds: int = Field(
        0, ge=0, le=COUNT_MAX, description="rounds in which the learning rate rises linearly; a schedule over rounds begins after them"
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=COUNT_MAX,
        description="steps at the beginning of every round in which the learning rate rises linearly; "
        "a schedule over steps begins after them",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_the_optimizer(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or not isinstance(name := tree.get("optimizer"), str):
            return tree
        return {**DEFAULTS.get(name, OWN_DEFAULTS)._asdict(), **tree}

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.momentum and self.optimizer in DEFAULTS and self.optimizer not in WITH_MOMENTUM:
            raise ValueError(f"momentum = {self.momentum:g}: {self.optimizer} takes none; leave it out, or use optimizer_options")
        return self

    @model_validator(mode="after")
    def _schedule_is_used(self) -> Self:
        if self.schedule_over == "steps" and self.has_own_schedule:
            raise ValueError('schedule_over = "steps": a function of your own sees rounds and steps; leave it out')
        return self

    @property
    def has_own_schedule(self) -> bool:
        """Whether the schedule is a function that is named by an import path."""
        return ":" in self.schedule

    @property
    def is_scheduled(self) -> bool:
        """Whether the learning rate changes at all."""
        return self.schedule != "constant" or self.warmup_rounds > 0 or self.warmup_steps > 0

    @property
    def changes_within_round(self) -> bool:
        """Whether steps of one round may have different learning rates."""
        return self.warmup_steps > 0 or self.has_own_schedule or (self.schedule != "constant" and self.schedule_over == "steps")

    @property
    def depends_on_rounds(self) -> bool:
        """Whether the number of rounds of the run changes the learning rate of a round."""
        return self.has_own_schedule or (self.schedule in ("linear", "polynomial", "cosine") and self.schedule_over == "rounds")
