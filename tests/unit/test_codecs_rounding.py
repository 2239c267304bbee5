"""fp16, bf16, int8 and int4 against slow versions in numpy."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from feddkd.compression.checks import LARGEST_NORM
from feddkd.compression.codecs import find
from feddkd.compression.draws import draw_noise, draw_signs, generator_of
from feddkd.errors import SchemaError

BLOCKS = {"int8": (8, 1024), "int4": (4, 256)}


def vector_of(size: int, seed: int, spread: float = 3.0) -> NDArray[np.float32]:
    """Elements of very unlike magnitudes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(size) * np.exp(spread * random.standard_normal(size))).astype(np.float32)


def slow_integers(code: bytes, size: int, bits: int, block: int) -> NDArray[np.float32]:
    """Read a code of integers one element at a time, as the format says."""
    blocks = math.ceil(size / block)
    scales, octets = struct.unpack(f"<{blocks}f", code[: 4 * blocks]), code[4 * blocks :]
    out = np.empty(size, np.float32)
    for place in range(size):
        number, within = divmod(place, block)
        if bits == 8:
            level = struct.unpack("b", octets[place : place + 1])[0]
        else:
            half = math.ceil(min(block, size - number * block) / 2)
            octet = octets[number * block // 2 + within % half]
            level = (octet >> 4 if within >= half else octet & 15) - 8
        out[place] = np.float32(level) * np.float32(scales[number])
    return out


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("unbiased", [True, False])
@given(size=st.one_of(st.integers(1, 20), st.integers(1, 3000)), seed=st.integers(0, 2**32 - 1))
def test_integers_are_laid_out_as_the_format_says(name: str, unbiased: bool, size: int, seed: int) -> None:
    codec = find(name, unbiased=unbiased)
    code = codec.encode(torch.from_numpy(vector_of(size, seed)), seed)
    decoded = codec.decode(code, size, seed).numpy()
    np.testing.assert_array_equal(decoded, slow_integers(code.numpy().tobytes(), size, *BLOCKS[name]))


@pytest.mark.parametrize("name", BLOCKS)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
def test_no_element_is_off_by_more_than_a_step_or_half_a_step(name: str, size: int, seed: int) -> None:
    bits, block = BLOCKS[name]
    vector = vector_of(size, seed)
    largest = np.maximum.reduceat(np.abs(vector), np.arange(0, size, block))
    step = np.repeat(largest / (2 ** (bits - 1) - 1), block)[:size]
    for unbiased, share in ((True, 1.0), (False, 0.5)):
        codec = find(name, unbiased=unbiased)
        decoded = codec.decode(codec.encode(torch.from_numpy(vector), seed), size, seed).numpy()
        assert np.all(np.abs(decoded - vector) <= share * step * (1 + 1e-4))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_mean_over_seeds_is_the_vector(name: str) -> None:
    bits, block = BLOCKS[name]
    vector = torch.from_numpy(vector_of(4 * block + 100, 1, spread=0.3))
    codec, seeds = find(name, unbiased=True), range(400)
    decoded = torch.stack([codec.decode(codec.encode(vector, seed), len(vector), seed) for seed in seeds]).double()
    deviations = decoded.mean(0) - vector
    # The variance of a rounded element is known: f (1 - f) steps squared, f the fraction that is rounded.
    pieces = torch.split(vector, block)
    steps = torch.cat([piece.abs().amax().expand(len(piece)) for piece in pieces]).double() / (2 ** (bits - 1) - 1)
    fractions = (vector / steps) % 1
    std = steps * (fractions * (1 - fractions)).sqrt() / math.sqrt(len(seeds))
    loose = fractions.clamp(max=0.5).minimum(1 - fractions) > 0.01  # the others are hardly ever rounded the other way
    z = deviations[loose] / std[loose]
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / len(z)))
    assert abs(float(z.mean())) < 4 / math.sqrt(len(z))


@pytest.mark.parametrize("name", BLOCKS)
def test_rounding_to_nearest_loses_less_than_rounding_without_bias(name: str) -> None:
    vector = torch.from_numpy(vector_of(5000, 2, spread=0))
    errors = []
    for unbiased in (False, True):
        codec = find(name, unbiased=unbiased)
        errors.append(float((codec.decode(codec.encode(vector, 1), 5000, 1) - vector).square().sum()))
    assert errors[0] == pytest.approx(errors[1] / 2, rel=0.1)


@given(size=st.integers(1, 500), seed=st.integers(0, 2**32 - 1), exponent=st.integers(-60, 40))
def test_fp16_rounds_to_nearest_even_after_one_power_of_two(size: int, seed: int, exponent: int) -> None:
    vector = vector_of(size, seed) * np.float32(2.0**exponent)
    assume(2 * float(np.abs(vector).max()) * math.sqrt(size) <= LARGEST_NORM)
    codec = find("fp16", unbiased=True)
    decoded = codec.decode(codec.encode(torch.from_numpy(vector), 0), size, 0).numpy()
    power = max(math.frexp(np.abs(vector).max())[1] - 15, -102)
    expected = (vector.astype(np.float64) * 2.0**-power).astype(np.float16).astype(np.float64) * 2.0**power
    np.testing.assert_array_equal(decoded.astype(np.float64), expected)


@given(size=st.integers(1, 500), seed=st.integers(0, 2**32 - 1))
def test_bf16_rounds_to_nearest_even(size: int, seed: int) -> None:
    vector = vector_of(size, seed)
    codec = find("bf16", unbiased=True)
    decoded = codec.decode(codec.encode(torch.from_numpy(vector), 0), size, 0).numpy()
    bits = vector.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
    np.testing.assert_array_equal(decoded, rounded.astype(np.uint32).view(np.float32))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, -math.inf, 1e-40, 1e17, 3e38])
def test_a_scale_that_no_encoder_makes_is_refused(name: str, scale: float) -> None:
    codec = find(name, unbiased=False)
    code = codec.encode(torch.from_numpy(vector_of(3000, 3)), 0)
    code[4:8] = torch.frombuffer(bytearray(struct.pack("<f", scale)), dtype=torch.uint8)
    with pytest.raises(SchemaError, match="a code "):
        codec.check(code, 3000)
    with pytest.raises(SchemaError, match="a code "):
        codec.decode(code, 3000, 0)


@pytest.mark.parametrize(("octets", "what"), [("007e", "NaN"), ("00fc", "infinite"), ("ff7b", "too large")])
def test_an_element_that_no_encoder_makes_is_refused(octets: str, what: str) -> None:
    for name, two in {"fp16": octets, "bf16": {"007e": "c07f", "00fc": "80ff", "ff7b": "7f7f"}[octets]}.items():
        codec = find(name, unbiased=False)
        code = codec.encode(torch.from_numpy(vector_of(300, 3)), 0)
        code[4:6] = torch.frombuffer(bytearray(bytes.fromhex(two)), dtype=torch.uint8)
        if name == "fp16":
            code[-1] = 255
        with pytest.raises(SchemaError, match=what):
            codec.check(code, 300)


def test_an_exponent_that_no_encoder_makes_is_refused() -> None:
    codec = find("fp16", unbiased=False)
    code = codec.encode(torch.from_numpy(vector_of(300, 3)), 0)
    code[-1] = 25
    with pytest.raises(SchemaError, match="exponent -103"):
        codec.decode(code, 300, 0)


SEEDS = (0, 1, 2**31 + 5, 2**32, 2**63 - 1)


def twister(seed: int, count: int) -> NDArray[np.uint64]:
    """The words that numpy's Mersenne Twister gives for a seed."""
    raw = np.random.RandomState((seed * 0x9E3779B97F4A7C15 % 2**64) >> 32).randint(0, 2**32, 2 * count, dtype=np.uint64)
    return (raw[0::2] << np.uint64(32)) | raw[1::2]


@pytest.mark.parametrize("seed", SEEDS)
def test_signs_are_those_of_the_mersenne_twister(seed: int) -> None:
    """So they are the same with every version of torch that passes this test, and can be drawn without torch."""
    bits = np.unpackbits(twister(seed, 3).astype("<u8").view(np.uint8), bitorder="little")
    expected = 2.0 * bits[:150].astype(np.float32) - 1
    np.testing.assert_array_equal(draw_signs(150, generator_of(seed)).numpy(), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_that_of_the_mersenne_twister(seed: int) -> None:
    expected = (twister(seed, 5).astype("<u8").view(np.int16)[:18].astype(np.float64) + 0.5) / 65536
    noise = draw_noise(18, generator_of(seed), torch.device("cpu"))
    np.testing.assert_array_equal(noise.numpy(), expected.astype(np.float32))


def test_every_bit_of_a_seed_counts() -> None:
    drawn = {tuple(draw_signs(64, generator_of(1 << bit)).tolist()) for bit in range(63)}
    assert len(drawn) == 63
