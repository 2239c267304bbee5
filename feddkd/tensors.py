"""Keep named tensors in one contiguous block of bytes.

A model, an update and a gradient are all `Tensors`: a `Schema` (names, dtypes, shapes) and one
block of bytes that holds every element in little-endian order. The block is what travels on the
wire, what is reduced and what is hashed. No layer converts between representations.

The schema orders tensors by dtype, the widest first, so that every tensor is aligned and the
elements of one dtype form one `Segment`: arithmetic works on a few long vectors, whatever the
number of tensors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from feddkd.devices import copy_all
from feddkd.errors import SchemaError

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("feddkd stores and sends tensors in little-endian order; this machine is big-endian")

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
"""Torch asks for huge pages from its first large allocation on. In pages of 4 KiB the system takes longer
to provide the memory of a model."""

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "int64": torch.int64,
    "float32": torch.float32,
    "int32": torch.int32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""The dtypes that travel, the widest first; a schema lists its tensors in this order."""

DTYPE_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}

_SERIAL_ELEMENTS = (1 << 15) - 1
"""Torch sums up to this many elements in one thread, so always in the same order."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of one tensor.

    Attributes:
        trainable: whether it is a parameter that takes gradients (buffers and frozen parameters do not).
        extra: whether it travels beside a model, see `Schema.beside`.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    trainable: bool = True
    extra: bool = False

    @property
    def lossy(self) -> bool:
        """Whether a codec may change its elements a little. Buffers are exact: a variance below zero ruins a model."""
        return self.trainable and self.dtype.is_floating_point

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.name}: {DTYPE_NAMES.get(self.dtype, self.dtype)}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes [start, stop) whose elements share one dtype."""

    dtype: torch.dtype
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return (self.stop - self.start) // self.dtype.itemsize

    def cut(self, size_bytes: int) -> Iterator[Segment]:
        """Cut it into pieces of at most `size_bytes`, all but the last of one size: a multiple of every item size."""
        step = max(8, size_bytes - size_bytes % 8)
        for start in range(self.start, self.stop, step):
            yield Segment(self.dtype, start, min(start + step, self.stop))


class Schema:
    """The ordered tensor specifications of one kind of payload, and their byte layout."""

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        """Order `specs` by dtype and lay them out.

        Raises:
            SchemaError: two tensors share a name, or a dtype cannot travel.
        """
        listed = list(specs)
        for spec in listed:
            if spec.dtype not in _DTYPE_RANK:
                raise SchemaError(f"tensor {spec.name!r} has dtype {spec.dtype}, which cannot be sent; use one of {', '.join(DTYPES)}")
        self.specs = tuple(sorted(listed, key=lambda spec: _DTYPE_RANK[spec.dtype]))
        self.by_name = {spec.name: spec for spec in self.specs}
        if len(self.by_name) != len(self.specs):
            raise SchemaError("two tensors of one schema share a name")
        self.offsets = tuple(itertools.accumulate((spec.size_bytes for spec in self.specs), initial=0))

    @classmethod
    def of_module(cls, module: nn.Module) -> Schema:
        """Describe a module's parameters and persistent buffers.

        Tied tensors appear once: under the first name that is trainable, or else the first.
        """
        trainable = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
        specs: dict[object, TensorSpec] = {}
        for name, tensor in module.state_dict().items():
            storage = same_storage(tensor) if tensor.numel() else name
            known = specs.get(storage)
            if known is None or (name in trainable and not known.trainable):
                specs[storage] = TensorSpec(name, tensor.dtype, tuple(tensor.shape), name in trainable)
        return cls(specs.values())

    @property
    def size_bytes(self) -> int:
        return self.offsets[-1]

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """One segment for each dtype that has elements, in layout order."""
        return tuple(segment for segment, _ in self._runs(lambda spec: spec.dtype))

    @cached_property
    def coded_segments(self) -> tuple[tuple[Segment, bool], ...]:
        """Segments whose tensors share a dtype and are all `lossy` or all exact, each with whether it is lossy."""
        return tuple(self._runs(lambda spec: (spec.dtype, spec.lossy)))

    def _runs(self, key: Callable[[TensorSpec], object]) -> Iterator[tuple[Segment, bool]]:
        """Join neighbours of one key; runs without elements are left out."""
        for _, group in itertools.groupby(zip(self.specs, self.offsets, strict=False), key=lambda pair: key(pair[0])):
            members = list(group)
            (first, start), (last, offset) = members[0], members[-1]
            if offset + last.size_bytes > start:
                yield Segment(first.dtype, start, offset + last.size_bytes), first.lossy

    def chunks(self, chunk_bytes: int) -> tuple[Segment, ...]:
        """Cut the layout into pieces of at most `chunk_bytes`, none of which mixes dtypes."""
        return tuple(piece for segment in self.segments for piece in segment.cut(chunk_bytes))

    @cached_property
    def trainable(self) -> Schema:
        """The schema of a gradient: the trainable floating-point tensors."""
        return Schema(spec for spec in self.specs if spec.lossy and not spec.extra)

    def beside(self, extras: Mapping[str, Schema]) -> Schema:
        """Return these tensors by their names, and those of each of `extras` as "extra/name"."""
        prefixed = (
            dataclasses.replace(spec, name=f"{extra}/{spec.name}", extra=True) for extra, schema in extras.items() for spec in schema.specs
        )
        return Schema([*self.specs, *prefixed])

    def check_same(self, other: Schema) -> None:
        """Compare names, dtypes and shapes with `other`.

        Raises:
            SchemaError: they differ; the message names the first tensor that does.
        """
        for name, expected in self.by_name.items():
            actual = other.by_name.get(name)
            if actual is None:
                raise SchemaError(f"tensor {name!r} is missing")
            if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
                raise SchemaError(f"tensor {actual} where {expected} is expected")
        unexpected = next((name for name in other.by_name if name not in self.by_name), None)
        if unexpected is not None:
            raise SchemaError(f"tensor {unexpected!r} is not expected")
        if [spec.name for spec in self.specs] != [spec.name for spec in other.specs]:
            raise SchemaError("tensors are in another order than the server's schema")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.specs == other.specs

    def __hash__(self) -> int:
        return hash(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __repr__(self) -> str:
        return f"Schema({', '.join(map(str, self.specs))})"


def same_storage(tensor: Tensor) -> object:
    """Return a key that two names of one tensor share."""
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class _BinaryOperation(Protocol):
    def __call__(self, first: Tensor, second: Tensor, /, *, out: Tensor) -> Tensor: ...


class Tensors(Mapping[str, Tensor]):
    """Named tensors that share one contiguous block of bytes.

    `model + update` and `after - before` work tensor by tensor: floating-point and integer tensors
    add and subtract in their own dtype; for bool tensors both mean exclusive or, so that
    `before + (after - before) == after` holds for every dtype up to rounding.

    Attributes:
        schema: names, dtypes and shapes.
        block: uint8 tensor [schema.size_bytes] on the CPU that all others are views of.
    """

    def __init__(self, schema: Schema, block: Tensor | None = None) -> None:
        self.schema = schema
        self.block = torch.zeros(schema.size_bytes, dtype=torch.uint8) if block is None else block
        if self.block.dtype != torch.uint8 or self.block.shape != (schema.size_bytes,):
            raise SchemaError(f"a block of {schema.size_bytes} bytes is expected, not {tuple(self.block.shape)} {self.block.dtype}")

    @classmethod
    def empty(cls, schema: Schema) -> Self:
        """Allocate uninitialised tensors for a caller that fills every byte."""
        return cls(schema, torch.empty(schema.size_bytes, dtype=torch.uint8))

    @classmethod
    def copy_of(cls, schema: Schema, source: Mapping[str, Tensor]) -> Self:
        """Gather `source`, which may be non-contiguous or on another device, into a new block.

        Raises:
            SchemaError: a tensor is missing or has another dtype or shape.
        """
        out = cls.empty(schema)
        pairs = []
        for spec in schema.specs:
            tensor = source.get(spec.name)
            if tensor is None:
                raise SchemaError(f"tensor {spec.name!r} is missing")
            if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                raise SchemaError(f"tensor {TensorSpec(spec.name, tensor.dtype, tuple(tensor.shape))} where {spec} is expected")
            pairs.append((out[spec.name], tensor.detach()))
        copy_all(pairs)
        return out

    @classmethod
    def of_module(cls, module: nn.Module) -> Self:
        """Copy a module's parameters and persistent buffers."""
        return cls.copy_of(Schema.of_module(module), module.state_dict())

    @torch.no_grad()
    def load_into(self, module: nn.Module) -> None:
        """Copy the tensors into a module's tensors of the same names; skip all others."""
        state = module.state_dict()
        copy_all((state[name], tensor) for name, tensor in self.items() if name in state)

    @cached_property
    def _views(self) -> dict[str, Tensor]:
        return {
            spec.name: self.block[offset : offset + spec.size_bytes].view(spec.dtype).view(spec.shape)
            for spec, offset in zip(self.schema.specs, self.schema.offsets, strict=False)
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def elements(self, segment: Segment) -> Tensor:
        """Return the elements of one segment or chunk as a flat view of this block."""
        return self.block[segment.start : segment.stop].view(segment.dtype)

    def select(self, schema: Schema) -> Tensors:
        """Copy the tensors that `schema` names."""
        return Tensors.copy_of(schema, self)

    def beside(self, **extras: Tensors) -> Tensors:
        """Copy these tensors and put more vectors beside them, as `Schema.beside` lays them out."""
        joined = {f"{extra}/{name}": tensor for extra, tensors in extras.items() for name, tensor in tensors.items()}
        return Tensors.copy_of(self.schema.beside({extra: tensors.schema for extra, tensors in extras.items()}), {**self, **joined})

    def part(self, name: str, schema: Schema) -> Tensors:
        """Copy the vector that `beside` put beside these tensors as `name`, with its own schema."""
        return Tensors.copy_of(schema, {spec: self[f"{name}/{spec}"] for spec in schema.by_name})

    def replace(self, other: Mapping[str, Tensor]) -> Tensors:
        """Copy these tensors, with those that `other` names taken from there.

        Raises:
            SchemaError: one does not fit.
        """
        unexpected = next((name for name in other if name not in self.schema.by_name), None)
        if unexpected is not None:
            raise SchemaError(f"tensor {unexpected!r} is not expected")
        return Tensors.copy_of(self.schema, {**self, **other})

    def __add__(self, other: Tensors) -> Tensors:
        return self._combine(other, torch.add)

    def __sub__(self, other: Tensors) -> Tensors:
        return self._combine(other, torch.sub)

    def scaled(self, factor: float) -> Tensors:
        """Multiply all elements by `factor`; every tensor must have a floating-point dtype."""
        out = Tensors.empty(self.schema)
        for segment in self.schema.segments:
            torch.mul(self.elements(segment), factor, out=out.elements(segment))
        return out

    def _combine(self, other: Tensors, operation: _BinaryOperation) -> Tensors:
        self.schema.check_same(other.schema)
        out = Tensors.empty(self.schema)
        for segment in self.schema.segments:
            apply = torch.logical_xor if segment.dtype == torch.bool else operation
            apply(self.elements(segment), other.elements(segment), out=out.elements(segment))
        return out

    def norm(self) -> float:
        """Compute the Euclidean norm over all floating-point elements, in float64.

        The result is the same for every number of torch's threads. It is infinite where the sum of
        squares is above 1e308, so that the square of a finite norm is finite.
        """
        pieces = (
            piece
            for segment in self.schema.segments
            if segment.dtype.is_floating_point
            for piece in torch.split(self.elements(segment), _SERIAL_ELEMENTS)
        )
        try:
            squares = math.fsum(piece.double().square().sum().item() for piece in pieces)
        except OverflowError:  # fsum's answer to finite numbers whose sum is not
            return math.inf
        return math.inf if squares > 1e308 else math.sqrt(squares)

    def is_finite(self) -> bool:
        """Return whether all floating-point elements are finite."""
        return all(
            # The sum is several times faster than a look at each element, and finite only if all of them are.
            bool(torch.isfinite(elements.sum())) or bool(torch.isfinite(elements).all())
            for elements in (self.elements(segment) for segment in self.schema.segments if segment.dtype.is_floating_point)
        )

    def sha256(self) -> str:
        """Hash all bytes in schema order; returns hexadecimal digits."""
        return hashlib.sha256(self.block.numpy().data).hexdigest()

    def __repr__(self) -> str:
        return f"Tensors({len(self)} tensors, {self.schema.size_bytes} bytes)"
