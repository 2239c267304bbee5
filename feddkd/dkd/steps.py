"""What the server does about the steps of a round besides taking them: clip, notice the end, average."""

from __future__ import annotations

import torch

from feddkd.tensors import Tensors


class TailMean:
    """The mean of the last students of a round, in place of the very last one.

    At a constant learning rate the steps end by circling a minimum; the mean of the circle is nearer to it than its last
    point, and costs no byte (Polyak and Juditsky 1992; Izmailov et al., arXiv 1803.05407).
    """

    def __init__(self, first_step: int) -> None:
        self._first_step = first_step
        self._mean: Tensors | None = None
        self._count = 0

    def add(self, step: int, student: Tensors) -> None:
        """Take in the student after `step`, if that is late enough."""
        if step < self._first_step:
            return
        self._count += 1
        if self._mean is None:
            self._mean = student.select(student.schema.trainable)
        else:
            _move_towards(self._mean, student, 1 / self._count)

    def of(self, last: Tensors) -> Tensors:
        """Return the last student with its trainable parameters averaged; unchanged if there is nothing to average."""
        return last if self._mean is None else last.replace(self._mean)


_PIECE_ELEMENTS = 1 << 18


def _move_towards(mean: Tensors, target: Tensors, share: float) -> None:
    """Add share (target - mean) to `mean` in place, a piece at a time: the difference never takes a model's memory."""
    for name, tensor in mean.items():
        olds = torch.split(tensor.view(-1), _PIECE_ELEMENTS)
        news = torch.split(target[name].view(-1), _PIECE_ELEMENTS)
        for old, new in zip(olds, news, strict=True):
            old.add_((new - old).mul_(share))


def clipped(gradient: Tensors, clip_norm: float | None) -> Tensors:
    """The gradient, shortened to `clip_norm` if it is longer."""
    norm = gradient.norm() if clip_norm is not None else 0.0
    return gradient if clip_norm is None or norm <= clip_norm else gradient.scaled(clip_norm / norm)


class Plateau:
    """Notices when the mean loss of the last `patience` steps is no longer 1 % below that of as many before; never with 0."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._losses: list[float] = []

    def reached(self, loss: float) -> bool:
        """Take in the loss of one more step."""
        self._losses.append(loss)
        if self._patience == 0 or len(self._losses) < 2 * self._patience:
            return False
        last, before = sum(self._losses[-self._patience :]), sum(self._losses[-2 * self._patience : -self._patience])
        return last > 0.99 * before
