"""Hypothesis strategies for schemas and tensors of every kind."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from feddkd.tensors import DTYPES, Schema, Tensors, TensorSpec

dtypes = st.sampled_from(list(DTYPES.values()))
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
"""Scalars and empty tensors among them."""

specs = st.builds(TensorSpec, st.text("abc.", min_size=1, max_size=6), dtypes, shapes, st.booleans())
schemas = st.lists(specs, max_size=8, unique_by=lambda spec: spec.name).map(Schema)


def with_random_bytes(schema: Schema, seed: int) -> Tensors:
    """Any bytes at all, NaN and infinities among them; bools are 0 or 1."""
    out = Tensors(schema)
    generator = torch.Generator().manual_seed(seed)
    out.block.copy_(torch.randint(256, out.block.shape, generator=generator, dtype=torch.uint8))
    for tensor in out.values():
        if tensor.dtype == torch.bool and tensor.numel():
            tensor.view(torch.uint8).bitwise_and_(1)
    return out


def with_ordinary_values(schema: Schema, seed: int) -> Tensors:
    """Finite values of magnitudes that models have."""
    out = Tensors(schema)
    generator = torch.Generator().manual_seed(seed)
    for tensor in out.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(10))
    return out


any_tensors = st.builds(with_random_bytes, schemas, st.integers(0, 2**32))
"""Tensors of any schema with any bytes."""

ordinary_tensors = st.builds(with_ordinary_values, schemas, st.integers(0, 2**32))
