"""A stand-in for `torch.cuda` behind `feddkd.devices.runtime.Runtime`: it runs the work on the CPU and records the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class FakeStream:
    """A stream by name; all of its work is done at once."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self._calls = calls

    def wait_stream(self, stream: FakeStream) -> None:
        self._calls.append(f"{self.name} waits for stream {stream.name}")

    def wait_event(self, event: FakeEvent) -> None:
        self._calls.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        self._calls.append(f"host waits for stream {self.name}")


class FakeEvent:
    """An event by name."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self._calls = calls

    def record(self, stream: FakeStream) -> None:
        self._calls.append(f"{self.name} on {stream.name}")

    def synchronize(self) -> None:
        self._calls.append(f"host waits for {self.name}")


class FakeGraph:
    """Operations of PyTorch on the tensors that they were recorded with, as a CUDA graph has them: Python code is not in it."""

    def __init__(self, calls: list[str]) -> None:
        self.operations: list[Callable[[], None]] = []
        self._calls = calls

    def replay(self) -> None:
        self._calls.append("replay")
        with torch.no_grad():
            for operation in self.operations:
                operation()


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps each operation with its tensors. Raises RuntimeError where the CPU would read a result, as CUDA does."""

    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = graph
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        self._before_write(func, args, kwargs)
        out = func(*args, **kwargs)
        self._graph.operations.append(lambda: _again(func, args, kwargs, out))
        return out

    def _before_write(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Keep what an operation overwrites: a recorded operation is not done yet."""
        for number, argument in enumerate(func._schema.arguments):
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            if not is_written and argument.name not in ("running_mean", "running_var"):  # BatchNorm's schema does not say it
                continue
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor):
                    key = tensor.untyped_storage().data_ptr()
                    base = tensor if tensor._base is None else tensor._base
                    self._written.setdefault(key, (base, base.detach().clone()))

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for tensor, before in self._written.values():
                tensor.detach().copy_(before)


def _again(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Do an operation on the same tensors, and put its result where the first one is."""
    found = func(*args, **kwargs)
    firsts, news = (value if isinstance(value, list | tuple) else [value] for value in (out, found))
    for first, new in zip(firsts, news, strict=True):
        if isinstance(first, Tensor) and first is not new and first.data_ptr() != new.data_ptr():
            first.detach().copy_(new)


class FakeRuntime:
    """What `torch.cuda` offers, on the CPU.

    Attributes:
        calls: what was asked for, in order.
        free: bytes of free memory.
        fails: what recording raises; None for nothing.
    """

    def __init__(self, device: torch.device | None = None, free: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.free = free
        self.fails: Exception | None = None
        self._made = 0
        self._current = FakeStream("main", self.calls)

    def _next(self, kind: str) -> str:
        self._made += 1
        return f"{kind} {self._made}"

    def stream(self) -> Any:
        return FakeStream(self._next("stream"), self.calls)

    def current(self) -> Any:
        return self._current

    @contextmanager
    def using(self, stream: Any) -> Iterator[None]:
        outer, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = outer

    def event(self) -> Any:
        return FakeEvent(self._next("event"), self.calls)

    def pinned(self, size_bytes: int) -> Tensor:
        self.calls.append(f"pinned {size_bytes}")
        return torch.full((size_bytes,), 255, dtype=torch.uint8)

    def pin(self, tensor: Tensor) -> Tensor:
        self.calls.append(f"pin {list(tensor.shape)} on {self._current.name}")
        return tensor.clone()

    def keep_for(self, tensor: Tensor, stream: Any) -> None:
        self.calls.append(f"keep {list(tensor.shape)} for {stream.name}")

    def free_bytes(self) -> int:
        return self.free

    def random_state(self) -> tuple[Tensor, Tensor]:
        return torch.get_rng_state(), torch.empty(0)

    def graph(self) -> Any:
        return FakeGraph(self.calls)

    @contextmanager
    def recording(self, graph: Any) -> Iterator[None]:
        self.calls.append("record")
        with _Recording(graph):
            yield
            if self.fails is not None:
                raise self.fails
