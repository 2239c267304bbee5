"""The state of an algorithm comes back from memory and from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_tensors
from torch import Tensor

from feddkd.algorithms.snapshot import Snapshot
from feddkd.errors import StateError
from feddkd.tensors import Schema, Tensors, TensorSpec

LARGE = Schema([TensorSpec("float32.exp_avg", torch.float32, (700_001,)), TensorSpec("float32.step", torch.float32, ())])


@given(any_tensors, st.sampled_from([1, 10**9]))
def test_a_state_comes_back_bit_for_bit(tensors: Tensors, memory_bytes: int) -> None:
    before = tensors.sha256()
    with Snapshot(tensors, memory_bytes) as snapshot:
        tensors.block.add_(1)
        for _ in range(2):
            assert Tensors.copy_of(tensors.schema, snapshot.state()).sha256() == before


@pytest.mark.parametrize("memory_bytes", [1 << 20, 1 << 30])
def test_a_large_state_does_not_change_with_what_it_was_taken_from(tmp_path: Path, memory_bytes: int) -> None:
    tensors = filled(LARGE, 0)
    before = tensors.sha256()
    with Snapshot(tensors, memory_bytes, tmp_path) as snapshot:
        tensors.block.zero_()
        found = snapshot.state()
        assert Tensors.copy_of(LARGE, found).sha256() == before
        found["float32.exp_avg"].zero_()
        assert Tensors.copy_of(LARGE, snapshot.state()).sha256() == before


def test_tensors_in_any_layout_are_kept() -> None:
    state: dict[str, Tensor] = {"transposed": torch.arange(6.0).view(2, 3).T, "empty": torch.empty(0, dtype=torch.int64)}
    with Snapshot(state) as snapshot:
        found = snapshot.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


OTHER_TENSORS = {
    "complex64": torch.tensor([[1 + 2j, -0.5j], [float("inf"), 3]], dtype=torch.complex64),
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "uint16": torch.tensor([0, 1, 65535], dtype=torch.uint16),
    "bool": torch.tensor([True, False, True]),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(-0.25, dtype=torch.float64),
    "complex scalar": torch.tensor(1j),
    "empty": torch.empty(0, 3, dtype=torch.complex64),
    "part": torch.arange(10, dtype=torch.int16)[3:8],
    "one of a column": torch.arange(4.0).view(2, 2)[:1, 0],
}


def check_kept(state: dict[str, Tensor], memory_bytes: int) -> None:
    with Snapshot(state, memory_bytes) as snapshot:
        found = snapshot.state()
    assert list(found) == list(state)
    for name, value in state.items():
        kept = found[name]
        assert (kept.dtype, kept.shape, kept.device) == (value.dtype, value.shape, value.device)
        assert torch.equal(kept, value)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_a_state_may_hold_what_cannot_travel(name: str, memory_bytes: int) -> None:
    check_kept({name: OTHER_TENSORS[name]}, memory_bytes)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_tensors_of_all_kinds_are_kept_beside_each_other(memory_bytes: int) -> None:
    check_kept(OTHER_TENSORS, memory_bytes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_state_on_an_accelerator_comes_back_there() -> None:
    check_kept({"moment": torch.arange(5.0, device="cuda"), "step": torch.tensor(3)}, 1 << 20)


def test_an_algorithm_without_state_has_an_empty_one() -> None:
    with Snapshot({}) as snapshot:
        assert snapshot.state() == {}


def test_a_file_that_cannot_be_written_is_an_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^cannot keep the algorithm's state in .*/nowhere: No such file or directory$"):
        Snapshot(filled(LARGE, 0), 1 << 20, tmp_path / "nowhere")
