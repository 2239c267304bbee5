"""Targets of the user's own data that are not one class of each example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from feddkd.config import Config
from feddkd.data.datasets import describe, info_of, load_train
from feddkd.data.examples import Examples
from feddkd.errors import FedDKDError
from feddkd.tasks.base import UNLABELLED
from feddkd.tasks.chosen import task_of

MODULE = "tests.unit.test_own_targets"
N = 12


class Table(Dataset[tuple[Tensor, float | None]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, float | None]:
        return torch.full((3,), float(index)), None if index % 3 == 0 else index / 2


class Stream(IterableDataset[tuple[Tensor, float | None]]):
    def __iter__(self) -> Iterator[tuple[Tensor, float | None]]:
        table = Table()
        return (table[index] for index in range(N))


class Masks(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = np.full((2, 2), index % 3, dtype=np.uint8)
        mask[0, 0] = 255
        return {"image": torch.zeros(1, 2, 2), "mask": None if index == 1 else mask}


def table(root: Path | None, train: bool) -> Table:
    return Table()


def stream(root: Path | None, train: bool) -> Stream:
    return Stream()


def masks(root: Path | None, train: bool) -> Masks:
    return Masks()


def columns(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    return torch.zeros(N, 3), torch.arange(N).float()


def more(root: Path | None, train: bool) -> Tensor:
    return torch.ones(4, 3)


def words(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    return torch.zeros(N, 5, dtype=torch.int64), torch.arange(5 * N).reshape(N, 5) % 7


def one_hot(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    return torch.zeros(N, 3), torch.eye(4)[torch.arange(N) % 4]


def loaded(function: str, task: dict[str, Any], **data: Any) -> Examples:
    config = Config.parse({"task": task, "data": {"name": f"{MODULE}:{function}", **data}})
    return load_train(config.data, 0, task_of(config))


def targets_of(examples: Examples) -> Any:
    return torch.cat([targets for _, _, targets in examples.batches(torch.arange(len(examples)), 5)])


@pytest.mark.parametrize("function", ["table", "stream"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_number_that_is_missing_is_known_before_it_is_read(function: str, workers: int) -> None:
    examples = loaded(function, {"name": "regression"}, workers=workers)
    expected = [math.nan if index % 3 == 0 else index / 2 for index in range(N)]
    assert examples.labels.tolist() == [UNLABELLED if index % 3 == 0 else 0 for index in range(N)]
    torch.testing.assert_close(targets_of(examples), torch.tensor(expected), equal_nan=True)
    assert not examples.is_random


def test_masks_of_bytes_are_classes_of_pixels() -> None:
    data = {"target_shape": [2, 2], "num_classes": 3, "input_key": "image", "label_key": "mask"}
    examples = loaded("masks", {"ignore_index": 255}, **data)
    found = targets_of(examples)
    assert found[0].tolist() == [[UNLABELLED, 0], [0, 0]]
    assert found[1].tolist() == [[UNLABELLED, UNLABELLED]] * 2
    assert found[2].tolist() == [[UNLABELLED, 2], [2, 2]]


@pytest.mark.parametrize("function", ["columns", "table"])
def test_inputs_without_a_target_follow_those_with_one(function: str) -> None:
    examples = loaded(function, {"name": "regression"}, unlabelled=f"{MODULE}:more")
    assert len(examples) == N + 4
    assert examples.labels[N:].tolist() == [UNLABELLED] * 4
    assert targets_of(examples)[N:].isnan().all()
    assert examples.gather(torch.tensor([N]))[0].tolist() == [[1.0] * 3]


@pytest.mark.parametrize("function", ["columns", "table"])
def test_a_hidden_target_is_missing(function: str) -> None:
    examples = loaded(function, {"name": "regression"})
    hidden = examples.labels.clone()
    hidden[4] = UNLABELLED
    part = examples.with_labels(hidden).subset(torch.tensor([4, 5])).compact()
    found = targets_of(part)
    assert found[0].isnan()
    assert not found[1].isnan()


@pytest.mark.parametrize(
    ("function", "task", "data", "shapes"),
    [
        ("columns", {"name": "regression"}, {}, ((3,), 1, ())),
        ("one_hot", {"name": "multilabel"}, {}, ((3,), 4, (4,))),
        ("one_hot", {"name": "regression"}, {}, ((3,), 4, (4,))),
        ("words", {}, {"target_shape": [5], "num_classes": 7}, ((5,), 7, (5,))),
    ],
)
def test_shapes_are_found_out(function: str, task: dict[str, Any], data: dict[str, Any], shapes: tuple[Any, ...]) -> None:
    config = Config.parse({"task": task, "data": {"name": f"{MODULE}:{function}", **data}})
    info = describe(config.data, task_of(config))
    assert tuple(info.shapes) == shapes
    written = config.data.model_copy(update=info.keys)  # what a server tells its sites
    assert tuple(describe(written, task_of(config)).shapes) == shapes
    assert info_of(config.data, load_train(config.data, 0, task_of(config)), task_of(config)).shapes == info.shapes


@pytest.mark.parametrize(
    ("function", "task", "data", "message"),
    [
        ("columns", {}, {}, r"labels have dtype torch.float32; .*see the table \[task\]"),
        ("words", {}, {}, r"labels have shape \(12, 5\); .*data.target_shape"),
        ("words", {}, {"target_shape": [5]}, "data.num_classes is not set"),
        ("words", {}, {"target_shape": [5], "num_classes": 6}, r"label 6 is outside \[0, 6\).*task.ignore_index"),
        ("words", {}, {"target_shape": [4], "num_classes": 7}, r"targets have shape \[5\] where data.target_shape = \[4\]"),
        ("words", {"name": "multilabel"}, {}, "0 or 1 for each label"),
        ("one_hot", {"name": "multilabel"}, {"num_classes": 5}, r"targets have shape \[4\]"),
        ("columns", {"name": "regression"}, {"num_classes": 3}, "data.num_classes = 3: regression has no classes"),
        ("columns", {}, {"num_classes": 1}, "classification needs at least 2 classes"),
    ],
)
def test_targets_that_the_task_does_not_mean_are_refused(function: str, task: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(FedDKDError, match=message):
        loaded(function, task, **data)


@pytest.mark.parametrize("task", [{"name": "regression"}, {"name": "multilabel"}])
def test_a_built_in_set_has_one_class_of_each_example(task: dict[str, Any]) -> None:
    config = Config.parse({"task": task})
    with pytest.raises(FedDKDError, match=r"data\.name = 'digits' has one class of each example"):
        load_train(config.data, 0, task_of(config))
