"""Data and networks that do not fit a task are refused before the first round, in a line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import feddkd
from feddkd.config import Config, DataConfig
from feddkd.data.examples import StreamedExamples
from feddkd.data.own_data import load_own
from feddkd.errors import FedDKDError
from feddkd.tasks.base import UNLABELLED, LearningTask
from feddkd.tasks.chosen import task_of

COUNT = 24
NUMBERS = torch.rand(COUNT, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(COUNT, 1, 6, 6, generator=torch.Generator().manual_seed(1))
MASKS = (IMAGES[:, 0] * 2.99).long()
ONE_HOT = F.one_hot(MASKS, 3).movedim(-1, 1)
CLASSES = torch.arange(COUNT) % 3
FLOATS = torch.rand(COUNT, generator=torch.Generator().manual_seed(2))
TOKENS = torch.arange(COUNT * 7).reshape(COUNT, 7) % 9
SEGMENTED = {"data.target_shape": [6, 6], "data.num_classes": 3}
SPOKEN = {"data.target_shape": [7], "data.num_classes": 9}
REGRESSION = {"task.name": "regression"}


def rows(inputs: Any, targets: Any) -> list[tuple[Any, Any]]:
    return list(zip(inputs, targets, strict=True))


class Stream(IterableDataset[tuple[Any, Any]]):
    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self.items)


class Words(nn.Module):
    """Logits of each token: [B, T, C], or with the classes in dimension 1."""

    def __init__(self, classes: int, *, last: bool) -> None:
        super().__init__()
        self.words, self.out, self.last = nn.Embedding(9, 4), nn.Linear(4, classes), last

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.words(x))
        return logits if self.last else logits.movedim(-1, 1)


def linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Linear(shape[0], outputs)


def pixels(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Conv2d(shape[0], classes, 1)


WRONG: dict[str, tuple[Any, Callable[..., nn.Module], dict[str, Any], str]] = {
    "float targets": ((NUMBERS, FLOATS), linear, {}, "dtype torch.float32; .* see the table [task] and data.target_shape"),
    "float targets in rows": (rows(NUMBERS, FLOATS), linear, {}, "example 0: .* see the table [task] and data.target_shape"),
    "masks without a shape": (
        (IMAGES, MASKS),
        pixels,
        {"data.num_classes": 3},
        "(24, 6, 6); .* see the table [task] and data.target_shape",
    ),
    "another shape": (
        (IMAGES, MASKS),
        pixels,
        SEGMENTED | {"data.target_shape": [5, 6]},
        "not to (2, 3, 5, 6) logits; data.target_shape = [5, 6]",
    ),
    "an extra dimension": ((IMAGES, MASKS.unsqueeze(1)), pixels, SEGMENTED, "shape [1, 6, 6] where .*; squeeze(0) removes"),
    "one-hot": ((IMAGES, ONE_HOT), pixels, SEGMENTED, "shape [3, 6, 6] where .*; .* take argmax(0)"),
    "one-hot, so configured": (
        (IMAGES, ONE_HOT),
        pixels,
        SEGMENTED | {"data.target_shape": [3, 6, 6]},
        "(2, 3, 3, 6, 6) logits; .* take argmax(0)",
    ),
    "colours": (rows(IMAGES, [Image.new("RGB", (6, 6))] * COUNT), pixels, SEGMENTED, "shape [6, 6, 3] where data.target_shape = [6, 6]$"),
    "void": ((IMAGES, MASKS.index_fill(1, CLASSES[:1], 255)), pixels, SEGMENTED, "label 255 is outside [0, 3) .*; task.ignore_index names"),
    "void in rows": (
        rows(IMAGES, MASKS.index_fill(1, CLASSES[:1], 255)),
        pixels,
        SEGMENTED,
        "label 255 is outside .*; task.ignore_index names",
    ),
    "void as -1": ((IMAGES, MASKS.index_fill(1, CLASSES[:1], -1)), pixels, SEGMENTED, "class -1; task.ignore_index = -1 leaves it out"),
    "nothing but void": ((IMAGES, MASKS * 0 + 255), pixels, SEGMENTED | {"task.ignore_index": 255}, "no example has a target"),
    "void of examples": ((NUMBERS, CLASSES), linear, {"task.ignore_index": 2}, "task.ignore_index = 2: it is for pixels or tokens"),
    "classes last": ((TOKENS, TOKENS), lambda _, n: Words(n, last=True), SPOKEN, "not to (2, 9, 7) logits; .*movedim(-1, 1)"),
    "one class a sequence": ((NUMBERS, TOKENS), linear, SPOKEN, "to (2, 9), not to (2, 9, 7) logits; data.target_shape = [7]"),
    "ragged tokens": (
        rows(TOKENS, [[1] * (1 + i % 3) for i in range(COUNT)]),
        linear,
        SPOKEN,
        "its target has shape [3], and that of others [1]",
    ),
    "dicts as inputs": (rows([{"a": one} for one in NUMBERS], CLASSES), linear, {}, "inputs are of type dict, .* a task of your own"),
    "not finite": (
        (NUMBERS, FLOATS.index_fill(0, CLASSES[4:5], torch.nan)),
        linear,
        REGRESSION,
        "example 1: its target is not finite; None says",
    ),
    "text as numbers": (rows(NUMBERS, ["high"] * COUNT), linear, REGRESSION, "its target is of type str; numbers are expected"),
    "a test example without": (rows(NUMBERS, [None, *FLOATS[1:].tolist()]), linear, REGRESSION, "test example 0 has no target"),
    "too many outputs": ((NUMBERS, FLOATS), lambda *_: nn.Linear(5, 3), REGRESSION, "to (2, 3) .*, not to (2,) numbers"),
    "classes of numbers": ((NUMBERS, FLOATS), linear, REGRESSION | {"data.num_classes": 4}, "data.target_shape = [4] says so many numbers"),
    "one of several labels": ((NUMBERS, CLASSES), linear, {"task.name": "multilabel"}, "example 2: its target is not one 0 or 1"),
    "weights of other classes": ((NUMBERS, CLASSES), linear, {"task.class_weights": [1, 2]}, "has 2 weights, and there are 3 classes"),
    "an unknown metric": (
        (NUMBERS, CLASSES),
        linear,
        {"task.metric": "auc"},
        "task.metrics: 'auc' is not known: classification has .*auroc",
    ),
    "a metric of another task": ((NUMBERS, FLOATS), linear, REGRESSION | {"task.metric": "iou"}, "'iou' is not known: regression has"),
}


@pytest.mark.parametrize(("data", "model", "settings", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(
    data: Any, model: Callable[..., nn.Module], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FedDKDError, match=re.sub(r"([\[\]()])", r"\\\1", message)):
        run(data, model, settings, tmp_path)
    assert not list(tmp_path.glob("run/rounds.jsonl"))


WORKING: dict[str, tuple[Any, Callable[..., nn.Module], dict[str, Any]]] = {
    "tokens": ((TOKENS, TOKENS), lambda _, n: Words(n, last=False), SPOKEN),
    "regression": ((NUMBERS, FLOATS), linear, REGRESSION),
}

NEEDS_LABELS: dict[str, list[Any]] = {
    "partition.name": ["labels_per_client", "dirichlet", "shards"],
    "algorithm.name": ["fedntd", "moon", "semifl", "self_training"],
    "algorithm.local_objective.name": ["fedmax", "fedntd", "moon"],
    "dkd.teacher": ["auto"],
    "data.label_noise": [0.2],
    "data.labels_per_class": [2],
}


@pytest.mark.parametrize("task", WORKING)
@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NEEDS_LABELS.items() for value in values])
def test_what_needs_a_class_of_each_example_is_refused_by_its_key(key: str, value: Any, task: str, tmp_path: Path) -> None:
    data, model, settings = WORKING[task]
    with pytest.raises(FedDKDError, match=rf"^{re.escape(key)} = .?{value}.?: it (needs one|deals examples by their) class"):
        run(data, model, settings | {"dkd.steps": 2, key: value}, tmp_path)


@pytest.mark.parametrize("settings", [{"dkd.not_true": True}, {"dkd.confidence": 0.3}, {"dkd.bootstrap": 0.3}, {"dkd.divergence": "js"}])
def test_a_loss_for_logits_is_refused_for_numbers(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FedDKDError, match=f"{next(iter(settings))}.* it is for logits of classes"):
        run((NUMBERS, FLOATS), linear, REGRESSION | settings, tmp_path)


def run(data: Any, model: Callable[..., nn.Module], settings: dict[str, Any], folder: Path) -> None:
    common = {"rounds": 1, "dkd.steps": 1, "training.epochs": 1, "partition.name": "iid", "partition.clients": 2}
    function: Callable[..., Any] = lambda root, train: data  # noqa: E731
    feddkd.run(common | settings, data=function, model=model, engine="in-process", out=folder / "run", progress=False)


def missing_rows(root: Path | None, train: bool) -> list[tuple[Tensor, Any]]:
    return rows(NUMBERS, [None if train and place % 4 == 0 else value for place, value in enumerate(FLOATS.tolist())])


def partly_void(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    return IMAGES, torch.where((torch.arange(COUNT) % 4 == 0).reshape(-1, 1, 1), 255, MASKS)


def partly_void_rows(root: Path | None, train: bool) -> list[tuple[Tensor, Tensor]]:
    return rows(*partly_void(root, train))


def one_buffer(root: Path | None, train: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Fills the same tensors again and again."""
    image, mask = torch.zeros(1, 6, 6), torch.zeros(6, 6, dtype=torch.int64)
    for one, other in rows(*partly_void(root, train)):
        yield image.copy_(one), mask.copy_(other)


class Halves(LearningTask[Any]):
    """Its targets are strings in the data; what it made of one it cannot read once more."""

    def target(self, raw: Any) -> dict[str, Tensor]:
        first, second = raw.split("/")
        return {"first": torch.tensor(float(first)), "second": torch.tensor(float(second))}


def texts(root: Path | None, train: bool) -> Stream:
    return Stream(rows(NUMBERS, [f"{place}/2" for place in range(COUNT)]))


def test_a_missing_number_does_not_make_reads_random() -> None:
    examples = load_own(named("missing_rows"), train=True, seed=0, task=the_task(REGRESSION))
    assert isinstance(examples, StreamedExamples)
    assert (examples.labels == UNLABELLED).sum() == COUNT / 4
    assert not examples.is_random


@pytest.mark.parametrize("name", ["partly_void", "partly_void_rows", "one_buffer"])
def test_an_image_without_a_class_is_an_example_without_a_target_however_it_is_read(name: str) -> None:
    examples = load_own(named(name, target_shape=[6, 6]), train=True, seed=0, task=the_task({"task.ignore_index": 255}))
    assert ((examples.labels == UNLABELLED) == (torch.arange(COUNT) % 4 == 0)).all()
    _, targets = examples.gather(torch.arange(COUNT))
    assert torch.equal(targets, partly_void(None, True)[1].masked_fill(partly_void(None, True)[1] == 255, UNLABELLED))


@pytest.mark.parametrize("name", ["partly_void", "partly_void_rows", "one_buffer"])
def test_a_test_image_without_a_class_is_refused_however_it_is_read(name: str) -> None:
    with pytest.raises(FedDKDError, match="test example 0 has no target; every example of a test set needs one"):
        load_own(named(name, target_shape=[6, 6]), train=False, seed=0, task=the_task({"task.ignore_index": 255}))


def unknown_labels(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    return NUMBERS, torch.ones(COUNT, 2, dtype=torch.int64).index_fill(0, torch.tensor([5]), -1)


def test_a_test_example_of_which_no_label_is_known_is_refused() -> None:
    with pytest.raises(FedDKDError, match="test example 5 has no target"):
        load_own(named("unknown_labels"), train=False, seed=0, task=the_task({"task.name": "multilabel"}))


STEPS = np.arange(COUNT) / 2
TOO_FINE: dict[str, Any] = {
    "float64": 1e12 + STEPS,
    "negative": -1e12 - STEPS,
    "int64": 10**12 + np.arange(COUNT),
    "int64 beyond float64": 10**18 + np.arange(COUNT),
    "int32": 2**30 + np.arange(COUNT, dtype=np.int32),
    "torch": torch.from_numpy(1e12 + STEPS),
    "one of two": np.stack([STEPS, 1e12 + STEPS], axis=1),
}
FINE: dict[str, Any] = {
    "equal": np.full(COUNT, 0.1),
    "equal but for rounding": 0.1 + np.arange(COUNT) * 1e-17,
    "large": 1e12 * (1 + STEPS),
    "small": 1e-12 * (1 + STEPS),
    "float32": (1e12 + STEPS).astype(np.float32),
    "years": 2000 + STEPS,
}


def as_arrays(targets: Any) -> Any:
    return NUMBERS, targets


def as_lists(targets: Any) -> Any:
    return NUMBERS, targets.tolist()


def as_rows(targets: Any) -> Any:
    return rows(NUMBERS, targets)


def as_rows_of_python(targets: Any) -> Any:
    return rows(NUMBERS, targets.tolist())


def as_stream(targets: Any) -> Any:
    return Stream(rows(NUMBERS, targets))


FORMS = [as_arrays, as_lists, as_rows, as_rows_of_python, as_stream]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", TOO_FINE.values(), ids=TOO_FINE)
def test_numbers_that_float32_cannot_tell_apart_are_refused(targets: Any, form: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(FedDKDError, match=r"targets from \S+ to \S+ cannot be told apart in float32.*subtract their mean"):
        run(form(targets), linear, REGRESSION, tmp_path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("targets", FINE.values(), ids=FINE)
def test_numbers_that_float32_tells_apart_are_taken(targets: Any, form: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "given", lambda root, train: form(targets))
    assert len(load_own(named("given"), train=True, seed=0, task=the_task(REGRESSION))) == COUNT


def test_targets_of_a_stream_are_converted_once() -> None:
    examples = load_own(named("texts"), train=True, seed=0, task=Halves(Config().task))
    _, targets = examples.gather(torch.tensor([3, 5]))
    assert targets["first"].tolist() == [3, 5]


def named(function: str, **settings: Any) -> DataConfig:
    return DataConfig(name=f"{__name__}:{function}", **settings)


def the_task(settings: dict[str, Any]) -> LearningTask[Any]:
    return task_of(Config.load(overrides=[f"{key}={value}" for key, value in settings.items()]))
