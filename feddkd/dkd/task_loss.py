"""The loss of a DKD step for each kind of task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from feddkd.dkd.divergences import divergence_of
from feddkd.dkd.gradient import Distillation
from feddkd.errors import ConfigError
from feddkd.structures import Structure, rows_of
from feddkd.tasks.base import UNLABELLED, LearningTask, StepLoss
from feddkd.tasks.categorical import CategoricalTask

DEFAULT_DIVERGENCE = "kl"
"""What every task has; the others are for logits of classes."""


@dataclass(frozen=True)
class RowDistillation:
    """The loss of a DKD step of a task with classes: that of `distillation`, over examples, pixels, tokens or labels."""

    task: CategoricalTask[Any]
    distillation: Distillation

    @property
    def needs_teacher(self) -> bool:
        """Whether soft labels enter the loss."""
        return self.distillation.needs_teacher

    def loss(self, student: Tensor, teacher: Tensor | None, targets: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar."""
        if not self.needs_teacher and targets.ndim > 1 and self.distillation.bootstrap == 0:
            return self.task.loss(student, targets)  # places without a class are left out, and an example counts as one
        rows, classes = self.task.rows(student, targets)
        soft = None if teacher is None else self.task.logit_rows(teacher)
        weights = self.task.row_weights(targets)
        if not self.needs_teacher and targets.ndim > 1:
            known = classes != UNLABELLED
            rows, classes, weights = rows[known], classes[known], None if weights is None else weights[known]
        return self.distillation.loss(rows, soft, classes, weights)


@dataclass(frozen=True)
class OutputDistillation:
    """The loss of a DKD step of any other task: (1 - w) divergence(teacher, student) + w loss(targets).

    Attributes:
        hard_label_weight: w in [0, 1], for examples that have a target; the others follow their teacher alone.
        divergence: (teacher outputs, student outputs) -> the mean over the batch.
    """

    task: LearningTask[Any]
    hard_label_weight: float
    divergence: Callable[[Structure, Structure], Tensor]

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's outputs enter the loss."""
        return self.hard_label_weight < 1

    def loss(self, student: Structure, teacher: Structure | None, targets: Structure) -> Tensor:
        """Compute the mean loss of a batch, a scalar.

        Raises:
            ValueError: there is no teacher although the loss needs one.
        """
        weight = self.hard_label_weight
        if weight == 1:
            return self.task.loss(student, targets)
        if teacher is None:
            raise ValueError(f"hard_label_weight {weight} needs a teacher; only 1 does without")
        distance = self.divergence(teacher, student)
        labelled = self.task.is_labelled(targets)
        if weight == 0 or not labelled.any():
            return distance
        if labelled.all():
            return (1 - weight) * distance + weight * self.task.loss(student, targets)
        # With a target: (1 - w) d + w l. Without one: d.
        known, share = labelled.nonzero().flatten(), labelled.float().mean()
        of_known = self.divergence(rows_of(teacher, known), rows_of(student, known))
        hard = self.task.loss(rows_of(student, known), rows_of(targets, known))
        return distance + share * weight * (hard - of_known)


def step_loss(task: LearningTask[Any], distillation: Distillation) -> StepLoss:
    """Build the loss of a DKD step of a task.

    Raises:
        ConfigError: `[dkd]` asks for what the task does not have.
    """
    if isinstance(task, CategoricalTask):
        if distillation.not_true and task.settings.name == "multilabel":
            raise ConfigError(
                "dkd.not_true = true: of the two classes of a label nothing is left without the true one; multilabel has no not_true"
            )
        return RowDistillation(task, distillation)
    _check_has_no_classes(task, distillation)
    return OutputDistillation(task, distillation.hard_label_weight, _divergence(task, distillation))


def _check_has_no_classes(task: LearningTask[Any], distillation: Distillation) -> None:
    """Raises ConfigError for settings that speak of classes."""
    if distillation.temperature != 1 and ":" not in distillation.divergence:
        raise ConfigError(
            f"dkd.temperature = {distillation.temperature:g}: it has no effect on task.name = {task.settings.name!r}; leave it out"
        )
    asked = {
        "not_true": distillation.not_true,
        "correct_teacher": distillation.correct_teacher,
        "confidence": distillation.confidence > 0,
        "bootstrap": distillation.bootstrap > 0,
    }
    for key, is_asked in asked.items():
        if is_asked:
            raise ConfigError(f"dkd.{key}: it is for logits of classes, and task.name = {task.settings.name!r} has none")


def _divergence(task: LearningTask[Any], distillation: Distillation) -> Callable[[Structure, Structure], Tensor]:
    name, temperature = distillation.divergence, distillation.temperature
    if name == DEFAULT_DIVERGENCE:
        return task.divergence
    if ":" not in name:
        raise ConfigError(
            f"dkd.divergence = {name!r}: it is for logits of classes; task.name = {task.settings.name!r} has "
            f"{DEFAULT_DIVERGENCE}, and package.module:function is one of your own"
        )
    own = divergence_of(name)
    return lambda teacher, student: own(teacher, student, temperature)
