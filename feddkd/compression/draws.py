"""Draw random numbers that are the same on every machine, from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

_FULL_RANGE = -(1 << 63)


def generator_of(seed: int) -> torch.Generator:
    """Make a generator on the CPU that depends on all bits of a seed, 0 <= seed < 2**63.

    torch's generator is the Mersenne Twister mt19937, which takes 32 bits. The seed's 63 bits are
    multiplied by an odd constant and the upper half of the product is taken.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 % (1 << 64)) >> 32)


def draw_words(count: int, generator: torch.Generator) -> Tensor:
    """Draw integers, uniform over all of int64: int64 [count] on the CPU."""
    words = torch.empty(count, dtype=torch.int64)
    return words.random_(_FULL_RANGE, None, generator=generator)


def draw_signs(count: int, generator: torch.Generator) -> Tensor:
    """Draw signs, +1 or -1: float32 [count] on the CPU."""
    octets = draw_words(-(-count // 64), generator).view(torch.uint8)
    bits = (octets[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(-1)[:count].to(torch.float32).mul_(2).sub_(1)


def draw_noise(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw numbers, uniform over 65536 values centred in [-0.5, 0.5]: float32 [count] on `device`.

    Draws of multiples of four from one generator do not depend on how they are split into calls.
    """
    pieces = draw_words(-(-count // 4), generator).view(torch.int16)[:count].to(device)
    return pieces.to(torch.float32).add_(0.5).mul_(2.0**-16)
