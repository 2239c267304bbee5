import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import schemas, with_ordinary_values
from torch import Tensor

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.tensors import DTYPES, Schema, Tensors

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
INTEGERS = [dtype for dtype in DTYPES.values() if not dtype.is_floating_point and dtype != torch.bool]

weights = st.lists(st.integers(1, 10_000).map(float), min_size=1, max_size=6)


def mean(parts: list[Tensor], by: list[float]) -> Tensor:
    reduction = WeightedMean(parts[0].dtype, parts[0].numel())
    for part, weight in zip(parts, by, strict=True):
        reduction.add(part, weight)
    out = torch.empty_like(parts[0])
    reduction.result(out)
    return out


def in_chunks(contributions: list[Tensors], by: list[float], chunk_bytes: int) -> Tensors:
    out = Tensors(contributions[0].schema)
    for chunk in out.schema.chunks(chunk_bytes):
        out.elements(chunk).copy_(mean([each.elements(chunk) for each in contributions], by))
    return out


@given(schemas, weights, st.integers(8, 100))
def test_the_bits_do_not_depend_on_the_chunk_size(schema: Schema, by: list[float], chunk_bytes: int) -> None:
    contributions = [with_ordinary_values(schema, seed) for seed in range(len(by))]
    assert in_chunks(contributions, by, chunk_bytes).sha256() == in_chunks(contributions, by, 1 << 20).sha256()


@pytest.mark.parametrize("dtype", FLOATS)
@given(by=weights)
def test_floats_are_averaged_as_in_float64(dtype: torch.dtype, by: list[float]) -> None:
    parts = [torch.randn(37, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(len(by))]
    columns = zip(*(part.double().tolist() for part in parts), strict=True)
    exact = [math.fsum(weight * value for weight, value in zip(by, column, strict=True)) / sum(by) for column in columns]
    result = mean(parts, by)
    assert result.dtype == dtype
    # Rounded once more on its way from float64 to the type it travels in.
    torch.testing.assert_close(result, torch.tensor(exact, dtype=torch.float64).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-15)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_round_half_to_even_and_stay_integers(dtype: torch.dtype) -> None:
    first = torch.tensor([0, 1, 2, 3, 4, 100], dtype=dtype)
    second = torch.tensor([1, 2, 3, 4, 5, 101], dtype=dtype)
    result = mean([first, second], [1, 1])
    assert result.dtype == dtype
    assert result.tolist() == [0, 2, 2, 4, 4, 100]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6), st.data())
def test_integers_are_the_rounded_exact_mean(values: list[int], data: st.DataObject) -> None:
    by = data.draw(st.lists(st.integers(1, 1000), min_size=len(values), max_size=len(values)))
    total, weight = sum(value * share for value, share in zip(values, by, strict=True)), sum(by)
    result = int(mean([torch.tensor([value]) for value in values], [float(share) for share in by]))
    assert abs(result * weight - total) * 2 <= weight


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_mean_of_equal_extremes_is_the_extreme(dtype: torch.dtype) -> None:
    limit = 2**53 if dtype == torch.int64 else None
    high, low = limit or torch.iinfo(dtype).max, -limit if limit else torch.iinfo(dtype).min
    parts = [torch.tensor([high, low], dtype=dtype)] * 3
    assert mean(parts, [1, 5, 2]).tolist() == [high, low]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), min_size=1, max_size=7))
def test_a_bool_is_true_where_half_of_the_weight_says_so(votes: list[tuple[bool, int]]) -> None:
    result = mean([torch.tensor([vote]) for vote, _ in votes], [float(weight) for _, weight in votes])
    assert result.dtype == torch.bool
    assert bool(result) == (2 * sum(weight for vote, weight in votes if vote) >= sum(weight for _, weight in votes))


def test_rounding_does_not_grow_with_the_number_of_clients() -> None:
    count = 10_000
    parts = [torch.tensor([0.1, 1e4, 1e-4])] * count
    assert torch.equal(mean(parts, [1.0] * count), parts[0])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_one_client_alone_is_its_own_mean(dtype: torch.dtype) -> None:
    part = (torch.arange(-5, 5) * 1.5).to(dtype)
    assert torch.equal(mean([part], [17.0]), part)


def test_the_callers_elements_are_left_alone_and_may_be_reused() -> None:
    buffer = torch.tensor([1.0, 2.0])
    reduction = WeightedMean(torch.float32, 2)
    reduction.add(buffer, 3.0)
    assert buffer.tolist() == [1, 2]
    buffer.fill_(5)
    reduction.add(buffer, 1.0)
    out = torch.empty(2)
    reduction.result(out)
    assert out.tolist() == [2.0, 2.75]


def test_float64_elements_are_left_alone_too() -> None:
    buffer = torch.tensor([1.0, 2.0], dtype=torch.float64)
    WeightedMean(torch.float64, 2).add(buffer, 3.0)
    assert buffer.tolist() == [1, 2]
