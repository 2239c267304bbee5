"""Reads an iterable data set, whose rows have no numbers, into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.bad_examples import BadExamples
from feddkd.data.inputs import as_tensor, check_input_dtype
from feddkd.data.own_targets import entries_for, has_labels
from feddkd.data.rows import label_number
from feddkd.data.seeding import generators_kept, seed_generators
from feddkd.data.target_rounding import TargetRounding
from feddkd.errors import DataError
from feddkd.imports import one_line
from feddkd.structures import map_leaves
from feddkd.tasks.base import LearningTask

ROWS_STACKED = 1024
"""Rows that wait to be put into one tensor: small tensors take more memory than their values."""

MIB = 1 << 20


def read_all(rows: Iterable[Any], config: DataConfig, where: str, seed: int, task: LearningTask[Any]) -> tuple[Tensor, list[Any]]:
    """Read all rows once, with the generators seeded by `seed`: a shuffle or an augmentation then repeats.

    Rows are what they are for a map-style data set. One whose input has another shape than the first
    one's cannot be used.

    Args:
        rows: an iterable of (input, label) pairs or dicts.
        config: its `memory_limit_mib` bounds what is read.
        where: names the data set, for messages.
        seed: of the run.
        task: says what a target is.

    Returns:
        Inputs [n, ...] in their dtype, and n labels or converted targets, None where there is none.

    Raises:
        DataError: a row is no pair, reading fails, the inputs take more than the limit, or float32 cannot tell the targets apart.
    """
    stacks, labels, bad, rounding = _Stacks(config.memory_limit_mib), [], _Bad(where, config), TargetRounding()
    with generators_kept():
        seed_generators(seed)
        entries = None
        for number, row in enumerate(_rows_of(rows)):
            entries = entries or entries_for(row, config, task)
            try:
                one = as_tensor(entries.input_of(row))
                check_input_dtype(one)
            except DataError as error:
                bad.note(number, str(error))
                continue
            if not stacks.fits(one):
                bad.note(number, f"its input is {one.dtype} {list(one.shape)}, and that of the first {stacks.described}")
                continue
            raw = entries.label_of(row)
            if has_labels(config, task):
                labels.append(label_number(raw))
            else:
                try:
                    labels.append(None if raw is None else map_leaves(torch.clone, task.target(raw)))
                    if raw is not None:
                        rounding.add(raw, labels[-1])
                except DataError as error:
                    bad.note(number, str(error))
                    continue
            stacks.add(one)
    bad.check(len(labels))
    if not labels:
        raise DataError("there are no examples")
    rounding.check()
    return stacks.tensor(), labels


def _rows_of(rows: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows; what iterating raises is the data set's. Raises DataError."""
    try:
        yield from rows
    except DataError:
        raise
    except Exception as error:  # a user's data set may raise anything
        raise DataError(f"iterating over its data set failed with {one_line(error)}") from error


class _Stacks:
    """Inputs of one shape and dtype, in a few large tensors."""

    def __init__(self, limit_mib: int) -> None:
        self._limit_mib = limit_mib
        self._size_bytes = 0
        self._waiting: list[Tensor] = []
        self._stacked: list[Tensor] = []
        self._first: Tensor | None = None

    @property
    def described(self) -> str:
        assert self._first is not None
        return f"{self._first.dtype} {list(self._first.shape)}"

    def fits(self, one: Tensor) -> bool:
        return self._first is None or (one.dtype, one.shape) == (self._first.dtype, self._first.shape)

    def add(self, one: Tensor) -> None:
        """Keep a copy: a data set may fill one buffer again and again. Raises DataError beyond the limit."""
        self._first = one if self._first is None else self._first
        self._size_bytes += one.nbytes
        if self._size_bytes > self._limit_mib * MIB:
            raise DataError(
                f"an iterable data set is read into memory, and its inputs take more than data.memory_limit_mib = {self._limit_mib}; "
                "raise the limit, or return a map-style data set, which is read on demand"
            )
        self._waiting.append(one.clone())
        if len(self._waiting) == ROWS_STACKED:
            self._stack()

    def _stack(self) -> None:
        self._stacked.append(torch.stack(self._waiting))
        self._waiting = []

    def tensor(self) -> Tensor:
        if self._waiting:
            self._stack()
        return torch.cat(self._stacked)


class _Bad:
    """Rows that cannot be used; how many may be is known at the end, when all rows are counted."""

    def __init__(self, where: str, config: DataConfig) -> None:
        self._where = where
        self._config = config
        self._found: dict[int, str] = {}

    def note(self, number: int, problem: str) -> None:
        self._found[number] = problem

    def check(self, good: int) -> None:
        """Raises BadExamplesError for too many."""
        bad = BadExamples(self._where, good + len(self._found), self._config.max_bad_share)
        for number, problem in self._found.items():
            bad.add(number, f"row {number}", problem)
