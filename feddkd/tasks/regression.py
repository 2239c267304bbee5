"""Regression: one number of an example, or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from feddkd.config import MetricName, TaskTable
from feddkd.errors import ConfigError
from feddkd.registry import TASKS
from feddkd.structures import Structure
from feddkd.tasks.base import LearningTask, Shapes
from feddkd.tasks.targets import as_floats

LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.huber_loss}


class RegressionConfig(TaskTable):
    """One number of each example, or as many as `data.target_shape` says."""

    name: Literal["regression"] = "regression"
    metric: MetricName = Field("mae", description="the metric that decides which round is the best")
    loss: Literal["squared", "absolute", "huber"] = Field(
        "squared", description="loss of a prediction; huber is squared below an error of 1"
    )


@TASKS.register("regression")
class Regression(LearningTask[RegressionConfig]):
    """Predictions [B, ...] of float32 targets [B, ...]; a network may give [B, 1] where a target is one number.

    The loss is the mean over examples and numbers. The divergence of a DKD step is the mean squared
    difference of the outputs: KL(teacher || student) of normal distributions of variance 1/2.
    """

    table = RegressionConfig
    has_negative_loss: ClassVar[bool] = False

    def target(self, raw: Any) -> Tensor:
        return as_floats(raw)

    def target_shape(self, configured: tuple[int, ...] | None, num_classes: int | None) -> tuple[int, ...] | None:
        return configured

    def num_outputs(self, target_shape: tuple[int, ...]) -> int | None:
        return math.prod(target_shape)

    def check_data(self, num_classes: int | None, target_shape: tuple[int, ...] | None) -> None:
        if num_classes is not None and (target_shape is None or num_classes != math.prod(target_shape)):
            raise ConfigError(
                f"data.num_classes = {num_classes}: regression has no classes; data.target_shape = [{num_classes}] says so many numbers"
            )

    def missing(self, like: Tensor) -> Tensor:
        return torch.full_like(like, math.nan)

    def is_labelled(self, targets: Tensor) -> Tensor:
        return ~targets.flatten(1).isnan().any(1) if targets.ndim > 1 else ~targets.isnan()

    def trial_targets(self, shapes: Shapes, size: int) -> Tensor:
        return torch.zeros(size, *shapes.target_shape)

    def check_outputs(self, outputs: Structure, targets: Tensor, num_classes: int | None, what: str) -> None:
        wanted = tuple(targets.shape)
        if not isinstance(outputs, Tensor):
            raise ConfigError(f"{what} to {type(outputs).__name__}, not to {wanted} numbers")
        one_each = wanted == (len(targets),) and tuple(outputs.shape) == (len(targets), 1)
        if not (tuple(outputs.shape) == wanted or one_each) or not outputs.is_floating_point():
            raise ConfigError(f"{what} to {tuple(outputs.shape)} {outputs.dtype}, not to {wanted} numbers")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[self.settings.loss](outputs.reshape(targets.shape), targets)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        known = self.is_labelled(targets)
        return outputs.reshape(targets.shape)[known], targets[known]
