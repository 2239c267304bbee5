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
    has_negative_loss: ClassVar[bool] = False

    def row_weights(self, targets: Tensor) -> Tensor | None:
        """Return the weight of each row's loss by its class, [R]; None weighs all alike."""
        return None

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Lay out outputs and targets of B examples as rows: logits [R, C] and classes int64 [R]."""
        raise NotImplementedError

    def logit_rows(self, outputs: Tensor) -> Tensor:
        """Lay out outputs alone: logits [R, C], in the order of `rows`."""
        raise NotImplementedError

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> float:
        return float(self.loss(outputs, targets)) * int(self.is_labelled(targets).sum())

    def missing(self, like: Tensor) -> Tensor:
        return torch.full_like(like, UNLABELLED)

    def is_labelled(self, targets: Tensor) -> Tensor:
        """Tell which examples have a class at any place."""
        return (targets != UNLABELLED).flatten(1).any(1) if targets.ndim > 1 else targets != UNLABELLED


def mean_over_examples(losses: Tensor, known: Tensor, examples: int) -> Tensor:
    """Average losses over the known places of each example, and these means over the examples that have any.

    So an example counts as one, whatever else is in its batch, and sums over batches do not depend on
    their size.

    Args:
        losses: [R], of rows in the order of their examples.
        known: bool [R]; the losses of other rows do not count.
        examples: B; R is a multiple of it.

    Returns:
        A scalar; 0 where nothing is known.
    """
    shown = known.reshape(examples, -1)
    sums = losses.masked_fill(~known, 0).reshape(examples, -1).sum(1)
    means = sums / shown.sum(1).clamp(min=1)
    return means.sum() / shown.any(1).sum().clamp(min=1)
