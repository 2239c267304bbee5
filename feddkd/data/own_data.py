"""Loads the user's own data with the functions that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feddkd.data.examples import UNLABELLED, Loaded, MapDataset, MemoryExamples, StreamedExamples, as_tensor
from feddkd.errors import DataError, FedDKDError
from feddkd.imports import load_object, named, one_line


def load_own(name: str, root: Path | None, train: bool, workers: int, minus_one: bool = False) -> Loaded:
    """Call `package.module:function` as function(root=..., train=...).

    It returns either (inputs, labels), two tensors or arrays, inputs uint8 or floating point [n, ...];
    or a map-style data set of (input, label) pairs, whose labels are read from `.targets` if it has
    that, else by a pass over all examples. uint8 inputs are divided by 255. A label None says that a
    training example has none, and with `minus_one` so does -1.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: it fails, or returns something else; or a test example has no label.
    """
    where = named("data.name", name)
    result = _call(name, "data.name", root, train)
    if isinstance(result, tuple):
        if len(result) != 2:
            raise DataError(f"{where}: it returned a tuple of {len(result)}, not (inputs, labels)")
        inputs, raw_labels = _inputs(result[0], where), result[1]
        labels = _read_labels(raw_labels, train, minus_one, where)
        if inputs.ndim == 0 or len(inputs) != len(labels):
            raise DataError(f"{where}: inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} differ in length")
        return MemoryExamples(inputs, labels)
    if not _is_map_style(result):
        raise DataError(f"{where}: it returned {type(result).__name__}, neither (inputs, labels) nor a map-style data set")
    try:
        labels = _read_labels(_targets(result), train, minus_one, where)
    except FedDKDError:
        raise
    except Exception as error:  # a user's data set may raise anything
        raise DataError(f"{where}: reading the labels of its data set failed with {one_line(error)}") from error
    if len(labels) != len(result):
        raise DataError(f"{where}: its data set has {len(result)} examples and {len(labels)} targets")
    return StreamedExamples(result, labels, workers)


def load_unlabelled(name: str, root: Path | None, workers: int) -> Loaded:
    """Call `package.module:function` as function(root=..., train=True) for training inputs that have no label.

    It returns either inputs, a tensor or an array, uint8 or floating point [n, ...]; or a map-style
    data set of inputs or of tuples that begin with an input. uint8 inputs are divided by 255.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: it fails, or returns something else.
    """
    where = f"data.unlabelled = {name!r}"
    result = _call(name, "data.unlabelled", root, train=True)
    if isinstance(result, tuple) or not _is_map_style(result):
        shown = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
        raise DataError(f"{where}: it returned {shown}, neither inputs alone, as a tensor or an array, nor a map-style data set")
    if isinstance(result, Tensor | np.ndarray):
        inputs = _inputs(result, where)
        return MemoryExamples(inputs, _no_labels(len(inputs) if inputs.ndim else 0, where))
    return StreamedExamples(InputsAlone(result), _no_labels(len(result), where), workers)


class InputsAlone:
    """A map-style data set of (input, `UNLABELLED`), from one of inputs or of tuples that begin with an input.

    It is sent to loader processes with the data set.
    """

    def __init__(self, dataset: MapDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            item = self._dataset[index]
        except FedDKDError:
            raise
        except Exception as error:  # a user's data set may raise anything
            raise DataError(f"data.unlabelled: reading example {index} failed with {one_line(error)}") from error
        return (item[0] if isinstance(item, tuple | list) else item), UNLABELLED


def _call(name: str, key: str, root: Path | None, train: bool) -> Any:
    function = load_object(name, key)
    try:
        return function(root=root, train=train)
    except FedDKDError:
        raise
    except Exception as error:  # a user's function may raise anything
        called = f"root={str(root)!r}, train={train}"
        raise DataError(f"{named(key, name)}: calling it with {called} failed with {one_line(error)}") from error


def _no_labels(count: int, where: str) -> Tensor:
    if count == 0:
        raise DataError(f"{where}: there are no examples")
    return torch.full((count,), UNLABELLED)


def _is_map_style(result: Any) -> bool:
    return hasattr(result, "__getitem__") and hasattr(result, "__len__") and not isinstance(result, str | bytes | Mapping)


def _inputs(raw: Any, where: str) -> Tensor:
    inputs = _tensor(raw, where)
    if not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
        raise DataError(f"{where}: inputs have dtype {inputs.dtype}; use float32, or uint8 for images")
    return inputs


def _tensor(raw: Any, where: str) -> Tensor:
    try:
        return as_tensor(raw)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _targets(dataset: Any) -> Any:
    """The labels of a map-style data set, as it gives them or as a list of integers and None."""
    if hasattr(dataset, "targets"):
        return dataset.targets
    raw = [dataset[index][1] for index in range(len(dataset))]
    return [None if label is None else int(label) for label in raw]


def _read_labels(raw: Any, train: bool, minus_one: bool, where: str) -> Tensor:
    """Labels as int64 [n], with `UNLABELLED` for None and, where that is declared, for -1."""
    filled, missing = _without_none(raw)
    labels = _checked_labels(_tensor(filled, where), where)
    if train and not minus_one and (labels == UNLABELLED).any():
        raise DataError(
            f"{where}: label -1 is outside [0, data.num_classes); "
            "if -1 means that an example has no label, set data.unlabelled = 'minus_one'"
        )
    if missing is not None:
        labels = labels.masked_fill(missing, UNLABELLED)
    if not train and (labels == UNLABELLED).any():
        position = int((labels == UNLABELLED).nonzero()[0])
        raise DataError(f"{where}: test example {position} has label None or -1; every example of a test set needs its label")
    return labels


def _without_none(raw: Any) -> tuple[Any, Tensor | None]:
    """Labels with 0 where they are None, and bool [n] that says where; labels without None as they are, and None."""
    if isinstance(raw, list | tuple) or str(getattr(raw, "dtype", "")) == "object":
        missing = [label is None for label in raw]
        if any(missing):
            return [0 if label is None else label for label in raw], torch.tensor(missing)
    return raw, None


def _checked_labels(labels: Tensor, where: str) -> Tensor:
    """`labels` as int64 [n]."""
    if labels.ndim != 1:
        raise DataError(f"{where}: labels have shape {tuple(labels.shape)}; one integer for each example is expected")
    if len(labels) == 0:
        raise DataError(f"{where}: there are no examples")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{where}: labels have dtype {labels.dtype}; integers are expected")
    return labels.long()
