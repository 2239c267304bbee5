"""Pack codes of one to four bits into bytes, and read numbers out of bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the first dimension.

    A byte holds codes that lie len(codes) / (8 / bits) rows apart, so that whole rows are shifted
    and joined at a time. Codes of three bits are packed as a plane of two bits and one of one bit.

    Args:
        codes: uint8 [h, t], each below 2**bits; h is a multiple of 8 / bits, of 8 for three bits.
        bits: 1 to 4.

    Returns:
        uint8 [h bits / 8, t].
    """
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)])
    first, *others = codes.chunk(8 // bits)
    packed = first.clone()
    for place, part in enumerate(others, start=1):
        packed |= part << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo `pack`: uint8 [h bits / 8, t] becomes uint8 [h, t]."""
    if bits == 3:
        low, high = packed.tensor_split([len(packed) * 2 // 3])
        return unpack(low, 2) | (unpack(high, 1) << 2)
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])


def read_as(octets: Tensor, dtype: torch.dtype) -> Tensor:
    """View bytes as numbers of another type; copies them if they are not aligned.

    Args:
        octets: uint8 [n itemsize], contiguous.

    Returns:
        dtype [n].
    """
    if octets.storage_offset() % dtype.itemsize:
        octets = octets.clone()
    return octets.view(dtype)
