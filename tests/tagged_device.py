"""A CUDA device that is none: tensors that say they are on it, and operations that refuse what CUDA would refuse.

It finds operations on tensors of two devices, and reads of a device tensor's memory as if it were the CPU's. What it
computes is computed on the CPU, so results are those of the CPU, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from fake_cuda import FakeRuntime
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from feddkd.devices import chosen

CUDA = torch.device("cuda", 0)

aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
"""Operations whose arguments may be on two devices."""

INDEXED_FROM_CPU = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}
"""CUDA takes indices from the CPU: it copies them, while the host waits."""


class MixedDevicesError(RuntimeError):
    """An operation that CUDA refuses: its tensors are on two devices."""


class TaggedTensor(Tensor):
    """A tensor on the pretended device; its values are in `of`, on the CPU.

    To PyTorch's C++ code it is on the meta device, which has no memory to read by mistake.
    """

    of: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> TaggedTensor:
        made: TaggedTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=torch.device("meta")
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.of = inner

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Let `Module.to` exchange parameters for those on this device."""
        return ["of"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> TaggedTensor:
        return TaggedTensor(inner["of"])

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def data_ptr(self) -> int:
        return self.of.data_ptr()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.of.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone()
        found = nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied
        memo[id(self)] = found
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"TaggedTensor({self.of!r})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


class PretendedCuda(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, tensors can be made on the pretended device and copied to it.

    Attributes:
        crossings: copies between the devices, by direction ("to", "from").
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self.crossings)


@contextmanager
def pretended_cuda() -> Iterator[PretendedCuda]:
    """Let `runtime.device = "cuda:0"` be the pretended device, in this thread."""
    with (
        mock.patch.object(torch.cuda, "_lazy_init"),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        mock.patch.object(torch.cuda, "get_rng_state", return_value=torch.zeros(16, dtype=torch.uint8)),
        mock.patch.object(torch.cuda, "set_rng_state"),
        mock.patch.object(chosen, "CudaRuntime", FakeRuntime),
        PretendedCuda() as mode,
    ):
        chosen._cuda.cache_clear()
        try:
            yield mode
        finally:
            chosen._cuda.cache_clear()


def run(func: Any, args: Any, kwargs: dict[str, Any], crossings: Counter[str] | None = None) -> Any:
    """Run an operation on the values, and tag what it returns. Raises MixedDevicesError."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    tagged = any(isinstance(each, TaggedTensor) for each in tensors)
    plain = any(not isinstance(each, TaggedTensor) for each in tensors)
    wanted = kwargs.get("device")
    onto = tagged if wanted is None else torch.device(wanted).type in ("cuda", "meta")  # meta is what autograd knows
    if func in COPIES and crossings is not None:
        target = onto if func is aten._to_copy.default else isinstance(tree_flatten(args)[0][0], TaggedTensor)
        source = isinstance(tensors[-1], TaggedTensor)
        if source != target:
            crossings["to" if target else "from"] += 1
    if tagged and plain:
        _check_mixed(func, args, tensors)
    if wanted is not None and onto:
        kwargs = {**kwargs, "device": "cpu"}
    values = func(*_untagged(args), **_untagged(kwargs))
    if _returns_first(func):
        return args[0]
    return tree_map_only(Tensor, TaggedTensor, values) if onto else values


def _check_mixed(func: Any, args: Any, tensors: list[Tensor]) -> None:
    if func in COPIES:
        return
    if func in INDEXED_FROM_CPU and isinstance(args[0], TaggedTensor):
        rest = [args[0], *(leaf for leaf in tree_flatten(args[2:])[0] if isinstance(leaf, Tensor))]
        tensors = rest
    if any(not isinstance(each, TaggedTensor) and each.ndim > 0 for each in tensors):
        places = ", ".join(f"{'cuda:0' if isinstance(each, TaggedTensor) else 'cpu'}{list(each.shape)}" for each in tensors)
        raise MixedDevicesError(f"{func}: Expected all tensors to be on the same device, but found at least two: {places}")


def _returns_first(func: Any) -> bool:
    """Tell whether an operation writes to its first argument and returns it."""
    schema = func._schema
    alias = schema.arguments[0].alias_info if schema.arguments else None
    back = schema.returns[0].alias_info if len(schema.returns) == 1 else None
    return bool(alias and alias.is_write and back and back.is_write)


def _untagged(values: Any) -> Any:
    return tree_map_only(TaggedTensor, lambda each: each.of, values)
