"""Keep a model equal at the server and its clients, although only encoded steps are sent.

The server encodes the step that it wants to take, adds the decoded step to its own model, and sends the
code. So its model is exactly what clients hold, and there is no error to feed back later.
"""

from __future__ import annotations

import hashlib
from typing import Self

from feddkd.compression.running_mean import RunningMean
from feddkd.errors import SchemaError
from feddkd.tensors import Tensors

VERSION_BYTES = 16


def version_of(model: Tensors) -> bytes:
    """Name a model by its content: the first 16 bytes of its SHA-256."""
    return hashlib.sha256(model.block.numpy().data).digest()[:VERSION_BYTES]


class Replica:
    """A model and the mean of the last ones, equal at server and clients.

    Attributes:
        model: what is held now.
        version: of `model`.
    """

    def __init__(self, model: Tensors, *, in_mean: bool = False) -> None:
        """Begin with a whole model.

        Args:
            in_mean: it counts in the running mean.
        """
        self._mean = RunningMean()
        self._hold(model, in_mean=in_mean)

    @classmethod
    def of(cls, model: Tensors, mean: Tensors | None, mean_count: int) -> Self:
        """Go on with a replica of another process.

        Args:
            mean: its `running_mean`.
            mean_count: its `mean_count`.
        """
        replica = cls(model)
        replica._mean = RunningMean(mean, mean_count)
        return replica

    @property
    def running_mean(self) -> Tensors | None:
        """The running mean of the trainable parameters; None if it is empty."""
        return self._mean.parameters

    @property
    def mean_count(self) -> int:
        """Models in the running mean."""
        return self._mean.count

    def advance(self, step: Tensors, *, in_mean: bool = False) -> None:
        """Take a step.

        Args:
            step: some or all tensors of the model; those that are `lossy` are added to the model's, the others
                replace them.
            in_mean: the model after it counts in the running mean, which begins after the last one that does not.

        Raises:
            SchemaError: a tensor is not one of the model's.
        """
        for name, spec in step.schema.by_name.items():
            mine = self.model.schema.by_name.get(name)
            if mine is None or (mine.dtype, mine.shape) != (spec.dtype, spec.shape):
                raise SchemaError(f"tensor {spec} is not a tensor of the model")
        model = self.model.replace({})
        for name in step:
            if model.schema.by_name[name].lossy:
                model[name].add_(step[name])
            else:
                model[name].copy_(step[name])
        self._hold(model, in_mean=in_mean)

    def take_mean(self) -> None:
        """Put the running mean in the place of the trainable parameters, and begin it again."""
        self._hold(self.mean, in_mean=False)

    @property
    def is_untouched(self) -> bool:
        """Whether the model is still the one that `version` names: somebody to whom it was lent may have written to it."""
        return version_of(self.model) == self.version

    def look_again(self) -> None:
        """Name the model by what it is now: somebody to whom it was lent may have written to it."""
        self.version = version_of(self.model)

    @property
    def mean(self) -> Tensors:
        """The model with the running mean of the trainable parameters; the model itself if that is empty."""
        return self._mean.of(self.model)

    def _hold(self, model: Tensors, *, in_mean: bool) -> None:
        self.model, self.version = model, version_of(model)
        if in_mean:
            self._mean.add(model)
        else:
            self._mean = RunningMean()
