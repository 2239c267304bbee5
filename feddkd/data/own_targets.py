"""Reads the targets of the user's own data, where they are not one class of each example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.bad_examples import BadExamples, name_of
from feddkd.data.reader import MapDataset
from feddkd.data.rows import Entries, entries_of
from feddkd.data.targets import TargetReading, Targets
from feddkd.errors import DataError
from feddkd.imports import one_line
from feddkd.structures import Structure, stacked
from feddkd.tasks.base import UNLABELLED, LearningTask

TARGETS_WAY_OUT = "; for other targets see the table [task] and data.target_shape"


def has_labels(config: DataConfig, task: LearningTask[Any]) -> bool:
    """Tell whether the target of each example is its class."""
    return task.has_one_class(config.target_shape or ())


def entries_for(row: Any, config: DataConfig, task: LearningTask[Any]) -> Entries:
    """Find the input and the target in a row; a task of one's own may know it. Raises DataError."""
    if task.split(row) is not None:
        return Entries(split=task.split)
    return entries_of(row, config.input_key, config.label_key)


def checked_targets(raw: Any, config: DataConfig, task: LearningTask[Any], train: bool) -> tuple[Targets, Tensor]:
    """Convert targets that are in memory, of n examples; None stands for a missing one.

    Returns:
        The targets, and labels int64 [n], which only say where there is one.

    Raises:
        DataError: they are something else, all are missing, or one of a test example is.
    """
    if isinstance(raw, Tensor) or (hasattr(raw, "dtype") and raw.dtype != object):
        values = task.target(raw)
        labels = torch.zeros(len(values), dtype=torch.int64)
        labels[~task.is_labelled(values)] = UNLABELLED
    else:
        rows = list(raw)
        like = next((task.target(row) for row in rows if row is not None), None)
        if like is None:
            raise DataError("no example has a target" if rows else "there are no examples")
        reading = TargetReading(task, like, config.num_classes)
        values = stacked([reading.read(row) for row in rows])
        labels = torch.tensor([UNLABELLED if row is None else 0 for row in rows])
    _check_test(labels, train)
    return Targets(values, task), labels


def read_targets(
    dataset: MapDataset,
    entries: Entries,
    bad: BadExamples,
    config: DataConfig,
    task: LearningTask[Any],
    train: bool,
) -> tuple[Tensor, TargetReading]:
    """Read all rows of a data set for their targets; those that cannot be used are added to `bad`.

    Returns:
        Labels int64 [n] of the others, which only say where there is a target; and how targets are read again.

    Raises:
        DataError: no example has a target, or one of a test example is missing.
    """
    labels, reading = [], None
    for position in range(len(dataset)):
        try:
            raw = entries.label_of(dataset[position])
            if raw is not None:
                reading = reading or TargetReading(task, task.target(raw), config.num_classes)
                reading.read(raw)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's data set may raise anything
            bad.add(position, name_of(dataset, position), str(error) if isinstance(error, DataError) else one_line(error))
            continue
        labels.append(UNLABELLED if raw is None else 0)
    if reading is None:
        raise DataError("no example has a target" if labels else "there are no examples")
    found = torch.tensor(labels)
    _check_test(found, train)
    return found, reading


def shape_of(targets: Structure) -> tuple[int, ...]:
    """Return the shape of one target; empty where it is no single tensor."""
    return tuple(targets.shape[1:]) if isinstance(targets, Tensor) else ()


def _check_test(labels: Tensor, train: bool) -> None:
    if not train and (labels == UNLABELLED).any():
        position = int((labels == UNLABELLED).nonzero()[0])
        raise DataError(f"test example {position} has no target; every example of a test set needs one")
