"""Control the steps of a round: clip gradients, stop early, average the last students."""

from __future__ import annotations

from feddkd.compression.running_mean import RunningMean
from feddkd.tensors import Tensors


class TailMean:
    """The mean of the last students of a round (Polyak and Juditsky 1992; arXiv 1803.05407).

    At a constant learning rate the last steps oscillate around a minimum; their mean is nearer to
    it than the last one.
    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._mean = RunningMean()

    def includes(self, step: int) -> bool:
        """Tell whether the student after `step` counts."""
        return step >= self._first_step

    def add(self, step: int, student: Tensors) -> None:
        """Add the student after `step`; it counts from the first step of the tail on."""
        if self.includes(step):
            self._mean.add(student)

    def of(self, last: Tensors) -> Tensors:
        """Return the last student with averaged parameters; unchanged if no student was added."""
        return self._mean.of(last)


def clipped(gradient: Tensors, clip_norm: float | None) -> Tensors:
    """Scale the gradient down to the norm `clip_norm` if it is longer; None leaves it as it is."""
    norm = gradient.norm() if clip_norm is not None else 0.0
    return gradient if clip_norm is None or norm <= clip_norm else gradient.scaled(clip_norm / norm)


class Plateau:
    """Early stopping: the mean loss of `patience` steps no longer falls by 1 %; with 0 never."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._losses: list[float] = []

    def reached(self, loss: float) -> bool:
        """Add the loss of one more step; returns whether to stop."""
        self._losses.append(loss)
        if self._patience == 0 or len(self._losses) < 2 * self._patience:
            return False
        last, before = sum(self._losses[-self._patience :]), sum(self._losses[-2 * self._patience : -self._patience])
        return last > 0.99 * before
