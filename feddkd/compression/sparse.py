"""Keep a share of the elements: the largest, or some that are drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from feddkd.compression.bits import pack, read_as, unpack
from feddkd.compression.checks import check_code_norm, check_own_norm, check_size, wide_norm
from feddkd.compression.draws import draw_words, generator_of
from feddkd.errors import ConfigError, SchemaError
from feddkd.registry import CODECS, LARGEST_SHARE


def _count(share: float, num_elements: int) -> int:
    """Tell how many elements are kept."""
    return max(1, round(share * num_elements))


def _scatter(positions: Tensor, values: Tensor, num_elements: int) -> Tensor:
    elements = torch.zeros(num_elements, dtype=torch.float32, device=values.device)
    elements[positions] = values
    return elements


def _share_in(name: str) -> float:
    """Read the share of elements that is kept. Raises ConfigError if it is out of range."""
    try:
        share = float(name.partition(":")[2])
    except ValueError:
        share = 0.0
    if not 0 < share <= LARGEST_SHARE:
        raise ConfigError(f'codec "{name}": after the colon stands a share above 0 and up to {LARGEST_SHARE}')
    return share


@CODECS.register("topk:SHARE")
@dataclass(frozen=True)
class TopK:
    """Keeps the elements of largest magnitude as they are: top-k.

    Meant for senders that add what is left out to their next vector (Stich et al., NeurIPS 2018).
    A code holds the values, float32 [k], and then their positions in about 9 bits each where one in
    a hundred is kept: the lowest 8 or 16 bits of each, and the others in the code of Elias and Fano,
    a bit string whose i-th one stands at the others plus i. Implements `Codec`.

    Attributes:
        share: of the elements, in (0, 0.25]; at least one is kept.
    """

    name: str
    share: float
    error_feedback: bool = True

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls(name, _share_in(name))

    def size_bytes(self, num_elements: int) -> int:
        count = _count(self.share, num_elements)
        return 4 * count + _Positions.of(count, num_elements).size_bytes

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        count = _count(self.share, len(elements))
        positions = elements.abs().topk(count, sorted=False).indices.sort().values
        values = elements[positions]
        check_own_norm(wide_norm(values))
        return torch.cat([values.view(torch.uint8), _Positions.of(count, len(elements)).encode(positions)])

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        values, positions = self._read(code, num_elements)
        return _scatter(positions, values, num_elements)

    def check(self, code: Tensor, num_elements: int) -> None:
        self._read(code, num_elements)

    def _read(self, code: Tensor, num_elements: int) -> tuple[Tensor, Tensor]:
        """Split a code into values, float32 [k], and positions, int64 [k]. Raises SchemaError."""
        check_size(code, self.size_bytes(num_elements))
        count = _count(self.share, num_elements)
        values = read_as(code[: 4 * count], torch.float32)
        check_code_norm(wide_norm(values))
        return values, _Positions.of(count, num_elements).decode(code[4 * count :])


@CODECS.register("randk:SHARE")
@dataclass(frozen=True)
class RandK:
    """Keeps elements that the seed draws as they are: rand-k.

    The vector is cut into k parts of equal size, but for one element, and one element is drawn from
    each, uniformly. Positions need not be sent. The elements are not scaled up: the codec is meant
    for senders that add what is left out to their next vector. A code holds the values, float32 [k].
    Implements `Codec`.

    Attributes:
        share: of the elements, in (0, 0.25]; at least one is kept.
    """

    name: str
    share: float
    error_feedback: bool = True

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls(name, _share_in(name))

    def size_bytes(self, num_elements: int) -> int:
        return 4 * _count(self.share, num_elements)

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        check_own_norm(wide_norm(elements))
        return elements[self._positions(len(elements), seed).to(elements.device)].view(torch.uint8)

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        positions = self._positions(num_elements, seed).to(code.device)
        return _scatter(positions, read_as(code, torch.float32), num_elements)

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        check_code_norm(wide_norm(read_as(code, torch.float32)))

    def _positions(self, num_elements: int, seed: int) -> Tensor:
        """Draw the positions, ascending: int64 [k] on the CPU."""
        count = _count(self.share, num_elements)
        bounds = torch.arange(count + 1) * num_elements // count
        numbers = (draw_words(count, generator_of(seed)) >> 32) & 0xFFFFFFFF
        return bounds[:-1] + (numbers * bounds.diff() >> 32)


@dataclass(frozen=True)
class _Positions:
    """Codes k ascending positions out of n in a number of bytes that depends on k and n alone.

    Attributes:
        low_bits: how many bits of each position are written as they are, 8 or 16.
    """

    count: int
    num_elements: int
    low_bits: int

    @classmethod
    def of(cls, count: int, num_elements: int) -> _Positions:
        """Choose the shorter of two codes."""
        return min((cls(count, num_elements, bits) for bits in (8, 16)), key=lambda code: code.size_bytes)

    @property
    def size_bytes(self) -> int:
        return self.count * self.low_bits // 8 + self._string_bytes

    @property
    def _string_bytes(self) -> int:
        return (self.count + ((self.num_elements - 1) >> self.low_bits) + 8) // 8

    def encode(self, positions: Tensor) -> Tensor:
        """Encode positions, int64 [k], in uint8 [size_bytes]."""
        low = positions.view(torch.uint8).view(-1, 8)[:, : self.low_bits // 8].reshape(-1)
        string = torch.zeros(8 * self._string_bytes, dtype=torch.uint8, device=positions.device)
        string[(positions >> self.low_bits) + torch.arange(self.count, device=positions.device)] = 1
        return torch.cat([low, pack(string[:, None], 1)[:, 0]])

    def decode(self, code: Tensor) -> Tensor:
        """Decode positions: int64 [k]. Raises SchemaError if they do not ascend or are too large."""
        low, packed = code.tensor_split([self.count * self.low_bits // 8])
        string = unpack(packed[:, None], 1)[:, 0]
        if int(string.sum()) != self.count:
            raise SchemaError(f"a code has {int(string.sum())} positions instead of {self.count}")
        high = string.nonzero()[:, 0] - torch.arange(self.count, device=code.device)
        octets = low.view(self.count, -1).to(torch.int64)
        positions = high << self.low_bits
        for place in range(self.low_bits // 8):
            positions |= octets[:, place] << (8 * place)
        if (positions.diff() <= 0).any() or int(positions[-1]) >= self.num_elements:
            raise SchemaError("a code has positions that do not ascend or are out of range")
        return positions
