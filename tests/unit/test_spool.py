import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.engines.spool import Block, Spool
from feddkd.errors import StateError

SLOT = 64


def some_bytes(length: int, seed: int) -> Tensor:
    return torch.randint(256, (length,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(st.lists(st.tuples(st.integers(1, SLOT), st.booleans()), max_size=60), st.integers(0, 1000))
def test_blocks_give_back_what_was_written_wherever_they_are(sizes: list[tuple[int, bool]], budget_bytes: int) -> None:
    spool = Spool(budget_bytes, SLOT)
    kept: list[tuple[Block, Tensor]] = []
    for seed, (size, free_one) in enumerate(sizes):
        data = some_bytes(size, seed)
        block = spool.reserve(size)
        block.take(data.numpy().data)
        block.write()
        kept.append((block, data))
        assert spool.used_bytes <= budget_bytes
        if free_one:
            kept.pop(seed % len(kept))[0].free()
        for each, expected in kept:
            assert torch.equal(each.read(torch.empty(SLOT, dtype=torch.uint8)), expected)
    spool.close()


def test_slots_of_the_file_are_used_again() -> None:
    spool = Spool(0, SLOT)
    for seed in range(10):
        blocks = [spool.reserve(SLOT) for _ in range(3)]
        for block in blocks:
            block.take(some_bytes(SLOT, seed).numpy().data)
            block.write()
        for block in blocks:
            block.free()
    assert spool.file_bytes == 3 * SLOT


def test_the_file_has_no_name_and_is_made_only_when_it_is_needed(tmp_path: Path) -> None:
    spool = Spool(SLOT, SLOT, tmp_path)
    first, second = spool.reserve(SLOT), spool.reserve(SLOT)
    assert (first.in_memory, second.in_memory) == (True, False)
    assert list(tmp_path.iterdir()) == []
    spool.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=str(tmp_path / "gone")):
        Spool(0, SLOT, tmp_path / "gone").reserve(1)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spool = Spool(0, SLOT, tmp_path)
    block = spool.reserve(SLOT)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    block.take(some_bytes(SLOT, 0).numpy().data)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StateError, match=f"{tmp_path}: No space left on device"):
        block.write()


def test_a_write_that_is_cut_short_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(0, SLOT)
    block, data = spool.reserve(SLOT), some_bytes(SLOT, 1)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, rest, offset: whole(descriptor, rest[:7], offset))
    block.take(data.numpy().data)
    block.write()
    assert torch.equal(block.read(torch.empty(SLOT, dtype=torch.uint8)), data)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("offset", range(1, 4))
def test_bytes_that_are_taken_from_within_a_message_are_aligned_to_be_looked_at(in_memory: bool, offset: int) -> None:
    spool = Spool(SLOT if in_memory else 0, SLOT)
    numbers = torch.arange(SLOT // 8, dtype=torch.float64)
    message = b"x" * offset + numbers.numpy().tobytes()
    block = spool.reserve(SLOT)
    assert block.in_memory == in_memory
    assert torch.equal(block.take(memoryview(message)[offset:]).view(torch.float64), numbers)
    spool.close()


def test_a_block_for_the_file_holds_the_message_itself_until_it_is_written() -> None:
    spool = Spool(0, SLOT)
    message = bytearray(some_bytes(SLOT, 0).numpy().tobytes())
    waiting = [spool.reserve(SLOT) for _ in range(3)]
    looked_at = {block.take(memoryview(message)).data_ptr() for block in waiting}
    assert len(looked_at) == 1  # one copy, however many wait
    with pytest.raises(BufferError):
        message.clear()
    for block in waiting:
        block.write()
    message.clear()
    spool.close()
