"""Round each element to an integer of 8 or 4 bits times the scale of its block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from feddkd.compression.bits import pack, read_as, unpack
from feddkd.compression.checks import (
    SMALLEST_NORMAL,
    check_code_norm,
    check_own_norm,
    check_scales,
    check_size,
    wide_norm,
)
from feddkd.compression.draws import draw_noise, generator_of
from feddkd.registry import CODECS

_TILE_ELEMENTS = 1 << 17  # little enough for a cache, enough for the cost of a call not to count


_BITS_AND_BLOCK = {"int8": (8, 1024), "int4": (4, 256)}


@CODECS.register(*_BITS_AND_BLOCK)
@dataclass(frozen=True)
class Integer:
    """Divides a block by its scale and rounds to integers from -L to L, L = 2**(bits - 1) - 1.

    The scale, a float32, is the largest magnitude of the block over L; it is 0 where that would not
    be a normal number. A code holds the scales, then the integers: int8, or at 4 bits uint8 of two
    integers plus 8, of which the second lies half a block after the first. Scales add 0.4 % to int8
    (blocks of 1024) and 3.1 % to int4 (blocks of 256). Implements `Codec`.

    Attributes:
        bits: 8 or 4.
        block: elements of a block, an even number; the last block may be shorter.
        stochastic: round up with a probability equal to the fraction, so that the mean over seeds
            is the vector itself (Alistarh et al., QSGD, NeurIPS 2017); to nearest even otherwise.
    """

    name: str
    bits: int
    block: int
    stochastic: bool
    error_feedback: bool = False

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        bits, block = _BITS_AND_BLOCK[name]
        return cls(name, bits, block, stochastic=unbiased)

    def size_bytes(self, num_elements: int) -> int:
        return 4 * self._blocks(num_elements) + (num_elements * self.bits + 7) // 8

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        num_elements = len(elements)
        code = torch.empty(self.size_bytes(num_elements), dtype=torch.uint8, device=elements.device)
        scales, octets = self._parts(code, num_elements)
        generator = generator_of(seed)
        for blocks, span, size in self._tiles(num_elements):
            tile = elements[span].view(-1, size)
            scales[blocks] = self._scales(tile)
            levels = self._round(tile, scales[blocks], generator)
            octets[self._bytes(span)].view(len(tile), -1).copy_(self._pack(levels))
        check_own_norm(self._norm(scales))
        return code

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        scales, octets = self._parts(code, num_elements)
        elements = torch.empty(num_elements, dtype=torch.float32, device=code.device)
        for blocks, span, size in self._tiles(num_elements):
            tile = elements[span].view(-1, size)
            tile.copy_(self._unpack(octets[self._bytes(span)].view(len(tile), -1), size))
            if self.bits == 4:
                tile.sub_(8)
            tile.mul_(scales[blocks, None])
        return elements

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        scales, _ = self._parts(code, num_elements)
        check_code_norm(self._norm(scales))
        check_scales(scales, SMALLEST_NORMAL)

    def _blocks(self, num_elements: int) -> int:
        return -(-num_elements // self.block)

    def _parts(self, code: Tensor, num_elements: int) -> tuple[Tensor, Tensor]:
        """Split a code into scales, float32 [blocks], and the rest, uint8."""
        scales, octets = code.tensor_split([4 * self._blocks(num_elements)])
        return read_as(scales, torch.float32), octets

    def _tiles(self, num_elements: int) -> Iterator[tuple[slice, slice, int]]:
        """Yield some blocks of one size at a time: which blocks, which elements, elements of one."""
        full = num_elements // self.block
        step = max(1, _TILE_ELEMENTS // self.block)
        for start in range(0, full, step):
            stop = min(start + step, full)
            yield slice(start, stop), slice(start * self.block, stop * self.block), self.block
        if num_elements % self.block:
            yield slice(full, full + 1), slice(full * self.block, num_elements), num_elements % self.block

    def _bytes(self, span: slice) -> slice:
        """Tell where the integers of some elements lie; only the last may fill half a byte."""
        return slice(span.start * self.bits // 8, (span.stop * self.bits + 7) // 8)

    def _norm(self, scales: Tensor) -> float:
        """Compute the largest norm that a code with these scales decodes to."""
        return wide_norm(scales, 2.0 ** (self.bits - 1) * math.sqrt(self.block))

    def _scales(self, tile: Tensor) -> Tensor:
        scales = tile.abs().amax(1).div_(2.0 ** (self.bits - 1) - 1)
        return scales.masked_fill_(scales < SMALLEST_NORMAL, 0)

    def _round(self, tile: Tensor, scales: Tensor, generator: torch.Generator) -> Tensor:
        """Divide by the scales and round: float32 [blocks, size]."""
        inverses = scales.reciprocal().masked_fill_(scales == 0, 0)
        levels = tile * inverses[:, None]
        if self.stochastic:
            levels.add_(draw_noise(tile.numel(), generator, tile.device).view_as(tile))
        bound = 2.0 ** (self.bits - 1) - 1
        return levels.round_().clamp_(-bound, bound)

    def _pack(self, levels: Tensor) -> Tensor:
        if self.bits == 8:
            return levels.to(torch.int8).view(torch.uint8)
        codes = levels.add_(8).to(torch.uint8)
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        return pack(codes.t(), 4).t()

    def _unpack(self, octets: Tensor, size: int) -> Tensor:
        if self.bits == 8:
            return octets.view(torch.int8)
        return unpack(octets.t(), 4)[:size].t()
