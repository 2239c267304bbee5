"""Code each element with one to four bits after a random rotation: EDEN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from feddkd.compression.bits import pack, read_as, unpack
from feddkd.compression.checks import check_code_norm, check_own_norm, check_scales, check_size, wide_norm
from feddkd.compression.hadamard import Rotation
from feddkd.registry import CODECS

_BLOCK = 4096
_LEAST_BLOCK = 64
_MOST_FILLING = 64  # a block is filled up with at most this part of a vector's elements, or fewer than a least block's
_TILE_ELEMENTS = 1 << 17  # little enough for a cache, enough for the cost of a call not to count

# The positive Lloyd-Max centroids of the standard normal distribution (Max, IRE Transactions on
# Information Theory, 1960) by bits, in units of 2**-10. Sums and differences of such numbers are
# multiples of 2**-10, rounded or not: a decoder meets no subnormal number.
_GRID = 2.0**-10
_CENTROIDS = {
    1: (817,),
    2: (464, 1547),
    3: (251, 774, 1376, 2204),
    4: (131, 397, 673, 965, 1286, 1657, 2119, 2798),
}
_LEAST_SCALE = 2.0**-116  # times 2**-10 this is the smallest normal float32


class _Blocks(NamedTuple):
    """Some blocks of one size: which, where their elements start and end, the elements of one."""

    numbers: slice
    start: int
    stop: int
    size: int


@CODECS.register("eden1", "eden2", "eden3", "eden4")
@dataclass(frozen=True)
class Eden:
    """Rotates blocks at random, and codes each element by the nearest of 2**bits centroids.

    EDEN (Vargaftik et al., ICML 2022, arXiv 2108.08842), with a rotation by two Walsh-Hadamard
    transforms with random signs. The elements of a rotated block are nearly normal, so the
    centroids need not be sent. Blocks have 4096 elements; what remains is split into powers of two
    down to 64, until it takes less than 1.6 % of the vector, or 64 elements, to fill up a block with
    zeros. A code holds a float32 scale for each block, then the numbers of the centroids, one block
    after the other. From 16384 elements on, filling and scales each add less than 2 %.
    Implements `Codec`.

    With D the distortion of the centroids, the squared error is D ||x||^2 with the scale of least
    error, and D / (1 - D) ||x||^2 with the unbiased one, for whatever vector x. D is 0.3634,
    0.1175, 0.0345 and 0.0095 for 1 to 4 bits. What bias is left is the rotation's: over 1000 seeds
    the mean of eden1 was within its own spread, but for two elements alone in a block of 64, whose
    mean was off by 4 % of the norm (by 50 % with a single transform, at any size), and for one
    element that is all of a block's norm but a thousandth, whose mean was off by up to 5 %.

    Attributes:
        bits: 1 to 4.
        unbiased: scale such that the mean over seeds is the vector; with the least error otherwise.
    """

    bits: int
    unbiased: bool
    error_feedback: bool = False

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls(int(name.removeprefix("eden")), unbiased)

    @property
    def name(self) -> str:
        return f"eden{self.bits}"

    def size_bytes(self, num_elements: int) -> int:
        sizes = _tail_sizes(num_elements)
        full = num_elements // _BLOCK
        return 4 * (full + len(sizes)) + (full * _BLOCK + sum(sizes)) * self.bits // 8

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        num_elements = len(elements)
        code = torch.empty(self.size_bytes(num_elements), dtype=torch.uint8, device=elements.device)
        scales, octets = self._parts(code, num_elements)
        rotation = Rotation.of(seed, _BLOCK, elements.device)
        for blocks in _tiles(num_elements):
            tile = elements[blocks.start : blocks.stop]
            if len(tile) < blocks.stop - blocks.start:
                tile = torch.nn.functional.pad(tile, (0, blocks.stop - blocks.start - len(tile)))
            tile = tile.view(-1, blocks.size)
            scales[blocks.numbers], codes = self._quantize(tile, rotation)
            self._octets(octets, blocks).copy_(pack(codes, self.bits).t())
        check_own_norm(self._norm(scales))
        return code

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        scales, octets = self._parts(code, num_elements)
        rotation = Rotation.of(seed, _BLOCK, code.device)
        centroids = self._centroids(code.device)
        elements = torch.empty(num_elements, dtype=torch.float32, device=code.device)
        for blocks in _tiles(num_elements):
            codes = unpack(self._octets(octets, blocks).t().contiguous(), self.bits)
            transform = rotation.transform_of(*codes.shape)
            _look_up(centroids, codes, out=transform.columns)
            tile = rotation.backward(transform)
            target = elements[blocks.start : blocks.stop]
            if len(target) < tile.numel():
                tile = tile[:, : len(target)]
            target.view(tile.shape).copy_(tile).mul_(scales[blocks.numbers, None])
        return elements

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        scales, _ = self._parts(code, num_elements)
        check_code_norm(self._norm(scales))
        check_scales(scales, _LEAST_SCALE)

    def _parts(self, code: Tensor, num_elements: int) -> tuple[Tensor, Tensor]:
        """Split a code into scales, float32 [blocks], and the rest, uint8."""
        blocks = num_elements // _BLOCK + len(_tail_sizes(num_elements))
        scales, octets = code.tensor_split([4 * blocks])
        return read_as(scales, torch.float32), octets

    def _octets(self, octets: Tensor, blocks: _Blocks) -> Tensor:
        """Choose what codes some blocks: uint8 [blocks, size bits / 8]."""
        span = slice(blocks.start * self.bits // 8, blocks.stop * self.bits // 8)
        return octets[span].view(-1, blocks.size * self.bits // 8)

    def _norm(self, scales: Tensor) -> float:
        """Compute the largest norm that a code with these scales decodes to."""
        return wide_norm(scales, _BLOCK**1.5 * _CENTROIDS[self.bits][-1] * _GRID)

    def _centroids(self, device: torch.device) -> Tensor:
        """Return all centroids, ascending: float32 [2**bits]."""
        positive = _CENTROIDS[self.bits]
        ascending = [-number * _GRID for number in reversed(positive)] + [number * _GRID for number in positive]
        return torch.tensor(ascending, dtype=torch.float32, device=device)

    def _quantize(self, tile: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Find scales, float32 [t], and codes, uint8 [h, t], of blocks, float32 [t, h]."""
        height = tile.shape[1]
        norms = torch.linalg.vector_norm(tile, dim=1, dtype=torch.float64)
        norms.masked_fill_(norms < _LEAST_SCALE * height, 0)  # their scales would be too small
        to_unit_variance = (norms * math.sqrt(height)).reciprocal().masked_fill_(norms == 0, 0)
        transform = rotation.forward(tile, to_unit_variance.to(torch.float32))
        centroids = self._centroids(tile.device)
        codes = _nearest(transform.columns, centroids, spare=transform.spare)
        quantized = _look_up(centroids, codes, out=transform.spare)
        products = transform.columns.mul_(quantized).sum(0).to(torch.float64)
        if self.unbiased:
            scales = norms / (math.sqrt(height) * products)
        else:
            squares = quantized.square_().sum(0).to(torch.float64)
            scales = norms * products / (height * math.sqrt(height) * squares)
        scales = scales.masked_fill_(norms == 0, 0).to(torch.float32)
        return scales.masked_fill_(scales < _LEAST_SCALE, 0), codes


def _tail_sizes(num_elements: int) -> list[int]:
    """Split what remains after blocks of 4096 into decreasing powers of two; the last is filled up.

    As soon as filling up costs little, it is done: many small blocks take longer than one.
    """
    rest, size = -(-(num_elements % _BLOCK) // _LEAST_BLOCK) * _LEAST_BLOCK, _BLOCK
    sizes = []
    while rest > 0:
        if rest >= size or size - rest <= num_elements // _MOST_FILLING:
            sizes.append(size)
            rest -= size
        size //= 2
    return sizes


def _tiles(num_elements: int) -> Iterator[_Blocks]:
    """Yield the blocks of a vector, some of one size at a time."""
    full = num_elements // _BLOCK
    step = max(1, _TILE_ELEMENTS // _BLOCK)
    for first in range(0, full, step):
        last = min(first + step, full)
        yield _Blocks(slice(first, last), first * _BLOCK, last * _BLOCK, _BLOCK)
    start = full * _BLOCK
    for number, size in enumerate(_tail_sizes(num_elements), start=full):
        yield _Blocks(slice(number, number + 1), start, start + size, size)
        start += size


def _nearest(values: Tensor, centroids: Tensor, spare: Tensor) -> Tensor:
    """Find the nearest centroids by counting the midpoints below each value: uint8, like `values`."""
    first, *others = ((centroids[1:] + centroids[:-1]) / 2).tolist()
    count = torch.gt(values, first, out=torch.empty_like(values))  # as numbers: faster than as bool
    for midpoint in others:
        count += torch.gt(values, midpoint, out=spare)
    return count.to(torch.int8).view(torch.uint8)  # faster than to uint8


def _look_up(centroids: Tensor, codes: Tensor, out: Tensor) -> Tensor:
    """Write the centroids of codes into a float32 tensor like them, and return it."""
    torch.index_select(centroids, 0, codes.view(-1).to(torch.int64), out=out.view(-1))
    return out
