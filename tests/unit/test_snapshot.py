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


def test_an_algorithm_without_state_has_an_empty_one() -> None:
    with Snapshot({}) as snapshot:
        assert snapshot.state() == {}


def test_a_file_that_cannot_be_written_is_an_error_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^cannot keep the algorithm's state in .*/nowhere: No such file or directory$"):
        Snapshot(filled(LARGE, 0), 1 << 20, tmp_path / "nowhere")
