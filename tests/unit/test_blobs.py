"""Tensors in files that are named by their content."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from feddkd.errors import StateError
from feddkd.failpoints import FailpointError, planned
from feddkd.scheduler.blobs import BlobStore, DamagedError
from feddkd.tensors import DTYPES

SOME = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(7)}


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return {name: bits(value) for name, value in found.items()} == {name: bits(value) for name, value in expected.items()}


def names(store: BlobStore) -> list[str]:
    return sorted(file.name for file in store.folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5, 7)], ids=str)
def test_tensors_of_every_dtype_and_shape_come_back_bit_for_bit(store: BlobStore, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = (torch.randn(shape) * 3).to(dtype)
    assert same(store.read(store.write({"x": value})).tensors, {"x": value})


def test_bits_that_are_no_number_come_back(store: BlobStore) -> None:
    values = {"w": torch.tensor([math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324], dtype=torch.float64)}
    assert same(store.read(store.write(values)).tensors, values)


tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 4), max_size=3)).map(
        lambda drawn: torch.arange(math.prod(drawn[1])).view(drawn[1]).to(drawn[0])
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=tensors, text=st.text(max_size=200))
def test_whatever_is_written_is_read_by_this_store_and_by_the_safetensors_library(
    store: BlobStore, values: dict[str, Tensor], text: str
) -> None:
    name = store.write(values, text)
    blob = store.read(name)
    assert same(blob.tensors, values)
    assert blob.text == text
    assert same(load_file(store.folder / f"{name}.safetensors"), values)


def test_what_does_not_lie_in_one_piece_is_stored_in_order(store: BlobStore) -> None:
    whole = torch.arange(24.0).view(4, 6)
    values = {"turned": whole.t(), "column": whole[:, 1], "repeated": torch.tensor(2.0).expand(3, 2)}
    assert same(store.read(store.write(values)).tensors, {name: value.contiguous() for name, value in values.items()})


def test_a_tensor_with_a_gradient_is_stored_without_it(store: BlobStore) -> None:
    found = store.read(store.write({"w": torch.ones(2, requires_grad=True)})).tensors["w"]
    assert not found.requires_grad


def test_nothing_is_stored_as_nothing(store: BlobStore) -> None:
    assert store.read(store.write({})) == ({}, "")


def test_a_blob_of_many_pieces_comes_back(store: BlobStore) -> None:
    values = {"w": torch.randn(3 * (1 << 18) + 5), "b": torch.zeros(3, dtype=torch.bool)}
    assert same(store.read(store.write(values)).tensors, values)


def test_equal_content_is_one_file(store: BlobStore) -> None:
    first = store.write(SOME, "text")
    assert store.write(dict(reversed(SOME.items())), "text") == first
    assert names(store) == [f"{first}.safetensors"]


@pytest.mark.parametrize(
    "other",
    [
        ({**SOME, "n": torch.tensor(8)}, "text"),
        ({**SOME, "n": torch.tensor(7, dtype=torch.int32)}, "text"),
        ({"v": SOME["w"], "n": SOME["n"]}, "text"),
        ({**SOME, "w": SOME["w"].view(3, 2)}, "text"),
        (SOME, "texts"),
    ],
    ids=["value", "dtype", "name", "shape", "text"],
)
def test_other_content_has_another_name(store: BlobStore, other: tuple[dict[str, Tensor], str]) -> None:
    assert store.write(*other) != store.write(SOME, "text")
    assert len(names(store)) == 2


def test_any_flipped_bit_is_noticed_and_the_file_is_moved_aside(store: BlobStore) -> None:
    name = store.write({"w": torch.arange(3, dtype=torch.int16)}, "t")
    file = store.folder / f"{name}.safetensors"
    content = file.read_bytes()
    for position in range(len(content)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :])
        with pytest.raises(DamagedError, match=f"{name}.* is damaged: .* moved to {name}.corrupt") as damaged:
            store.read(name)
        assert damaged.value.name == name
        assert names(store) == [f"{name}.corrupt"]


@pytest.mark.parametrize("length", [0, 1, 8, 100])
def test_a_file_that_was_cut_off_is_damaged(store: BlobStore, length: int) -> None:
    name = store.write(SOME)
    file = store.folder / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DamagedError, match="is damaged"):
        store.read(name)


def test_a_blob_that_is_not_there_is_named(store: BlobStore) -> None:
    with pytest.raises(DamagedError, match=f"{'0' * 64}.* is missing") as missing:
        store.read("0" * 64)
    assert missing.value.name == "0" * 64


def test_a_damaged_blob_can_be_written_again(store: BlobStore) -> None:
    name = store.write(SOME)
    (store.folder / f"{name}.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        store.read(name)
    assert store.write(SOME) == name
    assert same(store.read(name).tensors, SOME)


@pytest.mark.parametrize(("action", "number"), [("enospc", errno.ENOSPC), ("eio", errno.EIO)])
@pytest.mark.parametrize("moment", ["before_write", "before_fsync", "before_rename", "after_rename"])
def test_a_disk_that_is_full_or_broken_leaves_nothing(store: BlobStore, moment: str, action: str, number: int) -> None:
    kept = store.write({"kept": torch.ones(2)})
    with planned(f"blobs.write.{moment}={action}"), pytest.raises(StateError, match=r"^cannot write .*/blobs/") as failed:
        store.write(SOME)
    cause = failed.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == number
    assert names(store) == [f"{kept}.safetensors"]
    assert same(store.read(store.write(SOME)).tensors, SOME)  # once there is room


@pytest.mark.parametrize("moment", ["before_write", "before_fsync", "before_rename", "after_rename"])
def test_what_was_stored_before_stays_when_the_same_cannot_be_written_again(store: BlobStore, moment: str) -> None:
    name = store.write(SOME)
    with planned(f"blobs.write.{moment}=eio"), pytest.raises(StateError):
        store.write(SOME)
    assert same(store.read(name).tensors, SOME)
    assert names(store) == [f"{name}.safetensors"]


@pytest.mark.parametrize("moment", ["before_write", "before_fsync", "before_rename", "after_rename"])
def test_a_crash_leaves_all_of_a_blob_under_its_name_or_nothing(store: BlobStore, moment: str) -> None:
    with planned(f"blobs.write.{moment}=raise"), pytest.raises(FailpointError):
        store.write(SOME)
    finals = [name for name in names(store) if name.endswith(".safetensors")]
    assert len(finals) == (moment == "after_rename")
    name = store.write(SOME)
    assert same(store.read(name).tensors, SOME)
    store.keep_only({name})
    assert names(store) == [f"{name}.safetensors"]


def test_pruning_keeps_what_is_named_and_what_was_damaged(store: BlobStore) -> None:
    first, second, third = (store.write({"w": torch.tensor(number)}) for number in range(3))
    (store.folder / f"{second}.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        store.read(second)
    (store.folder / "half.partial").write_bytes(b"half")
    store.keep_only({third})
    assert names(store) == sorted([f"{second}.corrupt", f"{third}.safetensors"])
    with pytest.raises(DamagedError, match="is missing"):
        store.read(first)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=f"cannot create {tmp_path / 'file' / 'blobs'}: Not a directory"):
        BlobStore(tmp_path / "file" / "blobs")


def test_a_blob_that_may_not_be_read_is_no_damaged_one(store: BlobStore) -> None:
    name = store.write(SOME)
    file = store.folder / f"{name}.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(StateError, match=f"cannot read {file}: Is a directory") as failed:
        store.read(name)
    assert not isinstance(failed.value, DamagedError)
