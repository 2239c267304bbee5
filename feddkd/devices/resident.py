"""Keep the data of clients on a CUDA device, where they fit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol, Self, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from feddkd.devices.device import Batch, ReadableExamples
from feddkd.devices.runtime import Runtime
from feddkd.structures import Structure

LARGEST_SHARE = 0.25
"""Of the device's free memory that one tensor of data may take."""


@runtime_checkable
class Placeable(Protocol):
    """Examples in memory, which can be somewhere else."""

    def placed(self, place: Callable[[Tensor], Tensor]) -> Self:
        """Return the same examples with `place` of each tensor that they hold."""
        ...

    def gather(self, index: Tensor) -> tuple[Structure, Structure]:
        """Return inputs and targets of the examples that `index` names: int64 [B], on their device."""
        ...


class ResidentExamples:
    """Examples whose inputs, labels and targets are on the device."""

    def __init__(self, placed: Placeable, device: torch.device) -> None:
        self._placed = placed
        self._device = device

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Gather pieces of `order` (int64 [m], on the CPU), which is copied to the device once."""
        if len(order) == 0:
            return
        there = order.to(self._device)
        for index, same in zip(torch.split(order, batch_size), torch.split(there, batch_size), strict=True):
            yield index, *self._placed.gather(same)


class _DoesNotFitError(Exception):
    """A tensor takes more of the device than it may."""


class Residents:
    """The examples that are on one device: all subsets of one data set share its inputs there."""

    def __init__(self, device: torch.device, runtime: Runtime) -> None:
        self._device = device
        self._runtime = runtime
        self._turn = threading.Lock()
        self._tensors = WeakTensorKeyDictionary()
        self._examples: WeakKeyDictionary[Placeable, ResidentExamples | None] = WeakKeyDictionary()

    def of(self, examples: ReadableExamples) -> ResidentExamples | None:
        """Return examples as they are on the device; None if they are read on demand or do not fit.

        What did not fit is not tried again.
        """
        if not isinstance(examples, Placeable):
            return None
        with self._turn:
            if examples not in self._examples:
                self._examples[examples] = self._placed(examples)
            return self._examples[examples]

    def _placed(self, examples: Placeable) -> ResidentExamples | None:
        try:
            placed = examples.placed(self._place)
        except _DoesNotFitError:
            return None
        self._runtime.current().synchronize()  # streams of other clients may read them from now on
        return ResidentExamples(placed, self._device)

    def _place(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device, once for all who hold it."""
        if tensor not in self._tensors:
            if tensor.nbytes > LARGEST_SHARE * self._runtime.free_bytes():
                raise _DoesNotFitError
            self._tensors[tensor] = tensor.to(self._device)
        there: Tensor = self._tensors[tensor]
        return there
