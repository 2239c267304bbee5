"""Loads the user's own data with the functions that the configuration names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from feddkd.config import DataConfig
from feddkd.data.bad_examples import BadExamples, name_of
from feddkd.data.class_names import names_of_dataset
from feddkd.data.examples import Loaded, MemoryExamples, Reading, StreamedExamples
from feddkd.data.inputs import as_tensor, check_input_dtype, finite
from feddkd.data.iterable import read_all
from feddkd.data.own_labels import COMPARED, checked_labels, spread, targets_of
from feddkd.data.own_targets import TARGETS_WAY_OUT, checked_targets, entries_for, has_labels, read_targets, targets_of_rows
from feddkd.data.reader import MapDataset
from feddkd.data.rows import PAIR, Entries, input_entry_of, label_number
from feddkd.data.seeding import generator_states, generators_kept, seed_generators
from feddkd.data.targets import Targets
from feddkd.errors import BadExamplesError, DataError, FedDKDError
from feddkd.imports import load_object, named, one_line
from feddkd.structures import rows_of
from feddkd.tasks.base import UNLABELLED, LearningTask
from feddkd.tasks.classification import CLASSIFICATION

MOST_CLASSES_PROBED = 64
"""Classes of which the first example is read twice, to find out whether reads are random."""


def load_own(config: DataConfig, train: bool, seed: int, task: LearningTask[Any] = CLASSIFICATION) -> Loaded:
    """Call `package.module:function` as function(root=..., train=...).

    It returns either (inputs, targets), two tensors or arrays, inputs floating point or integer [n, ...];
    or a map-style data set of (input, target) pairs or of dicts; or an iterable data set of them, which
    is read once. Targets are what the rows yield; of classification they are labels. A target None says that
    a training example has none, and with `data.unlabelled = "minus_one"` so does the label -1.

    Args:
        config: whose `name` is an import path.
        train: the training examples, or the test examples.
        seed: of the run: an iterable data set may shuffle.
        task: says what a target is.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: it fails, or returns something else; or a test example has no label.
    """
    where = named("data.name", config.name)
    result = _call(config.name, "data.name", config.root, train, seed)
    try:
        if _is_pair(result):
            return _in_memory(result[0], result[1], config, train, task)
        if _is_iterable(result):
            inputs, labels = read_all(result, config, where, seed, task)
            return _in_memory(inputs, labels, config, train, task, names_of_dataset(result), converted=True)
        if not _is_map_style(result):
            raise DataError(f"it returned {_found(result)}, neither (inputs, labels) nor a data set of (input, label) pairs")
        return _streamed(result, config, train, where, task)
    except BadExamplesError:
        raise
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def load_unlabelled(config: DataConfig, seed: int) -> Loaded:
    """Call the function `data.unlabelled` as function(root=..., train=True) for training inputs that have no label.

    It returns either inputs, a tensor or an array, floating point or integer [n, ...]; or a map-style
    data set of inputs, of tuples that begin with an input, or of dicts.

    Raises:
        ConfigError: the function cannot be imported.
        DataError: it fails, or returns something else.
    """
    where = named("data.unlabelled", config.unlabelled)
    result = _call(config.unlabelled, "data.unlabelled", config.root, True, seed)
    try:
        if isinstance(result, Tensor | np.ndarray):
            inputs = _inputs(result)
            labels = _no_labels(len(inputs) if inputs.ndim else 0)
            good = _usable(inputs, config, where)
            return MemoryExamples(inputs[good], labels[good], config.scale)
        if isinstance(result, tuple) or not _is_map_style(result):
            raise DataError(f"it returned {_found(result)}, neither inputs alone, as a tensor or an array, nor a map-style data set")
        labels = _no_labels(len(result))
        entries = input_entry_of(_first_row(result), config.input_key)
        examples = StreamedExamples(result, labels, reading_of(config, where, entries))
        examples.reader.probe(spread(len(labels), COMPARED))
        return examples
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def reading_of(config: DataConfig, where: str, entries: Entries = PAIR) -> Reading:
    """Say how a data set is read, as `[data]` says; `where` names it in messages."""
    return Reading(where, config.workers, config.scale, config.max_bad_share, entries)


def _call(name: str, key: str, root: Path | None, train: bool, seed: int) -> Any:
    function = load_object(name, key)
    try:
        with generators_kept():
            seed_generators(seed)
            return function(root=root, train=train)
    except FedDKDError:
        raise
    except Exception as error:  # a user's function may raise anything
        called = f"root={str(root)!r}, train={train}"
        raise DataError(f"{named(key, name)}: calling it with {called} failed with {one_line(error)}") from error


def _no_labels(count: int) -> Tensor:
    if count == 0:
        raise DataError("there are no examples")
    return torch.full((count,), UNLABELLED)


def _is_pair(result: Any) -> bool:
    """Tell whether this is (inputs, labels), or [inputs, labels]; a list of rows is a data set. Raises DataError."""
    if isinstance(result, tuple):
        if len(result) != 2:
            raise DataError(f"it returned a tuple of {len(result)}, not (inputs, labels)")
        return True
    if not isinstance(result, list) or len(result) != 2:
        return False
    if any(isinstance(part, Tensor | np.ndarray) for part in result):
        return True
    if all(isinstance(part, Mapping | tuple) for part in result):
        return False
    raise DataError("it returned a list of 2, which is ambiguous; return a tuple (inputs, labels), or a list of (input, label) tuples")


def _is_iterable(result: Any) -> bool:
    if isinstance(result, IterableDataset):
        return True
    known = isinstance(result, str | bytes | Mapping | DataLoader)
    return isinstance(result, Iterable) and not hasattr(result, "__getitem__") and not known


def _is_map_style(result: Any) -> bool:
    if isinstance(result, str | bytes | Mapping | DataLoader) or not hasattr(result, "__getitem__"):
        return False
    try:
        len(result)
    except (TypeError, NotImplementedError):
        raise DataError(
            f"it returned {_found(result)} without a length; give it __len__, or return an IterableDataset, which is read to its end"
        ) from None
    return True


def _found(result: Any) -> str:
    """Describe what a function returned, with the way out where one is known."""
    if isinstance(result, DataLoader):
        return "a DataLoader (return its data set, loader.dataset: training.batch_size and data.workers make the batches here)"
    if isinstance(result, np.lib.npyio.NpzFile):
        files = ", ".join(repr(name) for name in result.files)
        return f"an open npz file (return two of its arrays, as in file['x'], file['y']; it holds {files})"
    if isinstance(result, tuple):
        return f"a tuple of {len(result)}"
    return type(result).__name__


def _in_memory(
    raw_inputs: Any,
    raw_targets: Any,
    config: DataConfig,
    train: bool,
    task: LearningTask[Any],
    class_names: tuple[str, ...] = (),
    *,
    converted: bool = False,
) -> MemoryExamples:
    """Check inputs and targets that are in memory, and leave out inputs that are not finite.

    Args:
        converted: targets are what the task made of them, where they are not labels.
    """
    inputs = _inputs(raw_inputs)
    targets = None
    if has_labels(config, task):
        labels = checked_labels(raw_targets, train, minus_one=config.unlabelled == "minus_one", way_out=TARGETS_WAY_OUT)
    else:
        targets, labels = (targets_of_rows if converted else checked_targets)(raw_targets, config, task, train)
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise DataError(f"inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} differ in length")
    good = _usable(inputs, config, named("data.name", config.name))
    if not good.all():
        inputs, labels = inputs[good], labels[good]
        targets = None if targets is None else Targets(rows_of(targets.values, good), task)
    return MemoryExamples(inputs, labels, config.scale, class_names, targets)


def _usable(inputs: Tensor, config: DataConfig, where: str) -> Tensor:
    """Find the inputs that are finite: bool [n]. Raises BadExamplesError if too many are not."""
    good = finite(inputs)
    bad = BadExamples(where, len(inputs), config.max_bad_share)
    for position in (~good).nonzero().flatten().tolist():
        bad.add(position, f"input {position}", "it holds a value that is not finite")
    return good


def _inputs(raw: Any) -> Tensor:
    try:
        inputs = as_tensor(raw)
    except DataError as error:
        raise DataError(f"inputs: {error}") from None
    check_input_dtype(inputs)
    return inputs


def _first_row(dataset: MapDataset) -> Any:
    """Read the first row that can be read. Raises DataError if none of the first ones can."""
    problem: Exception | None = None
    for position in range(min(len(dataset), COMPARED)):
        try:
            return dataset[position]
        except Exception as error:  # noqa: BLE001  # a user's data set may raise anything
            problem = problem or error
    if problem is None:
        raise DataError("there are no examples")
    raise DataError(f"reading {name_of(dataset, 0)} failed with {one_line(problem)}") from problem


def _streamed(dataset: MapDataset, config: DataConfig, train: bool, where: str, task: LearningTask[Any]) -> StreamedExamples:
    """Find which rows of a map-style data set have a target, and whether its reads are random."""
    with generators_kept():
        seed_generators(0)
        entries = entries_for(_first_row(dataset), config, task)
        bad = BadExamples(where, len(dataset), config.max_bad_share)
        before = generator_states()
        if has_labels(config, task):
            raw = targets_of(dataset, entries)
            raw = _labels_of_rows(dataset, entries, bad) if raw is None else raw
            labels, reading = checked_labels(raw, train, minus_one=config.unlabelled == "minus_one", way_out=TARGETS_WAY_OUT), None
        else:
            labels, reading = read_targets(dataset, entries, bad, config, task, train)
        draws = generator_states() != before
    if bad.found:
        dataset = Subset(dataset, [position for position in range(len(dataset)) if position not in bad.found])  # type: ignore[arg-type]
    how = dataclasses.replace(reading_of(config, where, entries), targets=reading)
    examples = StreamedExamples(dataset, labels, how, names_of_dataset(dataset), len(bad.found))
    examples.reader.probe(_probed(labels))
    examples.reader.is_random |= draws
    return examples


def _labels_of_rows(dataset: MapDataset, entries: Entries, bad: BadExamples) -> list[int | None]:
    """Read all rows for their labels; those that cannot be read are added to `bad`."""
    labels = []
    for position in range(len(dataset)):
        try:
            row = dataset[position]
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # a user's data set may raise anything
            bad.add(position, name_of(dataset, position), str(error) if isinstance(error, DataError) else one_line(error))
            continue
        labels.append(_label_of(row, entries, name_of(dataset, position)))
    return labels


def _label_of(row: Any, entries: Entries, name: str) -> int | None:
    try:
        return label_number(entries.label_of(row))
    except DataError as error:
        raise DataError(f"{name}: {error}{TARGETS_WAY_OUT}") from None
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{name}: it has no label ({one_line(error)})") from None


def _probed(labels: Tensor) -> list[int]:
    """Choose the examples that are read twice: some at equal distances, and the first of each class."""
    first_of: dict[int, int] = {}
    for position, label in enumerate(labels.tolist()):
        if len(first_of) == MOST_CLASSES_PROBED:
            break
        first_of.setdefault(label, position)
    return sorted({*spread(len(labels), COMPARED), *first_of.values()})
