"""Reads the labels of the user's own data: from an array, or as the rows of a data set yield them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.data.inputs import as_tensor
from feddkd.data.reader import MapDataset
from feddkd.data.rows import Entries, check_label_dtype, is_one_hot, label_number, text_labels
from feddkd.errors import DataError
from feddkd.tasks.base import UNLABELLED

COMPARED = 16
"""Rows, spread over the data set, whose labels are compared with `.targets`."""


def checked_labels(raw: Any, train: bool, minus_one: bool, way_out: str = "") -> Tensor:
    """Convert labels to int64 [n], with `UNLABELLED` for None and, where that is declared, for -1.

    Args:
        raw: a tensor, an array or a list of integers and None.
        train: they are of training examples; those of test examples may not be missing.
        minus_one: -1 says that there is no label.
        way_out: ends the message about labels of another shape or dtype.

    Raises:
        DataError: they are something else; the message says what they are and what to do.
    """
    filled, missing = _without_none(raw)
    try:
        labels = _as_integers(filled)
    except DataError as error:
        raise DataError(f"{error}{way_out}") from None
    if train and not minus_one and (labels == UNLABELLED).any():
        raise DataError(
            "label -1 is outside [0, data.num_classes); if -1 means that an example has no label, set data.unlabelled = 'minus_one'"
        )
    if missing is not None:
        labels = labels.masked_fill(missing, UNLABELLED)
    if not train and (labels == UNLABELLED).any():
        position = int((labels == UNLABELLED).nonzero()[0])
        raise DataError(f"test example {position} has label None or -1; every example of a test set needs its label")
    return labels


def targets_of(dataset: MapDataset, entries: Entries) -> Any | None:
    """Return `dataset.targets` if those are the labels that its rows yield, else None.

    A set with a `target_transform`, or whose `.targets` differ from any of `COMPARED` rows, yields other
    labels than its `.targets` say.

    Raises:
        DataError: there are more or fewer targets than examples, or they are no integers.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None or _transforms_labels(dataset):
        return None
    if len(targets) != len(dataset):
        raise DataError(f"its data set has {len(dataset)} examples and {len(targets)} targets")
    checked_labels(targets, train=True, minus_one=True)
    for position in spread(len(dataset), COMPARED):
        try:
            row = dataset[position]
        except Exception:  # noqa: BLE001, S112  # one that cannot be read says nothing about its label
            continue
        if label_number(entries.label_of(row)) != label_number(targets[position]):
            return None
    return targets


def spread(total: int, count: int) -> list[int]:
    """Choose up to `count` positions of `total`, at equal distances, the first and the last included."""
    return sorted({round(place * (total - 1) / max(count - 1, 1)) for place in range(min(count, total))})


def _transforms_labels(dataset: Any) -> bool:
    """Tell whether a data set, as torchvision's are, transforms labels when a row is read."""
    transforms = getattr(dataset, "transforms", None)
    if getattr(dataset, "target_transform", None) is not None:
        return True
    # A joint transform of input and label; torchvision makes one of `transform` that has a target_transform of its own.
    return transforms is not None and getattr(transforms, "target_transform", transforms) is not None


def _without_none(raw: Any) -> tuple[Any, Tensor | None]:
    """Labels with 0 where they are None, and bool [n] that says where; labels without None as they are, and None."""
    if isinstance(raw, list | tuple) or str(getattr(raw, "dtype", "")) == "object":
        missing = [label is None for label in raw]
        if any(missing):
            return [0 if label is None else label for label in raw], torch.tensor(missing)
    return raw, None


def _as_integers(raw: Any) -> Tensor:
    """Labels as int64 [n]."""
    if _is_text(raw):
        raise DataError(text_labels(raw))
    try:
        labels = as_tensor(raw)
    except DataError as error:
        raise DataError(f"labels: {error}") from None
    if is_one_hot(labels):
        raise DataError(f"labels have shape {tuple(labels.shape)} and are one-hot; one integer for each example is expected: .argmax(1)")
    if labels.ndim != 1:
        raise DataError(f"labels have shape {tuple(labels.shape)}; one integer for each example is expected")
    if len(labels) == 0:
        raise DataError("there are no examples")
    check_label_dtype(labels)
    return labels.long()


def _is_text(raw: Any) -> bool:
    kind = raw.dtype.kind if isinstance(raw, np.ndarray) else "O" if isinstance(raw, list | tuple) else ""
    return kind in ("U", "S") or (kind == "O" and any(isinstance(label, str | bytes) for label in raw))
