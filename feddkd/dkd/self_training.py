"""The loss of self-training: the network's own predictions replace missing labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class OwnPredictions:
    """The cross-entropy of the network's most likely classes, where it is sure of them.

    The loss is a mean over all examples; one that the network is not sure of counts with 0. Lee,
    Pseudo-Label, ICML workshop 2013, with the threshold of FixMatch (Sohn et al., NeurIPS 2020, arXiv
    2001.07685), without augmentation.

    Attributes:
        confidence: the probability that the most likely class has to exceed, in [0, 1).
        classes: those that can be predicted; None for all.

    Raises:
        ValueError: the confidence is out of its range, or there is no class.
    """

    confidence: float = 0.95
    classes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} is not in [0, 1)")
        if self.classes is not None and len(self.classes) == 0:
            raise ValueError("no class can be predicted")

    @property
    def needs_teacher(self) -> bool:
        """Whether soft labels enter the loss: no, the network is its own teacher."""
        return False

    def loss(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Compute the mean loss of a batch, a scalar.

        Args:
            student_logits: [B, C], any floating-point dtype; the loss is computed in float32 at least.
            teacher_logits: not used.
            labels: not used.
        """
        logits = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
        sure, predicted = self.predictions(logits.detach())
        if not sure.any():
            return logits.sum() * 0
        return F.cross_entropy(logits[sure], predicted[sure], reduction="sum") / len(logits)

    def predictions(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Predict among the classes that can be.

        Args:
            logits: floating-point [B, C].

        Returns:
            bool [B], whether the network is sure, and int64 [B], its most likely class.
        """
        if self.classes is not None:
            impossible = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
            impossible[list(self.classes)] = False
            logits = logits.masked_fill(impossible, -torch.inf)
        probability, predicted = F.softmax(logits, dim=1).max(1)
        return probability > self.confidence, predicted
