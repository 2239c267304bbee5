"""Round each element to 16 bits: fp16 with one power of two for the chunk, and bf16."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from feddkd.compression.bits import read_as
from feddkd.compression.checks import check_code_norm, check_own_norm, check_size
from feddkd.errors import SchemaError
from feddkd.registry import CODECS

_TOP = 15  # the largest magnitude is brought just below 2**15, so that it cannot round to infinity
# From the smallest fp16 number times 2**-102, 2**-126, all that is decoded is a normal float32.
_LEAST_EXPONENT = -102
_BIAS = 128


def _largest(elements: Tensor) -> float:
    """Find the largest magnitude; NaN if an element is."""
    low, high = torch.aminmax(elements)
    return float(torch.maximum(-low, high))


def _largest_half(halves: Tensor) -> float:
    """Find the largest magnitude of 16-bit floats by their bits, of which those of NaN are largest."""
    bits = torch.amax(halves.view(torch.int16) & 0x7FFF)
    return float(bits.view(halves.dtype))


@CODECS.register("fp16")
@dataclass(frozen=True)
class Half:
    """Rounds to float16, to nearest even, after a division by a power of two.

    The power brings the largest magnitude of the chunk to between 2**14 and 2**15: nothing
    overflows, and what is less than 2**-28 of the largest loses precision. Where the largest is
    below 2**-87, it is not brought so high. A code has 2 n + 1 bytes: the float16 elements, then the
    exponent plus 128. Implements `Codec`.
    """

    name: str = "fp16"
    error_feedback: bool = False

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls()

    def size_bytes(self, num_elements: int) -> int:
        return 2 * num_elements + 1

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        largest = _largest(elements)
        check_own_norm(2 * largest * math.sqrt(len(elements)))  # twice: what it may be after rounding
        exponent = max(math.frexp(largest)[1] - _TOP, _LEAST_EXPONENT)
        code = torch.empty(self.size_bytes(len(elements)), dtype=torch.uint8, device=elements.device)
        code[:-1].view(torch.float16).copy_(elements * 2.0**-exponent)
        code[-1] = exponent + _BIAS
        return code

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        scale = 2.0 ** (int(code[-1]) - _BIAS)
        return read_as(code[:-1], torch.float16).to(torch.float32).mul_(scale)

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        exponent = int(code[-1]) - _BIAS
        if exponent < _LEAST_EXPONENT:
            raise SchemaError(f"a code has the exponent {exponent}")
        largest = _largest_half(read_as(code[:-1], torch.float16))
        check_code_norm(largest * 2.0**exponent * math.sqrt(num_elements))


@CODECS.register("bf16")
@dataclass(frozen=True)
class BFloat16:
    """Rounds to bfloat16, to nearest even: the range of float32 with 8 bits of precision.

    A code has 2 n bytes, the bfloat16 elements. Implements `Codec`.
    """

    name: str = "bf16"
    error_feedback: bool = False

    @classmethod
    def of(cls, name: str, *, unbiased: bool) -> Self:
        return cls()

    def size_bytes(self, num_elements: int) -> int:
        return 2 * num_elements

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        halves = elements.to(torch.bfloat16)
        check_own_norm(_largest_half(halves) * math.sqrt(len(elements)))
        return halves.view(torch.uint8)

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        return read_as(code, torch.bfloat16).to(torch.float32)

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        check_code_norm(_largest_half(read_as(code, torch.bfloat16)) * math.sqrt(num_elements))
