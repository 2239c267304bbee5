"""The part of `torch.cuda` that clients use, in one place, so that tests can replace it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in the work of a stream."""

    def record(self, stream: Any) -> None:
        """Set the point behind the work that the stream has so far."""

    def synchronize(self) -> None:
        """Wait until the work before the point is done."""


class Stream(Protocol):
    """Work that a device does in order."""

    def wait_stream(self, stream: Any) -> None:
        """Let later work wait for the work that another stream has so far."""

    def wait_event(self, event: Any) -> None:
        """Let later work wait for a point of another stream."""

    def synchronize(self) -> None:
        """Wait until all work is done."""


class Graph(Protocol):
    """Operations that were recorded."""

    def replay(self) -> None:
        """Do them again, on the same memory."""


class Runtime(Protocol):
    """What a CUDA device offers beside tensors."""

    def stream(self) -> Stream:
        """Make a stream."""
        ...

    def current(self) -> Stream:
        """Return the stream of this thread."""
        ...

    def using(self, stream: Stream) -> AbstractContextManager[Any]:
        """Make a stream that of this thread."""
        ...

    def event(self) -> Event:
        """Make an event."""
        ...

    def pinned(self, size_bytes: int) -> Tensor:
        """Allocate uint8 [size_bytes] on the CPU that the device reads and writes by itself."""
        ...

    def pin(self, tensor: Tensor) -> Tensor:
        """Copy a tensor on the CPU into such memory."""
        ...

    def keep_for(self, tensor: Tensor, stream: Stream) -> None:
        """Keep the memory of a tensor on the device until a stream is through with it."""

    def free_bytes(self) -> int:
        """Return how much memory of the device nobody uses."""
        ...

    def random_state(self) -> tuple[Tensor, Tensor]:
        """Return the states of the generators of the CPU and of the device."""
        ...

    def graph(self) -> Graph:
        """Make an empty graph."""
        ...

    def recording(self, graph: Any) -> AbstractContextManager[Any]:
        """Record the work of the current stream instead of doing it. Raises RuntimeError."""
        ...


class CudaRuntime:
    """`torch.cuda` for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stream(self) -> Stream:
        made: Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return made

    def current(self) -> Stream:
        return torch.cuda.current_stream(self._device)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def event(self) -> Event:
        made: Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        return made

    def pinned(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def pin(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def keep_for(self, tensor: Tensor, stream: Any) -> None:
        tensor.record_stream(stream)

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self._device)[0])

    def random_state(self) -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)

    def graph(self) -> Graph:
        made: Graph = torch.cuda.CUDAGraph()
        return made

    def recording(self, graph: Any) -> AbstractContextManager[Any]:
        # thread_local: other threads may compute for other clients meanwhile.
        stream = torch.cuda.current_stream(self._device)
        return torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
