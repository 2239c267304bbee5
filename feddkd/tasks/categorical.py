"""What tasks have in common whose outputs are logits of classes: of an example, a pixel, a token or a label."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from feddkd.config import TaskTable
from feddkd.tasks.base import UNLABELLED, LearningTask, Settings


class CategoricalTask(LearningTask[Settings]):
    """A task whose outputs are, at each place, a distribution over classes.

    A place is an example, or one of its pixels, tokens or labels. All that distillation knows is said of
    rows: one place each, logits [R, C] and classes int64 [R], `UNLABELLED` where a place has none.
    """

    table: ClassVar[type[TaskTable]]

    @property
    def class_weights(self) -> tuple[float, ...] | None:
        """Weights of the classes of a row in the cross-entropy; None weighs all alike."""
        return None

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Lay out outputs and targets of B examples as rows: logits [R, C] and classes int64 [R]."""
        raise NotImplementedError

    def logit_rows(self, outputs: Tensor) -> Tensor:
        """Lay out outputs alone: logits [R, C], in the order of `rows`."""
        raise NotImplementedError

    def missing(self, like: Tensor) -> Tensor:
        return torch.full_like(like, UNLABELLED)

    def is_labelled(self, targets: Tensor) -> Tensor:
        """Tell which examples have a class at any place."""
        return (targets != UNLABELLED).flatten(1).any(1) if targets.ndim > 1 else targets != UNLABELLED
