"""Reads examples by index, with or without labels: from memory, or streamed from a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from feddkd.config.data_keys import Scale
from feddkd.data.bad_examples import BadExamples, name_of
from feddkd.data.inputs import network_inputs
from feddkd.data.reader import MapDataset, Reader, Rows
from feddkd.data.rows import PAIR, Entries
from feddkd.data.targets import TargetReading, Targets, with_missing
from feddkd.errors import BadExamplesError, DataError
from feddkd.structures import Structure, map_leaves, rows_of
from feddkd.tasks.base import UNLABELLED

Batch = tuple[Tensor, Structure, Structure]
"""index int64 [B], inputs float32 or int64 [B, ...], targets [B, ...], all on the CPU."""


class Examples(Protocol):
    """A finite collection of examples, read by index.

    Inputs and targets are tensors, for some tasks of one's own tuples or dicts of them. Where each example
    has one class, its target is its label.

    Attributes:
        labels: int64 [n] on the CPU, the class of each example; 0 where a task knows no class of an example.
            `UNLABELLED` where an example has no target.
        class_names: of all classes, in the order of their numbers; empty where they are not known.
    """

    labels: Tensor
    class_names: tuple[str, ...]

    @property
    def is_random(self) -> bool:
        """Whether two reads of an example can differ: then nothing computed from one holds for another."""
        ...

    def __len__(self) -> int: ...

    def gather(self, index: Tensor) -> tuple[Structure, Structure]:
        """Return inputs float32 or int64 [B, ...] and targets [B, ...] of the examples that `index` (int64 [B]) names.

        Raises:
            DataError: one of them cannot be used.
        """
        ...

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        """Yield consecutive pieces of `order` (int64 [m]) with their inputs and targets; the last may be smaller.

        Examples that cannot be used are left out, so any piece may be smaller, and an empty one is not
        yielded.

        Raises:
            BadExamplesError: there are too many of them.
        """
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

    Integers keep their dtype there, bytes a quarter of the memory of float32, and become what
    `network_inputs` makes of them when they are gathered. Floating-point inputs become float32 once.
    """

    is_random = False

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        scale: Scale = "auto",
        class_names: tuple[str, ...] = (),
        targets: Targets | None = None,
    ) -> None:
        """Hold inputs and labels.

        Args:
            inputs: floating point or integer [n, ...].
            labels: int64 [n].
            scale: `data.scale`.
            targets: of all n examples, where they are not the labels.
        """
        assert len(inputs) == len(labels)
        self.targets = targets
        self.labels = labels
        self.class_names = class_names
        self.scale: Scale = scale
        self._inputs = inputs.float() if inputs.is_floating_point() else inputs
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Tensor:
        """All inputs in order, as they lie in memory; a copy where this is a subset."""
        return self._inputs if self._rows is None else self._inputs.index_select(0, self._rows)

    def gather(self, index: Tensor) -> tuple[Tensor, Structure]:
        rows, labels = self._rows_of(index), self.labels.index_select(0, index)
        targets = labels if self.targets is None else with_missing(self.targets.task, rows_of(self.targets.values, rows), labels)
        return network_inputs(self._inputs.index_select(0, rows), self.scale), targets

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

    def placed(self, place: Callable[[Tensor], Tensor]) -> MemoryExamples:
        """Return the same examples with `place` of each tensor that they hold, for instance its copy on a device.

        They `gather` where the tensors are then; the index has to be there, too.
        """
        there = copy.copy(self)
        there._inputs, there.labels = place(self._inputs), place(self.labels)
        there._rows = None if self._rows is None else place(self._rows)
        there.targets = None if self.targets is None else Targets(map_leaves(place, self.targets.values), self.targets.task)
        return there

    def compact(self) -> MemoryExamples:
        if self._rows is None:
            return self
        targets = None if self.targets is None else Targets(rows_of(self.targets.values, self._rows), self.targets.task)
        return MemoryExamples(self.inputs, self.labels, self.scale, self.class_names, targets)

    def _rows_of(self, index: Tensor) -> Tensor:
        return index if self._rows is None else self._rows.index_select(0, index)


@dataclass(frozen=True)
class Reading:
    """How a data set is read.

    Attributes:
        where: names the data set, for messages.
        workers: processes that read ahead.
        scale: `data.scale`.
        max_bad_share: `data.max_bad_share`.
        entries: where the input and the target of a row are.
        targets: how targets are read; None where they are the labels, which are known.
    """

    where: str = "data"
    workers: int = 0
    scale: Scale = "auto"
    max_bad_share: float = 0.01
    entries: Entries = PAIR
    targets: TargetReading | None = None


class StreamedExamples:
    """Examples that a map-style data set reads on demand.

    With `workers` > 0 that many processes read ahead during `batches`; they start once and serve all
    subsets. Only one pass can be under way at a time then. Where reads are random, each is seeded
    (`seeding`).
    """

    def __init__(
        self,
        dataset: MapDataset,
        labels: Tensor,
        reading: Reading = Reading(),
        class_names: tuple[str, ...] = (),
        bad_before: int = 0,
    ) -> None:
        """Read `dataset`, whose inputs are tensors or arrays of one shape, with known `labels` (int64 [n]).

        Args:
            bad_before: examples that could not be used and are not in `dataset` any more.

        Raises:
            DataError: `dataset` cannot be sent to loader processes.
        """
        assert len(dataset) == len(labels)
        self.labels = labels
        self.class_names = class_names
        self._index = torch.arange(len(labels))
        bad = BadExamples(reading.where, len(labels) + bad_before, reading.max_bad_share, bad_before)
        self.reader = Reader(Rows(dataset, reading.entries, reading.scale, reading.targets), bad, reading.workers)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dataset(self) -> MapDataset:
        """What the inputs are read from; all of it where this is a subset."""
        return self.reader.rows.dataset

    @property
    def is_random(self) -> bool:
        return self.reader.is_random

    def gather(self, index: Tensor) -> tuple[Structure, Structure]:
        positions = self._index[index].tolist()
        batch = self.reader.read(positions)
        if batch.inputs is None or len(batch.kept) < len(positions):
            position = next(position for position in positions if position in self.reader.bad.found)
            name, problem = name_of(self.dataset, position), self.reader.bad.found[position]
            raise DataError(f"cannot use {name} ({problem})")
        return batch.inputs, self._targets(batch.targets, self.labels[index])

    def batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        pieces = _pieces(order, batch_size)
        read = self.reader.stream([self._index[piece].tolist() for piece in pieces])
        for piece, batch in zip(pieces, read, strict=True):
            if batch.inputs is not None:
                kept = piece[batch.kept]
                yield kept, batch.inputs, self._targets(batch.targets, self.labels[kept])

    def _targets(self, read: Structure | None, labels: Tensor) -> Structure:
        reading = self.reader.rows.targets
        return labels if reading is None else with_missing(reading.task, read, labels)

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


def _pieces(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    return torch.split(order, batch_size) if len(order) else ()  # split makes one empty piece of nothing


Loaded = MemoryExamples | StreamedExamples
"""Examples as they come from a source, before there are subsets."""


def labelled_index(examples: Examples) -> Tensor:
    """Find the examples that have a label: int64 [m], positions in ascending order."""
    return (examples.labels != UNLABELLED).nonzero().squeeze(1)


def first_example(examples: Examples) -> tuple[Structure, Structure]:
    """Read the first example that can be used; its input and its target, with a first dimension of 1.

    Raises:
        DataError: none can.
    """
    for position in range(len(examples)):
        try:
            return examples.gather(torch.tensor([position]))
        except BadExamplesError:
            raise
        except DataError as error:
            problem = error
    raise problem
