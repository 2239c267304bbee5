"""Top-k and rand-k against slow versions in numpy."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.compression.codecs import find
from feddkd.errors import SchemaError

shares = st.sampled_from([1e-5, 0.001, 0.01, 0.1, 0.25])
sizes = st.one_of(st.integers(1, 300), st.integers(1, 100_000))


def gaussian(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def kept(share: float, size: int) -> int:
    return max(1, round(share * size))


@given(size=sizes, share=shares, seed=st.integers(0, 2**32 - 1))
def test_topk_keeps_the_largest_as_they_are(size: int, share: float, seed: int) -> None:
    vector = gaussian(size, seed)
    codec = find(f"topk:{share}", unbiased=True)
    decoded = codec.decode(codec.encode(vector, 0), size, 0)
    largest = np.argsort(-np.abs(vector.numpy()), kind="stable")[: kept(share, size)]
    expected = np.zeros(size, np.float32)
    expected[largest] = vector.numpy()[largest]
    np.testing.assert_array_equal(decoded.numpy(), expected)


@given(size=sizes, share=shares, seed=st.integers(0, 2**32 - 1))
def test_topk_is_laid_out_as_the_format_says(size: int, share: float, seed: int) -> None:
    vector, count = gaussian(size, seed), kept(share, size)
    octets = find(f"topk:{share}", unbiased=True).encode(vector, 0).numpy().tobytes()
    values = struct.unpack(f"<{count}f", octets[: 4 * count])
    code, low_bytes = octets[4 * count :], 1
    if count * 2 + (count + ((size - 1) >> 16) + 8) // 8 < count + (count + ((size - 1) >> 8) + 8) // 8:
        low_bytes = 2
    low = [int.from_bytes(code[i * low_bytes : (i + 1) * low_bytes], "little") for i in range(count)]
    string = code[count * low_bytes :]
    ones = [place for place in range(8 * len(string)) if string[place % len(string)] >> (place // len(string)) & 1]
    positions = [((one - i) << (8 * low_bytes)) + low[i] for i, one in enumerate(ones)]
    assert [float(vector[place]) for place in positions] == list(values)


def test_positions_cost_what_the_docstring_says() -> None:
    size, count = 262_144, 2621
    assert 8 * find("topk:0.01", unbiased=True).size_bytes(size) / count - 32 == pytest.approx(9.4, abs=0.1)


def test_equal_magnitudes_are_all_as_good() -> None:
    vector = torch.ones(1000)
    vector[::2] = -1
    codec = find("topk:0.1", unbiased=True)
    decoded = codec.decode(codec.encode(vector, 0), 1000, 0)
    assert int((decoded != 0).sum()) == 100
    assert torch.equal(decoded[decoded != 0], vector[decoded != 0])


def write_positions(code: Tensor, count: int, low: list[int], ones: list[int]) -> Tensor:
    """Overwrite the positions in a code whose positions have eight low bits."""
    changed = code.clone()
    changed[4 * count : 5 * count] = torch.tensor(low, dtype=torch.uint8)
    string = torch.zeros(8 * (len(code) - 5 * count), dtype=torch.uint8)
    string[ones] = 1
    changed[5 * count :] = (string.view(8, -1) << torch.arange(8, dtype=torch.uint8)[:, None]).sum(0).to(torch.uint8)
    return changed


def test_positions_that_no_encoder_makes_are_refused() -> None:
    codec = find("topk:0.01", unbiased=True)
    code = codec.encode(gaussian(400, 1), 0)  # four positions; the bit string has 4 + 1 + 1 bits and two that fill it up
    good = write_positions(code, 4, [3, 200, 1, 143], [0, 1, 3, 4])
    assert codec.decode(good, 400, 0).nonzero()[:, 0].tolist() == [3, 200, 257, 399]
    bad = {
        "equal": ([3, 3, 1, 143], [0, 1, 3, 4]),
        "descending": ([200, 3, 1, 143], [0, 1, 3, 4]),
        "just out of range": ([3, 200, 1, 144], [0, 1, 3, 4]),
        "far out of range": ([3, 200, 1, 0], [0, 1, 3, 7]),
        "too few": ([3, 200, 1, 143], [0, 1, 3]),
        "too many": ([3, 200, 1, 143], [0, 1, 2, 3, 4]),
        "none": ([0, 0, 0, 0], []),
    }
    for low, ones in bad.values():
        hostile = write_positions(code, 4, low, ones)
        for read in (codec.check, lambda code, size: codec.decode(code, size, 0)):
            with pytest.raises(SchemaError, match="positions"):
                read(hostile, 400)


@pytest.mark.parametrize("name", ["topk:0.01", "randk:0.01"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2e18])
def test_a_value_that_no_encoder_makes_is_refused(name: str, value: float) -> None:
    codec = find(name, unbiased=True)
    code = codec.encode(gaussian(1000, 1), 0)
    code[8:12] = torch.frombuffer(bytearray(struct.pack("<f", value)), dtype=torch.uint8)
    for read in (codec.check, lambda code, size: codec.decode(code, size, 0)):
        with pytest.raises(SchemaError, match="a code "):
            read(code, 1000)


@given(size=sizes, share=shares, seed=st.integers(0, 2**63 - 1))
def test_randk_keeps_one_of_each_part_as_it_is(size: int, share: float, seed: int) -> None:
    vector, count = torch.arange(1.0, size + 1), kept(share, size)
    codec = find(f"randk:{share}", unbiased=True)
    decoded = codec.decode(codec.encode(vector, seed), size, seed)
    places = decoded.nonzero()[:, 0].numpy()
    bounds = np.arange(count + 1) * size // count
    assert len(places) == count
    assert np.all((bounds[:-1] <= places) & (places < bounds[1:]))
    assert torch.equal(decoded[places], vector[places])


def test_randk_draws_every_element_as_often() -> None:
    codec, vector, seeds = find("randk:0.1", unbiased=True), torch.ones(1003), 4000
    drawn = sum(codec.decode(codec.encode(vector, seed), 1003, seed) for seed in range(seeds))
    assert isinstance(drawn, Tensor)
    sizes = np.diff(np.arange(101) * 1003 // 100)
    expected = np.repeat(seeds / sizes, sizes)
    statistic = float(((drawn.numpy() - expected) ** 2 / expected).sum())
    assert abs(statistic - 903) < 4.5 * (2 * 903) ** 0.5  # chi-squared with 1003 - 100 degrees of freedom


def test_error_feedback_sends_everything_in_the_end() -> None:
    """Add what was left out to the next vector, and the sum of what was decoded stays near the sum of the vectors."""
    for name in ("topk:0.1", "randk:0.1"):
        codec, vector = find(name, unbiased=True), gaussian(1000, 4)
        left, total = torch.zeros(1000), torch.zeros(1000)
        for seed in range(400):
            left += vector
            decoded = codec.decode(codec.encode(left, seed), 1000, seed)
            left -= decoded
            total += decoded
        assert float((total / 400 - vector).norm() / vector.norm()) < 0.06
