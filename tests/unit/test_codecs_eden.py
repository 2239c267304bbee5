"""EDEN against its published error, a slow version in numpy, and what its rotation must not leave behind."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from threads import with_every_number_of_threads
from torch import Tensor

from feddkd.compression import eden
from feddkd.compression.bits import pack, unpack
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.draws import draw_signs, generator_of
from feddkd.compression.hadamard import Rotation, Transform
from feddkd.errors import SchemaError

# The mean squared error of Lloyd-Max quantizers of the standard normal distribution (Max 1960).
DISTORTIONS = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}
# Their positive centroids (Max 1960).
CENTROIDS = {
    1: [0.7979],
    2: [0.4528, 1.5104],
    3: [0.2451, 0.7560, 1.3439, 2.1519],
    4: [0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326],
}
every_bits = pytest.mark.parametrize("bits", DISTORTIONS)


def gaussian(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def block_sizes(size: int) -> list[int]:
    """As the class says: powers of two, until to fill up takes less than a 64th of the vector, or 64 elements."""
    sizes, covered = [4096] * (size // 4096), size // 4096 * 4096
    for height in (4096, 2048, 1024, 512, 256, 128, 64):
        fits = covered + height <= math.ceil(size / 64) * 64
        if covered < size and (fits or covered + height - math.ceil(size / 64) * 64 <= size // 64):
            sizes.append(height)
            covered += height
    return sizes


def hadamard(size: int) -> NDArray[np.float64]:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def code_of(octets: bytes, place: int, height: int, bits: int) -> int:
    """Read the code of the element at `place` of a block."""
    if bits == 3:
        planes = octets[: height // 4], octets[height // 4 :]
        return code_of(planes[0], place, height, 2) + 4 * code_of(planes[1], place, height, 1)
    rows = height * bits // 8
    return octets[place % rows] >> (place // rows * bits) & ((1 << bits) - 1)


def slow_decode(code: bytes, size: int, bits: int, seed: int) -> NDArray[np.float64]:
    """Decode in float64 with a matrix for the rotation, as the format says."""
    sizes = block_sizes(size)
    scales = struct.unpack(f"<{len(sizes)}f", code[: 4 * len(sizes)])
    generator = generator_of(seed)
    first, second = (draw_signs(4096, generator).double().numpy() for _ in range(2))
    table = eden.Eden(bits, True)._centroids(torch.device("cpu")).double().numpy()
    np.testing.assert_allclose(table, [-c for c in reversed(CENTROIDS[bits])] + CENTROIDS[bits], atol=6e-4)
    out, start = [], 4 * len(sizes)
    for height, scale in zip(sizes, scales, strict=True):
        octets = code[start : start + height * bits // 8]
        start += len(octets)
        quantized = table[[code_of(octets, place, height, bits) for place in range(height)]]
        matrix = hadamard(height)
        out.append(scale * first[:height] * (matrix @ (second[:height] * (matrix @ quantized))))
    assert start == len(code)
    return np.concatenate(out)[:size]


@every_bits
@pytest.mark.parametrize("size", [1, 64, 65, 1000, 4050, 4096, 12_345])
def test_decoding_equals_a_slow_version(bits: int, size: int) -> None:
    codec = find(f"eden{bits}", unbiased=True)
    code = codec.encode(gaussian(size, size), 77)
    slow = slow_decode(code.numpy().tobytes(), size, bits, 77)
    decoded = codec.decode(code, size, 77).numpy()
    np.testing.assert_allclose(decoded, slow, rtol=0, atol=2e-6 * np.abs(slow).max())


@every_bits
def test_the_error_is_the_published_one_whatever_the_vector(bits: int) -> None:
    heavy = gaussian(40_960, 1) * torch.exp(3 * gaussian(40_960, 2))
    few = torch.zeros(40_960)
    few[::4096], few[1::4096] = 1.0, 0.5
    for vector in (gaussian(40_960, 3), heavy, few, torch.ones(40_960)):
        # Eight seeds: where one block holds nearly all of the norm, one seed is one draw.
        errors = [sum(error_share(find(f"eden{bits}", unbiased=up), vector, s) for s in range(8)) / 8 for up in (False, True)]
        distortion = DISTORTIONS[bits]
        assert errors == pytest.approx([distortion, distortion / (1 - distortion)], rel=0.04)


def error_share(codec: Codec, vector: Tensor, seed: int) -> float:
    decoded = codec.decode(codec.encode(vector, seed), len(vector), seed)
    return float((decoded - vector).double().square().sum() / vector.double().square().sum())


def test_the_scale_of_least_error_has_the_least_error() -> None:
    vector, codec = gaussian(4096, 5), find("eden1", unbiased=False)
    code = codec.encode(vector, 6)
    decoded = codec.decode(code, 4096, 6)
    errors = [float((factor * decoded - vector).square().sum()) for factor in (0.99, 1.0, 1.01)]
    assert errors[1] < min(errors[0], errors[2])


@every_bits
@pytest.mark.parametrize("kind", ["gaussian", "two of many", "eight of many", "a tail"])
def test_the_mean_over_seeds_is_the_vector(bits: int, kind: str) -> None:
    """The squared error of the mean of S codes is that of one over S: less than 4.5 standard deviations above."""
    vector = gaussian({"a tail": 700}.get(kind, 4096), 8)
    if "of many" in kind:
        vector[{"two": 2, "eight": 8}[kind.split()[0]] :] = 0
    codec, seeds = find(f"eden{bits}", unbiased=True), 200
    decoded = torch.stack([codec.decode(codec.encode(vector, 31 * s), len(vector), 31 * s) for s in range(seeds)])
    variance = decoded.double().var(0)
    z = (decoded.double().mean(0) - vector) / (variance / seeds).sqrt()
    assert float(z.abs().max()) < 5.5
    assert float(z.square().mean()) == pytest.approx(1, abs=6 * math.sqrt(2 / len(vector)) + 2 / seeds)
    # Along the vector itself, where a wrong scale would show.
    along = decoded.double() @ vector.double() / vector.double().square().sum()
    assert abs(float(along.mean()) - 1) < 4.5 * float(along.std()) / math.sqrt(seeds) + 1e-6


@every_bits
@given(size=st.integers(16_384, 1 << 22))
def test_filling_and_scales_each_take_less_than_two_percent(bits: int, size: int) -> None:
    code_bits = 8 * find(f"eden{bits}", unbiased=True).size_bytes(size)
    filled = sum(block_sizes(size))
    assert size <= filled <= 1.02 * size
    assert filled * bits < code_bits <= (filled + 0.02 * size) * bits


@every_bits
@given(size=st.integers(1, 20_000))
def test_a_code_has_a_scale_for_each_block(bits: int, size: int) -> None:
    blocks = block_sizes(size)
    assert find(f"eden{bits}", unbiased=True).size_bytes(size) == 4 * len(blocks) + sum(blocks) * bits // 8


@every_bits
def test_the_same_bits_however_many_blocks_are_computed_together(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, vector = find(f"eden{bits}", unbiased=True), gaussian(45_000, 9)
    code = codec.encode(vector, 4)
    decoded = codec.decode(code, 45_000, 4)
    for tile in (4096, 7 * 4096, 1 << 20):
        monkeypatch.setattr(eden, "_TILE_ELEMENTS", tile)
        results = with_every_number_of_threads(lambda: codec.decode(code, 45_000, 4))
        assert all(torch.equal(result, decoded) for result in results)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1e-3, -math.inf, 1e-36, 1e16, 3e38])
@pytest.mark.parametrize("block", [0, 3])
def test_a_scale_that_no_encoder_makes_is_refused(scale: float, block: int) -> None:
    codec = find("eden2", unbiased=False)
    code = codec.encode(gaussian(9000, 3), 0)
    code[4 * block : 4 * block + 4] = torch.frombuffer(bytearray(struct.pack("<f", scale)), dtype=torch.uint8)
    for read in (lambda: codec.check(code, 9000), lambda: codec.decode(code, 9000, 0)):
        with pytest.raises(SchemaError, match="a code "):
            read()


# What OpenFL 1.9 (openfl/pipelines/eden_pipeline.py, `Eden(nbits).quantize`) makes of the vector below, in hexadecimal
# digits, and by what it multiplies the centroids.
OPENFL = {
    1: ("0111100001111100001111100001111100001111100001111100001111100001", 41.7082),
    2: ("1222211112222211112222211112233210012333210002333210002333200002", 28.2130),
    3: ("3444433334444432234555432224565421124566421124676420014677520014", 26.0196),
    4: ("78888776789998755689aa964458acb963348bdc952248cdd942138deda41139", 26.6019),
}


@every_bits
def test_another_implementation_rounds_to_the_same_centroids(bits: int) -> None:
    places = np.arange(64)
    rotated = torch.from_numpy((np.sin(places * 0.7) * (places + 1)).astype(np.float32))
    nothing = Rotation(torch.ones(64), torch.ones(64))  # twice the transform is 64 times the identity
    scales, codes = eden.Eden(bits, unbiased=True)._quantize(rotated[None], nothing)
    digits, scale = OPENFL[bits]
    assert "".join(f"{code:x}" for code in codes[:, 0].tolist()) == digits
    assert float(scales[0]) * 64 == pytest.approx(scale, rel=1e-3)  # centroids are rounded to multiples of 2**-10


@pytest.mark.parametrize("height", [1, 2, 64, 512])
@pytest.mark.parametrize("count", [1, 3])
def test_the_transform_is_the_product_with_the_hadamard_matrix(height: int, count: int) -> None:
    transform = Transform(height, count, torch.device("cpu"))
    for seed in (1, 2):
        transform.columns.copy_(gaussian(height * count, seed).view(height, count))
        expected = hadamard(height) @ transform.columns.double().numpy()
        transform.apply()
        np.testing.assert_allclose(transform.columns.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("height", [64, 128, 4096])
@pytest.mark.parametrize("count", [1, 3])
def test_a_rotation_keeps_lengths_and_can_be_undone(height: int, count: int) -> None:
    blocks, factors = gaussian(height * count, 2).view(count, height), torch.arange(1.0, count + 1)
    rotation = Rotation.of(5, 4096, torch.device("cpu"))
    transform = rotation.forward(blocks, factors)
    torch.testing.assert_close(transform.columns.norm(dim=0), height * factors * blocks.norm(dim=1))
    restored = rotation.backward(transform) / height**2
    torch.testing.assert_close(restored, blocks * factors[:, None], rtol=0, atol=3e-5)


@every_bits
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_packed_codes_are_unpacked_to_themselves(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = torch.randint(0, 1 << bits, (8 * rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (rows * bits, columns)
    assert torch.equal(unpack(packed, bits), codes)
