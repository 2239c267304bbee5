"""Copy batches to a CUDA device while the one before is computed on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from feddkd.devices.device import Batch
from feddkd.devices.runtime import Event, Runtime, Stream
from feddkd.structures import leaves, map_leaves


class _OnTheWay(NamedTuple):
    """A batch whose copy has begun, and the point where it is complete."""

    batch: Batch
    copied: Event


def overlapped(batches: Iterator[Batch], device: torch.device, runtime: Runtime, copies: Stream) -> Iterator[Batch]:
    """Yield batches of the CPU with inputs and targets on a device, one behind the copies.

    A batch is copied from pinned memory on the stream `copies`. So the device copies the next batch
    while it computes on this one, and the host waits for neither.
    """
    waiting: _OnTheWay | None = None
    for batch in batches:
        begun = _begin(batch, device, runtime, copies)
        if waiting is not None:
            yield _arrived(waiting, runtime)
        waiting = begun
    if waiting is not None:
        yield _arrived(waiting, runtime)


def _begin(batch: Batch, device: torch.device, runtime: Runtime, copies: Stream) -> _OnTheWay:
    index, inputs, targets = batch

    def begin(leaf: Tensor) -> Tensor:
        return runtime.pin(leaf).to(device, non_blocking=True)

    with runtime.using(copies):
        there = index, map_leaves(begin, inputs), map_leaves(begin, targets)
    copied = runtime.event()
    copied.record(copies)
    return _OnTheWay(there, copied)


def _arrived(waiting: _OnTheWay, runtime: Runtime) -> Batch:
    """Let the stream that computes wait for a copy; the host does not."""
    current = runtime.current()
    current.wait_event(waiting.copied)
    _, inputs, targets = waiting.batch
    for leaf in (*leaves(inputs), *leaves(targets)):
        runtime.keep_for(leaf, current)  # its memory belongs to the stream of the copies
    return waiting.batch
