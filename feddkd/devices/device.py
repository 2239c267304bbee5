"""Define what a device does for a training loop; on the CPU it does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from feddkd.structures import Structure

Batch = tuple[Tensor, Structure, Structure]
"""index int64 [B] on the CPU, inputs [B, ...], targets [B, ...]."""

Step = Callable[[Tensor, Structure, Structure], Tensor]
"""Takes one training step on a batch (index, inputs, targets) and returns its loss.

The loss is a scalar without a gradient, valid until the next step.
"""

Reason = Callable[[], str | None]
"""Says why a step's operations cannot be recorded and repeated; None where they can."""

Recording = Callable[[], AbstractContextManager[None]]
"""Makes a context that is entered while a step is recorded."""

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Destinations and sources of copies."""


class ReadableExamples(Protocol):
    """Examples, as far as a device reads them."""

    def __len__(self) -> int: ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield pieces of `order` (int64 [m]) with their inputs and targets, on the CPU."""
        ...


class Device(Protocol):
    """Where a client computes, and how its data and models come there and leave."""

    def new_stream(self) -> Any:
        """Make what orders the work of one network; None where there is one order for all."""

    def using(self, stream: Any) -> AbstractContextManager[None]:
        """Order the work inside by a stream, after the work so far; the work after it waits."""
        ...

    def batches(self, examples: ReadableExamples, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield what `examples.batches` yields, with inputs and targets on this device."""
        ...

    def repeated(self, step: Step, steps: int, why_eager: Reason, capturable: Recording) -> Step:
        """Return what takes a step that is repeated, in the fastest way that gives the same result.

        Args:
            step: one step; it does the same operations for batches of the same shapes.
            steps: how many are planned.
            why_eager: whether its operations can be recorded and repeated.
            capturable: for the recording.
        """
        ...

    def transfer(self, pairs: Pairs) -> None:
        """Copy tensors between the CPU and this device, together; they are there on return."""


class Cpu:
    """The CPU: everything is there already."""

    def new_stream(self) -> None:
        return None

    def using(self, stream: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def batches(self, examples: ReadableExamples, order: Tensor, batch_size: int) -> Iterator[Batch]:
        return examples.batches(order, batch_size)

    def repeated(self, step: Step, steps: int, why_eager: Reason, capturable: Recording) -> Step:
        return step

    def transfer(self, pairs: Pairs) -> None:
        for destination, source in pairs:
            destination.copy_(source)
