"""Reads the targets of the user's own data, where they are not one class of each example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.bad_examples import BadExamples, name_of
from feddkd.data.reader import MapDataset
from feddkd.data.rows import Entries, entries_of
from feddkd.data.target_rounding import TargetRounding
from feddkd.data.targets import TargetReading, Targets
from feddkd.errors import DataError
from feddkd.imports import one_line
from feddkd.structures import Structure, map_leaves, stacked
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
        DataError: they are something else, all are missing, one of a test example is, or float32 cannot tell them apart.
    """
    if isinstance(raw, Tensor) or (hasattr(raw, "dtype") and raw.dtype != object):
        try:
            values = task.target(raw)
        except DataError:
            _convert_each(raw, task)  # names the example
            raise
        rounding = TargetRounding()
        rounding.add_all(raw, values)
        rounding.check()
        return _labelled(values, task, train)
    return targets_of_rows(_convert_each(raw, task), config, task, train)


def targets_of_rows(rows: Sequence[Structure | None], config: DataConfig, task: LearningTask[Any], train: bool) -> tuple[Targets, Tensor]:
    """Put converted targets together, as `checked_targets` returns them; None stands for a missing one. Raises DataError."""
    like = next((row for row in rows if row is not None), None)
    if like is None:
        raise DataError("no example has a target" if rows else "there are no examples")
    if not train and (missing := next((position for position, row in enumerate(rows) if row is None), None)) is not None:
        raise DataError(no_test_target(missing))
    reading, values = TargetReading(task, like, config.num_classes), []
    for position, row in enumerate(rows):
        try:
            values.append(task.missing(like) if row is None else reading.checked(row))
        except DataError as error:
            raise DataError(f"example {position}: {error}") from None
    return _labelled(stacked(values), task, train)


def _convert_each(raw: Iterable[Any], task: LearningTask[Any]) -> list[Structure | None]:
    """Convert the targets of examples one by one. Raises DataError, which names the example."""
    found, rounding = [], TargetRounding()
    for position, row in enumerate(raw):
        try:
            found.append(None if row is None else task.target(row))
        except DataError as error:
            raise DataError(f"example {position}: {error}") from None
        if row is not None:
            rounding.add(row, found[-1])
    rounding.check()
    return found


def _labelled(values: Structure, task: LearningTask[Any], train: bool) -> tuple[Targets, Tensor]:
    """Say which of n targets are there: labels int64 [n]. Raises DataError if none is, or one of a test example is not."""
    is_labelled = task.is_labelled(values).cpu()
    if not is_labelled.any():
        raise DataError("no example has a target" if len(is_labelled) else "there are no examples")
    if not train and not is_labelled.all():
        raise DataError(no_test_target(int((~is_labelled).nonzero()[0])))
    return Targets(values, task), torch.where(is_labelled, 0, UNLABELLED)


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
        DataError: no example has a target, one of a test example is missing, or float32 cannot tell them apart.
    """
    labels, reading, rounding = [], None, TargetRounding()
    for position in range(len(dataset)):
        try:
            raw = entries.label_of(dataset[position])
            label = UNLABELLED
            if raw is not None:
                reading = reading or TargetReading(task, task.target(raw), config.num_classes)
                target = reading.read(raw)
                label = _label_of(target, task)
                rounding.add(raw, target)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's data set may raise anything
            bad.add(position, name_of(dataset, position), str(error) if isinstance(error, DataError) else one_line(error))
            continue
        if label == UNLABELLED and not train:
            raise DataError(no_test_target(position))
        labels.append(label)
    if reading is None or all(label == UNLABELLED for label in labels):
        raise DataError("no example has a target" if labels else "there are no examples")
    rounding.check()
    return torch.tensor(labels), reading


def _label_of(target: Structure, task: LearningTask[Any]) -> int:
    """Say whether a target is there: 0, or `UNLABELLED` where it says nothing, as a mask without a class."""
    return 0 if bool(task.is_labelled(map_leaves(lambda leaf: leaf.unsqueeze(0), target))[0]) else UNLABELLED


def shape_of(targets: Structure) -> tuple[int, ...]:
    """Return the shape of one target; empty where it is no single tensor."""
    return tuple(targets.shape[1:]) if isinstance(targets, Tensor) else ()


def no_test_target(position: int) -> str:
    """Say that a test example has no target."""
    return f"test example {position} has no target; every example of a test set needs one"


def check_inputs_fit(inputs: Structure, task: LearningTask[Any], where: str) -> None:
    """Raises DataError for inputs of several tensors where the task makes trial batches of one."""
    if not isinstance(inputs, Tensor) and type(task).trial_batch is LearningTask.trial_batch:
        raise DataError(
            f"{where}: inputs are of type {type(inputs).__name__}, and task.name = {task.settings.name!r} takes one tensor; "
            "for several write a task of your own, with trial_batch"
        )


def way_out_of_shape(target: Tensor, wanted: tuple[int, ...], num_classes: int) -> str:
    """Say what to do about a target with a dimension too many, where it is known."""
    shape = tuple(target.shape)
    for dimension, size in enumerate(shape):
        if shape[:dimension] + shape[dimension + 1 :] != wanted:
            continue
        if size == 1:
            return f"; squeeze({dimension}) removes the dimension of 1"
        if size == num_classes and bool(((target == 0) | (target == 1)).all() and (target.sum(dimension) == 1).all()):
            return f"; a target is the number of the class at each place: of one-hot targets take argmax({dimension})"
    return ""
