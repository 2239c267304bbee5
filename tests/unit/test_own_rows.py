"""What the rows of a user's own data may be, and what is refused with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from feddkd.config import Config, DataConfig
from feddkd.data.datasets import describe, load_test, load_train
from feddkd.data.examples import MemoryExamples, StreamedExamples
from feddkd.data.inputs import network_inputs
from feddkd.data.own_labels import COMPARED, spread
from feddkd.errors import ConfigError, DataError
from feddkd.imports import given_objects
from feddkd.models.registry import build_model
from feddkd.tasks.base import UNLABELLED


def returning(result: object) -> Callable[..., object]:
    return lambda root, train: result


def loaded(result: object, load: Any = None, **keys: Any) -> Any:
    """Load what a function of the user's returns."""
    config = Config.parse({"data": {"name": "own:load", **keys}}).data
    with given_objects({("data.name", "own:load"): returning(result)}):
        return (load or (lambda data: load_train(data, 0)))(config)


class Rows:
    """A map-style data set of what a function makes of each number."""

    def __init__(self, row: Callable[[int], Any], count: int = 40, **attributes: Any) -> None:
        self.row = row
        self.count = count
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.row(index)


def x(index: int) -> Tensor:
    return torch.full((3,), float(index))


@pytest.mark.parametrize(
    "row",
    [
        lambda i: (x(i), i % 4),
        lambda i: [x(i), i % 4],
        lambda i: (x(i).numpy(), np.int16(i % 4)),
        lambda i: (x(i).tolist(), torch.tensor(i % 4, dtype=torch.uint8)),
        lambda i: (x(i), np.array([i % 4])),
        lambda i: {"image": x(i), "label": i % 4, "name": "n"},
    ],
    ids=["tuple", "list", "numpy", "list of numbers", "label in an array", "dict"],
)
def test_rows_are_pairs_or_dicts_of_any_kind_of_number(row: Callable[[int], Any]) -> None:
    is_dict = isinstance(row(0), dict)
    train = loaded(Rows(row), **({"input_key": "image", "label_key": "label"} if is_dict else {}))
    assert train.labels.tolist() == [i % 4 for i in range(40)]
    assert train.labels.dtype == torch.int64
    inputs, labels = train.gather(torch.tensor([5, 2]))
    assert inputs.tolist() == [[5.0] * 3, [2.0] * 3]
    assert labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        (lambda i: {"image": x(i), "label": 1}, {}, "dicts (dict) with the keys 'image', 'label'.*data.input_key and data.label_key"),
        (lambda i: {"image": x(i), "label": 1}, {"input_key": "image"}, "say which entry is which"),
        (lambda i: {"image": x(i), "label": 1}, {"input_key": "pixels", "label_key": "label"}, "data.input_key = 'pixels': its rows are"),
        (lambda i: {"image": x(i), "label": 1}, {"input_key": "label", "label_key": "label"}, "names the same entry"),
        (lambda i: (x(i), 1), {"input_key": "image", "label_key": "label"}, "are for rows that are dicts"),
        (lambda i: (x(i), 1, 2), {}, "tuples of 3 (Tensor [3], int, int): which entries count is ambiguous"),
        (lambda i: (x(i),), {}, "tuples of 1"),
        (lambda i: x(i)[:2], {}, "of type Tensor [2]"),
        (lambda i: "ab", {}, "of type str"),
        (lambda i: (x(i), 0.5), {}, "example 0: labels have dtype torch.float64; integers are expected"),
        (lambda i: (x(i), torch.tensor(2.0)), {}, "labels have dtype torch.float32"),
        (lambda i: (x(i), True), {}, "labels have dtype torch.bool; .*.long()"),
        (lambda i: (x(i), "cat"), {}, "labels are text ('cat', ...)"),
        (lambda i: (x(i), torch.eye(4)[i % 4]), {}, "are one-hot"),
        (lambda i: (x(i), torch.tensor([1, 1, 0])), {}, "labels have shape (3,)"),
        (lambda i: (x(i), 1 if i else 0.0), {}, "example 0: labels have dtype torch.float64"),
        (lambda i: (x(i), 0.5 if i == 23 else 1), {}, "example 23: labels have dtype torch.float64"),
    ],
)
def test_rows_that_are_ambiguous_or_have_no_integer_label_are_refused(
    row: Callable[[int], Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        loaded(Rows(row), **keys)
    text = str(caught.value)
    assert text.startswith("data.name = 'own:load': ")
    assert all(part in text for part in message.split(".*"))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (DataLoader(TensorDataset(torch.ones(2, 3), torch.arange(2))), "a DataLoader (return its data set, loader.dataset"),
        ({"x": 1}, "it returned dict"),
        ("text", "it returned str"),
        ([[0.5, 0.25], [0, 1]], "a list of 2, which is ambiguous"),
        ((torch.ones(2, 3), ["cat", "dog"]), "labels are text ('cat', 'dog', ...)"),
        ((torch.ones(2, 3), np.array(["cat", "dog"])), "labels are text ('cat', 'dog', ...)"),
        ((torch.ones(2, 3), torch.eye(2)), "labels have shape (2, 2) and are one-hot"),
        ((torch.ones(2, 3), torch.zeros(2, 5)), "labels have shape (2, 5); one integer"),
        ((torch.ones(2, 3), torch.ones(2)), "labels have dtype torch.float32; integers are expected"),
    ],
)
def test_what_is_no_data_set_is_named_with_the_way_out(result: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        loaded(result)
    assert message in str(caught.value)


def test_an_open_npz_file_is_named_with_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=np.arange(2))
    with np.load(tmp_path / "a.npz") as file, pytest.raises(DataError, match=r"an open npz file \(return two of its arrays.*'x', 'y'"):
        loaded(file)


@pytest.mark.parametrize("make", [list, tuple])
def test_a_list_of_two_arrays_is_inputs_and_labels(make: Any) -> None:
    assert loaded(make([torch.ones(4, 3), torch.tensor([0, 1, 1, 0])])).labels.tolist() == [0, 1, 1, 0]


def test_a_list_of_rows_is_a_data_set() -> None:
    train = loaded([(x(0), 1), (x(1), 0)])
    assert isinstance(train, StreamedExamples)
    assert train.labels.tolist() == [1, 0]


class Endless:
    def __getitem__(self, index: int) -> Any:
        return x(index), 0


class UnsizedTorch(torch.utils.data.Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return x(index), 0


@pytest.mark.parametrize("result", [Endless(), UnsizedTorch()])
def test_a_map_style_set_without_a_length_is_refused(result: object) -> None:
    with pytest.raises(DataError, match="without a length; give it __len__, or return an IterableDataset"):
        loaded(result)


# Labels are what the rows yield.


@given(st.lists(st.integers(0, 3), min_size=1, max_size=COMPARED), st.data())
def test_labels_are_those_of_the_rows_whatever_targets_say(labels: list[int], data: st.DataObject) -> None:
    targets = data.draw(st.one_of(st.just(labels), st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    train = loaded(Rows(lambda i: (x(i), labels[i]), len(labels), targets=targets), num_classes=4)
    assert train.labels.tolist() == labels


class Joint:
    """A joint transform of input and label, without the attributes of torchvision's own."""


@pytest.mark.parametrize("attributes", [{"target_transform": lambda label: label}, {"transforms": Joint()}])
def test_targets_beside_a_transform_of_labels_are_not_asked(attributes: dict[str, Any]) -> None:
    hidden = next(i for i in range(100) if i not in spread(100, COMPARED))
    train = loaded(Rows(lambda i: (x(i), 1 if i == hidden else 0), 100, targets=[0] * 100, **attributes), num_classes=2)
    assert train.labels[hidden] == 1


def test_targets_that_agree_spare_a_pass_over_the_rows() -> None:
    read: set[int] = set()

    def row(index: int) -> Any:
        read.add(index)
        return x(index), index % 2

    assert loaded(Rows(row, 1000, targets=[i % 2 for i in range(1000)])).labels.tolist() == [i % 2 for i in range(1000)]
    assert len(read) < 40


def test_torchvisions_way_to_transform_inputs_alone_leaves_targets_of_use() -> None:
    class Standard:
        target_transform = None

    read: set[int] = set()

    def row(index: int) -> Any:
        read.add(index)
        return x(index), 0

    loaded(Rows(row, 500, targets=[0] * 500, transforms=Standard(), target_transform=None), num_classes=2)
    assert len(read) < 40


# Integers stay integers.


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
@pytest.mark.parametrize("kind", ["arrays", "rows"])
def test_integers_reach_the_network_as_integers(dtype: torch.dtype, kind: str) -> None:
    tokens, labels = torch.arange(24).reshape(4, 6).to(dtype), torch.tensor([0, 1, 0, 1])
    result = (tokens, labels) if kind == "arrays" else Rows(lambda i: (tokens[i], int(labels[i])), 4)
    inputs = loaded(result).gather(torch.tensor([3]))[0]
    assert inputs.dtype == torch.int64
    assert inputs.tolist() == [[18, 19, 20, 21, 22, 23]]


@pytest.mark.parametrize(
    ("scale", "shape", "expected"),
    [
        ("auto", (4,), 255),
        ("auto", (2, 2), 1.0),
        ("auto", (3, 2, 2), 1.0),
        ("uint8", (4,), 1.0),
        ("uint8", (3, 2, 2), 1.0),
        ("none", (4,), 255),
        ("none", (3, 2, 2), 255),
    ],
)
@pytest.mark.parametrize("kind", ["arrays", "rows"])
def test_bytes_are_an_image_by_a_stated_rule(scale: Any, shape: tuple[int, ...], expected: float, kind: str) -> None:
    raw, labels = torch.full((4, *shape), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    result = (raw, labels) if kind == "arrays" else Rows(lambda i: (raw[i], int(labels[i])), 4)
    inputs = loaded(result, scale=scale).gather(torch.arange(4))[0]
    assert inputs.dtype == (torch.float32 if isinstance(expected, float) else torch.int64)
    assert (inputs == expected).all()
    assert torch.equal(network_inputs(raw, scale), inputs)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(30, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.out(self.embed(tokens).mean(1))
        return logits


def tokens_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Tokens()


def dense_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Linear(shape[0], classes)


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        ("tokens_net", torch.ones(4, 6), r"token ids must be integers in the data, or the model calls x\.long\(\)"),
        ("dense_net", torch.ones(4, 6, dtype=torch.int64), r"dtype int64.*the data are integers \(token ids\).*data\.scale = \"uint8\""),
        ("dense_net", torch.ones(4, 6, dtype=torch.uint8), r"the data are integers \(token ids\)"),
    ],
)
def test_a_network_that_does_not_take_the_data_is_refused_with_the_way_out(network: str, inputs: Tensor, message: str) -> None:
    info = loaded((inputs, torch.tensor([0, 1, 0, 1])), describe)
    with pytest.raises(ConfigError, match=message):
        build_model(Config.parse({"model": {"name": f"{__name__}:{network}"}}).model, info, 0)


@pytest.mark.parametrize("network", ["tokens_net", "dense_net"])
def test_where_the_data_were_not_read_a_network_of_either_dtype_is_built(network: str) -> None:
    info = describe(DataConfig(name="no.such:function", input_shape=(6,), num_classes=2))
    assert info.input_dtype is None
    build_model(Config.parse({"model": {"name": f"{__name__}:{network}"}}).model, info, 0)


# Iterable data sets.


class Stream(IterableDataset[Any]):
    """Rows in a random order, with random noise."""

    def __init__(self, count: int | None, make: Callable[[int], Any] | None = None) -> None:
        self.count = count
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        if self.make is not None:
            yield from map(self.make, range(self.count or 0))
            return
        for index in torch.randperm(self.count).tolist() if self.count is not None else iter(int, 1):
            yield torch.randn(1000), index % 2


def test_an_iterable_data_set_is_read_once_and_by_the_seed() -> None:
    def read(seed: int) -> Any:
        return loaded(Stream(30), lambda data: load_train(data, seed))

    before = torch.get_rng_state()
    first, again, other = read(1), read(1), read(2)
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(first, MemoryExamples)
    assert (len(first), first.is_random) == (30, False)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_a_stream_without_an_end_is_refused_at_the_limit() -> None:
    with pytest.raises(DataError, match=r"more than data\.memory_limit_mib = 1; raise the limit, or return a map-style data set"):
        loaded(Stream(None), memory_limit_mib=1)


def test_a_generator_is_an_iterable_too_and_its_rows_may_be_dicts_and_lack_labels() -> None:
    rows = ({"x": x(i), "y": i % 2 if i < 3 else None} for i in range(5))
    train = loaded(rows, input_key="x", label_key="y", num_classes=2)
    assert train.labels.tolist() == [0, 1, 0, UNLABELLED, UNLABELLED]
    assert train.inputs[4].tolist() == [4.0] * 3


def test_rows_of_another_shape_in_a_stream_are_skipped_and_counted() -> None:
    def make(index: int) -> Any:
        return torch.ones(2 if index == 7 else 3), 0

    assert len(loaded(Stream(200, make), num_classes=2)) == 199
    with pytest.raises(DataError, match=r"cannot use row 7 \(its input is torch\.float32 \[2\].*1 of 200 examples"):
        loaded(Stream(200, make), num_classes=2, max_bad_share=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Stream(0, lambda i: i), "there are no examples"),
        (Stream(3, lambda i: (x(i), 0.5)), "labels have dtype"),
        (Stream(3, lambda i: 1 // 0), "iterating over its data set failed with ZeroDivisionError"),
        (Stream(3, lambda i: (x(i), 1, 2)), "tuples of 3"),
    ],
)
def test_streams_that_are_malformed_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(rows, num_classes=2)


def test_a_test_split_may_be_an_iterable_too() -> None:
    assert len(loaded(Stream(12), load_test, num_classes=2, input_shape=[1000])) == 12


# What loader processes cannot get.


@pytest.mark.parametrize("dataset", [Rows(lambda i: (x(i), 0)), Subset(Rows(lambda i: (x(i), 0)), [0, 1])])  # type: ignore[arg-type]
def test_what_cannot_be_sent_to_loader_processes_is_said_at_the_start(dataset: Any) -> None:
    assert len(loaded(dataset, num_classes=2)) > 0
    with pytest.raises(DataError, match=r"data\.workers = 2: its data set cannot be sent to loader processes .*set data\.workers = 0"):
        loaded(dataset, num_classes=2, workers=2)


def test_an_open_file_cannot_be_sent_to_loader_processes(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file, pytest.raises(DataError, match=r"data\.workers = 1: .*TypeError: cannot pickle"):
        loaded(Rows(module_row, 4, file=file), num_classes=2, workers=1)


def module_row(index: int) -> Any:
    return x(index), 0
