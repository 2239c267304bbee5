"""Puts examples without targets after others."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.utils.data import ConcatDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset

from feddkd.data.examples import Loaded, MemoryExamples, Reading, StreamedExamples
from feddkd.data.rows import PAIR, Entries
from feddkd.data.targets import TargetReading
from feddkd.structures import rows_of
from feddkd.tasks.base import UNLABELLED


def joined(first: Loaded, second: Loaded, reading: Reading) -> Loaded:
    """Put examples without targets, `second`, after others, both no subsets; the classes are those of the first.

    Both in memory with inputs of one dtype make one in memory. Others are read when they are asked
    for, as `reading` says.
    """
    labels = torch.cat([first.labels, second.labels])
    if isinstance(first, MemoryExamples) and isinstance(second, MemoryExamples) and first.inputs.dtype == second.inputs.dtype:
        targets = None if first.targets is None else first.targets.followed_by_missing(len(second))
        return MemoryExamples(torch.cat([first.inputs, second.inputs]), labels, first.scale, first.class_names, targets)
    both: ConcatDataset[Any] = ConcatDataset([_RowsOf(first), _RowsOf(second)])
    targets_read = reading_of_targets(first)
    streamed = StreamedExamples(both, labels, dataclasses.replace(reading, entries=PAIR, targets=targets_read), first.class_names)
    streamed.reader.is_random = first.is_random or second.is_random
    return streamed


def reading_of_targets(examples: Loaded) -> TargetReading | None:
    """Say how the targets of examples are read again; None where they are the labels."""
    if isinstance(examples, StreamedExamples):
        return examples.reader.rows.targets
    return None if examples.targets is None else examples.targets.reading()


class _RowsOf(TorchDataset[tuple[Any, Any]]):
    """A map-style data set of the inputs of examples, not yet scaled, and their targets; it is sent to loader processes."""

    def __init__(self, examples: Loaded) -> None:
        self._has_target = (examples.labels != UNLABELLED) if reading_of_targets(examples) is not None else None
        self._targets: Any = None
        if isinstance(examples, MemoryExamples):
            self._dataset: Any = TensorDataset(examples.inputs)
            self._entries = Entries(0, None)
            self._targets = None if examples.targets is None else examples.targets.values
        else:
            self._dataset, self._entries = examples.dataset, examples.reader.rows.entries

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return an input and its target; None where it has none, or where targets are the labels."""
        row = self._dataset[index]
        found = self._entries.input_of(row)
        if self._has_target is None or not self._has_target[index]:
            return found, None
        return found, self._entries.label_of(row) if self._targets is None else rows_of(self._targets, torch.tensor(index))

    @property
    def paths(self) -> list[str]:
        """The files of the examples, where the data set says which they are."""
        return getattr(self._dataset, "paths", [])
