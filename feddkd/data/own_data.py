"""A user's own data, returned by a function that the configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feddkd.data.examples import Examples, MapDataset, MemoryExamples, StreamedExamples, as_tensor
from feddkd.errors import DataError, FedDKDError
from feddkd.imports import load_object, one_line


def load_own(name: str, root: Path | None, train: bool, workers: int) -> Examples:
    """Call `package.module:function` as function(root=..., train=...).

    It returns either (inputs, labels), two tensors or arrays, inputs uint8 or floating point [n, ...];
    or a map-style data set of (input, label) pairs, whose labels are read from `.targets` if it has
    that, else by a pass over all examples. uint8 inputs are divided by 255.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: it fails, or returns something else.
    """
    function = load_object(name, "data.name")
    where = f"data.name = {name!r}"
    try:
        result = function(root=root, train=train)
    except FedDKDError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise DataError(f"{where}: calling it with root={str(root)!r}, train={train} failed with {one_line(error)}") from error
    if isinstance(result, tuple):
        if len(result) != 2:
            raise DataError(f"{where}: it returned a tuple of {len(result)}, not (inputs, labels)")
        return _in_memory(*result, where)
    if hasattr(result, "__getitem__") and hasattr(result, "__len__"):
        return _streamed(result, workers, where)
    raise DataError(f"{where}: it returned {type(result).__name__}, neither (inputs, labels) nor a map-style data set")


def _in_memory(raw_inputs: Any, raw_labels: Any, where: str) -> MemoryExamples:
    try:
        inputs, labels = as_tensor(raw_inputs), as_tensor(raw_labels)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
        raise DataError(f"{where}: inputs have dtype {inputs.dtype}; use float32, or uint8 for images")
    labels = _checked_labels(labels, where)
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise DataError(f"{where}: inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} differ in length")
    return MemoryExamples(inputs, labels)


def _streamed(dataset: MapDataset, workers: int, where: str) -> StreamedExamples:
    try:
        raw = dataset.targets if hasattr(dataset, "targets") else [int(dataset[index][1]) for index in range(len(dataset))]
        labels = _checked_labels(as_tensor(raw), where)
    except FedDKDError:
        raise
    except Exception as error:  # a user's data set may raise anything
        raise DataError(f"{where}: reading the labels of its data set failed with {one_line(error)}") from error
    if len(labels) != len(dataset):
        raise DataError(f"{where}: its data set has {len(dataset)} examples and {len(labels)} targets")
    return StreamedExamples(dataset, labels, workers)


def _checked_labels(labels: Tensor, where: str) -> Tensor:
    """`labels` as int64 [n]."""
    if labels.ndim != 1:
        raise DataError(f"{where}: labels have shape {tuple(labels.shape)}; one integer for each example is expected")
    if len(labels) == 0:
        raise DataError(f"{where}: there are no examples")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{where}: labels have dtype {labels.dtype}; integers are expected")
    return labels.long()
