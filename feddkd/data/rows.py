"""Says which entry of a data set's row is the input and which the label.

This is the one place that knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.data.inputs import as_tensor
from feddkd.errors import DataError

MOST_KEYS_SHOWN = 10


@dataclass(frozen=True)
class Entries:
    """Where the parts of a row are; sent to loader processes.

    Attributes:
        input: key or position of the input; None where a row is the input.
        label: key or position of the label or target; None where a row has none.
        split: tells both, where a task of one's own knows it.
    """

    input: int | str | None = 0
    label: int | str | None = 1
    split: Callable[[Any], tuple[Any, Any] | None] | None = None

    def input_of(self, row: Any) -> Any:
        """Return the input of a row."""
        if self.split is not None:
            return self._split(row)[0]
        return row if self.input is None else row[self.input]

    def label_of(self, row: Any) -> Any:
        """Return the label or target of a row."""
        return row[self.label] if self.split is None else self._split(row)[1]

    def _split(self, row: Any) -> tuple[Any, Any]:
        assert self.split is not None
        found = self.split(row)
        if found is None:
            raise DataError("the task tells no input and target of it, though it did of others")
        return found


PAIR = Entries()
"""Rows of (input, label)."""


def entries_of(row: Any, input_key: str | None, label_key: str | None) -> Entries:
    """Find the input and the label in a row of (input, label), a tuple or a list, or in a dict.

    Args:
        row: one row of the data set.
        input_key: `data.input_key`, needed for dicts.
        label_key: `data.label_key`, needed for dicts.

    Raises:
        DataError: the row is ambiguous, or no such row; the message says what was found and what to do.
    """
    if isinstance(row, Mapping):
        return _entries_of_dict(row, input_key, label_key)
    if input_key is not None or label_key is not None:
        raise DataError(f"data.input_key and data.label_key are for rows that are dicts; its rows are {described(row)}")
    if not isinstance(row, tuple | list):
        raise DataError(f"(input, label) pairs are expected as rows, and its rows are {described(row)}")
    if len(row) != 2:
        raise DataError(
            f"(input, label) pairs are expected as rows, and its rows are {described(row)}: "
            "which entries count is ambiguous; let __getitem__ return the two"
        )
    return Entries(0, 1)


def input_entry_of(row: Any, input_key: str | None) -> Entries:
    """Find the input in a row without a label: the row itself, or the first entry of a tuple or a list, or of a dict by its key.

    Raises:
        DataError: the row is a dict, and `input_key` (`data.input_key`) does not name an entry of it.
    """
    if not isinstance(row, Mapping):
        return Entries(0 if isinstance(row, tuple | list) else None, None)
    if input_key is None or input_key not in row:
        raise DataError(f"its rows are {described(row)}; say which entry is the input with data.input_key")
    return Entries(input_key, None)


def _entries_of_dict(row: Mapping[Any, Any], input_key: str | None, label_key: str | None) -> Entries:
    if input_key is None or label_key is None:
        raise DataError(f"its rows are {described(row)}; say which entry is which with data.input_key and data.label_key")
    for key, name in (("input_key", input_key), ("label_key", label_key)):
        if name not in row:
            raise DataError(f"data.{key} = {name!r}: its rows are {described(row)}")
    if input_key == label_key:
        raise DataError(f"data.label_key = {label_key!r}: data.input_key names the same entry")
    return Entries(input_key, label_key)


def described(row: Any) -> str:
    """Describe a row for a message: its type, and what is in it."""
    if isinstance(row, Mapping):
        return f"dicts ({type(row).__name__}) with the keys {_first([repr(key) for key in row])}"
    if isinstance(row, tuple | list):
        return f"{type(row).__name__}s of {len(row)} ({_first([_kind(entry) for entry in row])})"
    return f"of type {_kind(row)}"


def _first(shown: list[str]) -> str:
    return ", ".join(shown[:MOST_KEYS_SHOWN]) + (", ..." if len(shown) > MOST_KEYS_SHOWN else "")


def _kind(entry: Any) -> str:
    shape = getattr(entry, "shape", None)
    return type(entry).__name__ if shape is None else f"{type(entry).__name__} {list(shape)}"


def label_number(raw: Any) -> int | None:
    """Read the label of one row: an integer, also in an array of one element; None says that there is none.

    Raises:
        DataError: it is something else; the message says what it is and what to do.
    """
    if raw is None or type(raw) is int:
        return raw
    if isinstance(raw, str | bytes):
        raise DataError(text_labels([raw]))
    value = as_tensor(raw)
    if value.numel() != 1:
        raise DataError(_several_numbers(value))
    check_label_dtype(value)
    return int(value)


def check_label_dtype(labels: Tensor) -> None:
    """Raises DataError for labels that are not integers."""
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels have dtype {labels.dtype}; integers are expected, the numbers of the classes")
    if labels.dtype == torch.bool:
        raise DataError(f"labels have dtype {labels.dtype}; integers are expected: convert them with int() or .long()")


def text_labels(labels: Any) -> str:
    """Say that labels are text."""
    shown = ", ".join(repr(str(label)) for label in list(dict.fromkeys(np.asarray(labels).flatten().tolist()))[:3])
    return f"labels are text ({shown}, ...); integers are expected: number the classes 0, 1, 2, ..."


def _several_numbers(label: Tensor) -> str:
    if is_one_hot(label.reshape(1, -1)):
        return f"labels have shape {tuple(label.shape)} and are one-hot; one integer for each example is expected: use .argmax()"
    return f"labels have shape {tuple(label.shape)}; one integer for each example is expected"


def is_one_hot(labels: Tensor) -> bool:
    """Tell whether labels [n, C] are rows with a single 1 and zeros."""
    return labels.ndim == 2 and labels.shape[1] > 1 and bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())
