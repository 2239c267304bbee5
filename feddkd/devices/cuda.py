"""A CUDA device: data that stay there or come in time, models in one copy, steps as CUDA graphs.

None of this has been measured; tests run on a stand-in for `torch.cuda` (docs/how-to/gpu.md).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from feddkd.devices.blocks import Staging
from feddkd.devices.device import Batch, Pairs, ReadableExamples, Reason, Recording, Step
from feddkd.devices.graphs import FEWEST_STEPS, RepeatedStep, say_once
from feddkd.devices.prefetch import overlapped
from feddkd.devices.resident import Residents
from feddkd.devices.runtime import Runtime, Stream


class Cuda:
    """One CUDA device of this process, which all clients of the process share."""

    def __init__(self, device: torch.device, runtime: Runtime) -> None:
        """Take what is offered; nothing happens on the device yet.

        Args:
            device: with its number.
            runtime: `torch.cuda` for this device.
        """
        self._device = device
        self._runtime = runtime
        self._residents = Residents(device, runtime)
        self._staging = Staging(device, runtime)
        self._one_records = threading.Lock()
        self._one_begins = threading.Lock()
        self._copying: Stream | None = None

    def new_stream(self) -> Stream:
        return self._runtime.stream()

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        outer = self._runtime.current()
        stream.wait_stream(outer)
        try:
            with self._runtime.using(stream):
                yield
        finally:
            outer.wait_stream(stream)

    def batches(self, examples: ReadableExamples, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield batches on the device: gathered there if the examples fit, or copied ahead."""
        resident = self._residents.of(examples)
        if resident is not None:
            return resident.batches(order, batch_size)
        return overlapped(examples.batches(order, batch_size), self._device, self._runtime, self._copies())

    def _copies(self) -> Stream:
        """Return the stream of copies; one for all, since each stream keeps memory of its own."""
        with self._one_begins:
            if self._copying is None:
                self._copying = self._runtime.stream()
            return self._copying

    def repeated(self, step: Step, steps: int, why_eager: Reason, capturable: Recording) -> Step:
        """Return a step that becomes a CUDA graph after a few calls, or `step`; the log says why."""
        if steps < FEWEST_STEPS:
            return step
        if (why := why_eager()) is not None:
            say_once(why)
            return step
        return RepeatedStep(step, self._runtime, capturable, self._one_records)

    def transfer(self, pairs: Pairs) -> None:
        self._staging.transfer(pairs)
