"""Reads examples by index, with or without labels: from memory, or streamed from a data set."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Sampler, TensorDataset

from feddkd.errors import DataError

Batch = tuple[Tensor, Tensor, Tensor]
"""index int64 [B], inputs float32 [B, ...], labels int64 [B], all on the CPU."""

UNLABELLED = -1
"""The label of an example that has none."""


class Examples(Protocol):
    """A finite collection of examples, read by index.

    Attributes:
        labels: int64 [n] on the CPU; `UNLABELLED` where an example has no label.
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [B, ...] and labels int64 [B] of the examples that `index` (int64 [B]) names."""
        ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield consecutive pieces of `order` (int64 [m]) with their inputs and labels; the last may be smaller."""
        ...

    def subset(self, index: Tensor) -> Examples:
        """Return the examples that `index` (int64 [m]) names, renumbered 0..m-1; shares their inputs."""
        ...

    def with_labels(self, labels: Tensor) -> Examples:
        """Return the same examples with other `labels` (int64 [n]); shares their inputs."""
        ...

    def compact(self) -> Examples:
        """Return the same examples, without memory for inputs that none of them uses."""
        ...


class MemoryExamples:
    """Examples whose inputs are in memory.

    uint8 inputs stay uint8, a quarter of the memory, and become float32 in [0, 1] when they are
    gathered: x / 255, torchvision's ToTensor. Floating-point inputs become float32 once.
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        """Hold `inputs` (uint8 or floating point [n, ...]) and `labels` (int64 [n])."""
        assert len(inputs) == len(labels)
        self.labels = labels
        self._inputs = inputs if inputs.dtype == torch.uint8 else inputs.float()
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """All inputs in order, as they lie in memory; a copy where this is a subset."""
        return self._inputs if self._rows is None else self._inputs.index_select(0, self._rows)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._rows_of(index)
        return scaled(self._inputs.index_select(0, rows)), self.labels.index_select(0, index)

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        for index in _pieces(order, batch_size):
            yield index, *self.gather(index)

    def subset(self, index: Tensor) -> MemoryExamples:
        part = copy.copy(self)
        part.labels, part._rows = self.labels.index_select(0, index), self._rows_of(index)
        return part

    def with_labels(self, labels: Tensor) -> MemoryExamples:
        assert len(labels) == len(self)
        same = copy.copy(self)
        same.labels = labels
        return same

    def compact(self) -> MemoryExamples:
        return self if self._rows is None else MemoryExamples(self.inputs, self.labels)

    def _rows_of(self, index: Tensor) -> Tensor:
        return index if self._rows is None else self._rows.index_select(0, index)


class MapDataset(Protocol):
    """What torch calls a map-style data set of (input, label) pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class StreamedExamples:
    """Examples that a map-style data set reads on demand.

    With `workers` > 0 that many processes read ahead during `batches`; they start once and serve all
    subsets. Only one pass can be under way at a time then.
    """

    def __init__(self, dataset: MapDataset, labels: Tensor, workers: int) -> None:
        """Read `dataset`, whose inputs are tensors or arrays of one shape, with known `labels` (int64 [n])."""
        assert len(dataset) == len(labels)
        self.labels = labels
        self._index = torch.arange(len(labels))
        self._reader = _Reader(dataset, workers)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dataset(self) -> MapDataset:
        """What the inputs are read from; all of it where this is a subset."""
        return self._reader.dataset

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self._reader.read(self._index[index].tolist()), self.labels[index]

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        pieces = _pieces(order, batch_size)
        inputs = self._reader.stream([self._index[piece].tolist() for piece in pieces])
        for piece, x in zip(pieces, inputs, strict=True):
            yield piece, x, self.labels[piece]

    def subset(self, index: Tensor) -> StreamedExamples:
        part = copy.copy(self)
        part.labels, part._index = self.labels[index], self._index[index]
        return part

    def with_labels(self, labels: Tensor) -> StreamedExamples:
        assert len(labels) == len(self)
        same = copy.copy(self)
        same.labels = labels
        return same

    def compact(self) -> StreamedExamples:
        return self


class _Reader:
    """Reads batches of inputs from one map-style data set, for an examples object and all its subsets."""

    def __init__(self, dataset: MapDataset, workers: int) -> None:
        self.dataset = dataset
        self._workers = workers
        self._order = _Order()
        self._loader: DataLoader[Tensor] | None = None
        self._passes = 0

    def read(self, index: Sequence[int]) -> Tensor:
        return _stack([self.dataset[position] for position in index])

    def stream(self, pieces: list[list[int]]) -> Iterator[Tensor]:
        if self._workers == 0:
            yield from map(self.read, pieces)
            return
        if self._loader is None:
            self._loader = self._new_loader()
        self._passes += 1
        current = self._passes
        self._order.pieces = pieces
        iterator = iter(self._loader)
        for _ in pieces:
            # The loader has one iterator: a pass begun meanwhile has taken it over, and what comes next is its batch.
            if current != self._passes:
                raise RuntimeError("a second pass over streamed examples began before this one ended")
            yield next(iterator)

    def _new_loader(self) -> DataLoader[Tensor]:
        return DataLoader(
            self.dataset,  # type: ignore[arg-type]  # a Dataset by protocol, not by inheritance
            batch_sampler=self._order,
            collate_fn=_stack,
            num_workers=self._workers,
            persistent_workers=True,
            multiprocessing_context="spawn",  # a fork would copy gRPC's locks and threads in an unusable state
            generator=torch.Generator(),  # the loader draws a seed every pass; not from the global stream
        )


class _Order(Sampler[list[int]]):
    """A batch sampler that the reader sets before every pass, so that the loader's processes can stay."""

    def __init__(self) -> None:
        self.pieces: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def _pieces(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    return torch.split(order, batch_size) if len(order) else ()  # split makes one empty piece of nothing


Loaded = MemoryExamples | StreamedExamples
"""Examples as they come from a source, before there are subsets."""


def joined(first: Loaded, second: Loaded, workers: int) -> Loaded:
    """Put two collections, no subsets, one after the other.

    Both in memory with inputs of one dtype make one in memory. Others are read when they are asked
    for, with `workers` loader processes.
    """
    labels = torch.cat([first.labels, second.labels])
    if isinstance(first, MemoryExamples) and isinstance(second, MemoryExamples) and first.inputs.dtype == second.inputs.dtype:
        return MemoryExamples(torch.cat([first.inputs, second.inputs]), labels)
    both: ConcatDataset[Any] = ConcatDataset([_as_dataset(first), _as_dataset(second)])
    return StreamedExamples(both, labels, workers)


def _as_dataset(examples: Loaded) -> Any:
    """A map-style data set whose items begin with the inputs of `examples`, not yet scaled."""
    return TensorDataset(examples.inputs) if isinstance(examples, MemoryExamples) else examples.dataset


def labelled_index(examples: Examples) -> Tensor:
    """Find the examples that have a label: int64 [m], positions in ascending order."""
    return (examples.labels != UNLABELLED).nonzero().squeeze(1)


def scaled(inputs: Tensor) -> Tensor:
    """Convert `inputs` to float32; uint8 images are divided by 255."""
    return inputs.float().div_(255) if inputs.dtype == torch.uint8 else inputs.float()


def as_tensor(values: Any) -> Tensor:
    """Convert a tensor, an array or a list to a tensor.

    Raises:
        DataError: `values` is not numbers in one shape.
    """
    if isinstance(values, Tensor):
        return values.detach().cpu()
    try:
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise DataError(f"numbers of one shape are expected, not {type(values).__name__}") from None


def _stack(rows: list[Any]) -> Tensor:
    inputs = [as_tensor(row[0]) for row in rows]
    if len({one.dtype for one in inputs}) > 1:
        inputs = [scaled(one) for one in inputs]  # stacked first, bytes would become floats that are not divided by 255
    return scaled(torch.stack(inputs))
