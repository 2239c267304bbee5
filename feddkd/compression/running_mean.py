"""Keep the mean of models as they come, the same bits wherever it is kept."""

from __future__ import annotations

import torch

from feddkd.tensors import Tensors

_PIECE_ELEMENTS = 1 << 18


class RunningMean:
    """The mean of the trainable parameters of the models added so far.

    Attributes:
        parameters: the mean, or None if no model was added.
        count: models added.
    """

    def __init__(self, parameters: Tensors | None = None, count: int = 0) -> None:
        """Begin with no model, or go on with another object's mean."""
        self.count = count
        self.parameters = parameters

    def add(self, model: Tensors) -> None:
        """Add a model; takes the memory of one, whatever their number."""
        self.count += 1
        if self.parameters is None:
            self.parameters = model.select(model.schema.trainable)
        else:
            _move_towards(self.parameters, model, 1 / self.count)

    def of(self, last: Tensors) -> Tensors:
        """Return `last` with averaged parameters; unchanged if no model was added."""
        return last if self.parameters is None else last.replace(self.parameters)


def _move_towards(mean: Tensors, target: Tensors, share: float) -> None:
    """Add share (target - mean) to `mean` in place, a piece at a time to save memory."""
    for name, tensor in mean.items():
        olds = torch.split(tensor.view(-1), _PIECE_ELEMENTS)
        news = torch.split(target[name].view(-1), _PIECE_ELEMENTS)
        for old, new in zip(olds, news, strict=True):
            old.add_((new - old).mul_(share))
