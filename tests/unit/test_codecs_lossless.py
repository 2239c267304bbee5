"""The stage after a codec that compresses without loss."""

from __future__ import annotations

import importlib.util
import tracemalloc
from importlib.machinery import ModuleSpec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddkd.compression import lossless
from feddkd.compression.codecs import find
from feddkd.errors import CorruptionError

zstandard = pytest.importorskip("zstandard")


def frame_of(data: bytes) -> bytes:
    frame: bytes = zstandard.ZstdCompressor().compress(data)
    return frame


@given(data=st.binary(min_size=1, max_size=50), times=st.integers(50, 2000))
def test_what_repeats_comes_back_from_fewer_bytes(data: bytes, times: int) -> None:
    repeated = data * times
    for view in (repeated, bytearray(repeated), memoryview(repeated)):
        frame = lossless.compress(view)
        assert frame is not None
        assert len(frame) <= 0.97 * len(repeated)
        assert lossless.decompress(memoryview(frame), len(repeated)) == repeated


@given(data=st.binary(max_size=40))
def test_what_would_hardly_shrink_is_not_compressed(data: bytes) -> None:
    frame = lossless.compress(data)
    assert frame is None or len(frame) <= 0.97 * len(data)
    assert len(data) > 12 or frame is None


def test_it_pays_for_integers_of_a_normal_vector_but_not_for_random_bytes() -> None:
    generator = torch.Generator().manual_seed(1)
    integers = find("int4", unbiased=False).encode(torch.randn(100_000, generator=generator), 0)
    assert lossless.compress(integers.numpy().tobytes()) is not None
    noise = torch.randint(0, 256, (100_000,), generator=generator).to(torch.uint8)
    assert lossless.compress(noise.numpy().tobytes()) is None


@pytest.mark.parametrize("size_bytes", [0, 99_999, 100_001])
def test_another_size_than_announced_is_refused(size_bytes: int) -> None:
    with pytest.raises(CorruptionError, match=f"not of {size_bytes} bytes"):
        lossless.decompress(frame_of(bytes(100_000)), size_bytes)


def test_a_bomb_takes_no_memory() -> None:
    bomb = frame_of(bytes(1 << 28))
    assert bomb[6:10] == (1 << 28).to_bytes(4, "little")  # the size that a frame of this size states
    understating = bomb[:6] + (1000).to_bytes(4, "little") + bomb[10:]
    tracemalloc.start()
    try:
        for frame in (bomb, understating):
            with pytest.raises(CorruptionError):
                lossless.decompress(frame, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size_bytes", [1, 1000, 100_000])
def test_a_damaged_frame_is_refused(size_bytes: int) -> None:
    frame = frame_of(bytes(size_bytes))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(size_bytes))
    shorter = frame_of(bytes(size_bytes - 1)) if size_bytes > 1 else b""
    for bad in (b"", frame[:4], frame[:-1], frame + b"x", frame + frame, b"x" + frame, streamed, shorter):
        with pytest.raises(CorruptionError):
            lossless.decompress(bad, size_bytes)


def test_it_is_available_where_the_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lossless.available()

    def find_nothing(name: str) -> ModuleSpec | None:
        assert name == "zstandard"
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    assert not lossless.available()
