"""Targets that are not the labels of examples: how they are held, and how they are read from rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from feddkd.errors import DataError
from feddkd.structures import Structure, map_leaves
from feddkd.tasks.base import UNLABELLED, LearningTask


@dataclass(frozen=True)
class TargetReading:
    """How the target of a row is read; sent to loader processes.

    Attributes:
        task: converts it.
        like: the target of one example; others have its form.
        num_classes: for the check of classes; None where the task has none.
    """

    task: LearningTask[Any]
    like: Structure
    num_classes: int | None = None

    def read(self, raw: Any) -> Structure:
        """Convert a raw target, or make one for an example that has none. Raises DataError."""
        return self.task.missing(self.like) if raw is None else self.checked(self.task.target(raw))

    def checked(self, target: Structure) -> Structure:
        """Return a target that has the form of others, and classes that exist. Raises DataError if it has not."""
        try:
            map_leaves(_check_same_shape, target, self.like)
        except ValueError:
            raise DataError("its target has another form than that of others") from None
        if self.num_classes is not None:
            self.task.check_targets(map_leaves(lambda leaf: leaf.unsqueeze(0), target), self.num_classes)
        return target


@dataclass(frozen=True)
class Targets:
    """Targets in memory.

    Attributes:
        values: the targets of n examples; a missing one is what the task says (`LearningTask.missing`).
        task: whose targets they are.
    """

    values: Structure
    task: LearningTask[Any]

    def followed_by_missing(self, count: int) -> Targets:
        """Return these targets and so many that are missing."""

        def longer(known: Tensor, missing: Tensor) -> Tensor:
            return torch.cat([known, missing.expand(count, *known.shape[1:])])

        first = map_leaves(lambda leaf: leaf[:1], self.values)
        return Targets(map_leaves(longer, self.values, self.task.missing(first)), self.task)

    def reading(self) -> TargetReading:
        """Say how these are read one by one."""
        return TargetReading(self.task, map_leaves(lambda leaf: leaf[0], self.values))


def with_missing(task: LearningTask[Any], targets: Structure, labels: Tensor) -> Structure:
    """Replace the targets [B, ...] of examples whose label, int64 [B], is `UNLABELLED` by what the task calls missing."""
    hidden = labels == UNLABELLED
    if not hidden.any():
        return targets

    def hide(known: Tensor, missing: Tensor) -> Tensor:
        return torch.where(hidden.reshape(-1, *[1] * (known.ndim - 1)), missing, known)

    return map_leaves(hide, targets, task.missing(targets))


def _check_same_shape(target: Any, like: Any) -> None:
    if target.shape != like.shape:
        raise DataError(f"its target has shape {list(target.shape)}, and that of others {list(like.shape)}")
