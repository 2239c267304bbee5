import gc
import math
import operator
from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import schemas, with_ordinary_values, with_random_bytes
from threads import with_every_number_of_threads
from torch import Tensor

from feddkd.aggregator.rule import Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.errors import SchemaError
from feddkd.tensors import DTYPES, Schema, Segment, Tensors, TensorSpec
from feddkd.transport.payload import LARGEST_NORM, check_values

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
INTEGERS = [dtype for dtype in DTYPES.values() if dtype not in (*FLOATS, torch.bool)]

some_weights = st.lists(st.integers(1, 10_000).map(float), min_size=1, max_size=6)
any_weight = st.one_of(
    st.integers(1, 1000).map(float),
    st.integers(1, 2**53).map(float),
    st.sampled_from([1.0, 2.0**53, 2.0**53 - 1, 0.5, 0.1, 1 / 3]),
    st.floats(1e-3, 2.0**53),
)
"""Numbers of examples up to the largest that is allowed, and weights that are no whole numbers."""


def reduce_rows(dtype: torch.dtype, length: int, rows: Rows) -> Tensor:
    out = torch.empty(length, dtype=dtype)
    block = Segment(dtype, 0, length * dtype.itemsize)
    WeightedMean().start().reduce(block, rows, out)
    return out


def mean(parts: Sequence[Tensor], by: Sequence[float]) -> Tensor:
    return reduce_rows(parts[0].dtype, parts[0].numel(), list(zip(parts, by, strict=True)))


def in_blocks(contributions: list[Tensors], by: list[float], block_bytes: int) -> Tensors:
    out = Tensors(contributions[0].schema)
    for block in out.schema.chunks(block_bytes):
        parts = [each.elements(block) for each in contributions]
        out.elements(block).copy_(mean(parts, by))
    return out


def exact_mean(values: Sequence[int], by: Sequence[float]) -> Fraction:
    weighted = sum(Fraction(weight) * value for weight, value in zip(by, values, strict=True))
    return Fraction(weighted) / sum(map(Fraction, by))


def test_a_rule_is_a_value_and_reads_contributions_once() -> None:
    assert WeightedMean() == WeightedMean()
    assert WeightedMean().passes == 1


# Floats.


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=50)
@given(by=some_weights)
def test_floats_are_averaged_as_in_float64(dtype: torch.dtype, by: list[float]) -> None:
    def part(seed: int) -> Tensor:
        return torch.randn(37, generator=torch.Generator().manual_seed(seed)).to(dtype)

    parts = [part(seed) for seed in range(len(by))]
    columns = zip(*(part.double().tolist() for part in parts), strict=True)
    sums = [math.fsum(map(operator.mul, by, column)) for column in columns]
    exact = [each / sum(by) for each in sums]
    result = mean(parts, by)
    assert result.dtype == dtype
    # Rounded once more on its way from float64 to the type it travels in.
    expected = torch.tensor(exact, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(result, expected, rtol=torch.finfo(dtype).eps, atol=1e-15)


def test_rounding_does_not_grow_with_the_number_of_clients() -> None:
    count = 10_000
    parts = [torch.tensor([0.1, 1e4, 1e-4])] * count
    assert torch.equal(mean(parts, [1.0] * count), parts[0])


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=50)
@given(st.lists(any_weight, min_size=1, max_size=4), st.data())
def test_what_may_be_contributed_has_a_finite_mean(
    dtype: torch.dtype,
    by: list[float],
    data: st.DataObject,
) -> None:
    """Either a value is refused when it arrives, or a thousand clients cannot overflow with it."""
    column = st.lists(st.floats(allow_nan=False), min_size=len(by), max_size=len(by))
    values = data.draw(column)
    parts = [torch.tensor([value], dtype=torch.float64).to(dtype) for value in values]
    try:
        for part in parts:
            check_values(part)
    except SchemaError:
        return
    result = mean(parts * 250, by * 250)
    assert bool(torch.isfinite(result))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_contributions_have_a_finite_mean(sign: int) -> None:
    largest = torch.tensor([sign * LARGEST_NORM], dtype=torch.float64)
    check_values(largest)
    assert mean([largest] * 1000, [2.0**53] * 1000).tolist() == [sign * LARGEST_NORM]
    with pytest.raises(SchemaError):
        check_values(torch.tensor([sign * 1e308], dtype=torch.float64))


# Integers.


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_round_half_to_even_and_stay_integers(dtype: torch.dtype) -> None:
    first = torch.tensor([0, 1, 2, 3, 4, 100], dtype=dtype)
    second = torch.tensor([1, 2, 3, 4, 5, 101], dtype=dtype)
    result = mean([first, second], [1, 1])
    assert result.dtype == dtype
    assert result.tolist() == [0, 2, 2, 4, 4, 100]


@pytest.mark.parametrize("dtype", INTEGERS)
@settings(max_examples=50)
@given(data=st.data())
def test_integers_of_any_size_are_the_rounded_exact_mean(
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    info = torch.iinfo(dtype)
    ends = st.sampled_from([info.min, info.min + 1, 0, 1, info.max - 1, info.max])
    by = data.draw(st.lists(any_weight, min_size=1, max_size=5))
    column = st.lists(st.integers(info.min, info.max) | ends, min_size=len(by), max_size=len(by))
    columns = data.draw(st.lists(column, min_size=1, max_size=3))
    parts = [torch.tensor(row, dtype=dtype) for row in zip(*columns, strict=True)]
    # Fractions round half to even.
    assert mean(parts, by).tolist() == [round(exact_mean(column, by)) for column in columns]


@pytest.mark.parametrize(
    ("dtype", "values", "by", "expected"),
    [
        # Their means are less, or more, than a half by less than float64 can tell.
        (torch.int64, [1, 2], [3002399751580331.0, 3002399751580330.0], 1),
        (torch.int32, [2**31 - 1, 2**31 - 2], [1e7, 1e7 - 1], 2**31 - 1),
        (torch.int16, [-(2**15), 1 - 2**15], [2.0**52 + 1, 2.0**52], -(2**15)),
        # Exactly a half, but the sum of the products is not exact.
        (torch.int8, [6, 7], [0.1, 0.1], 6),
        (torch.uint8, [6, 7], [0.7, 0.7], 6),
        (torch.int64, [2**53 + 1, 2**53 + 2], [1.0, 1.0], 2**53 + 2),
    ],
)
def test_means_close_to_a_half_are_rounded_exactly(
    dtype: torch.dtype,
    values: list[int],
    by: list[float],
    expected: int,
) -> None:
    assert round(exact_mean(values, by)) == expected
    result = mean([torch.tensor([value], dtype=dtype) for value in values], by)
    assert result.tolist() == [expected]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("by", [[1, 5, 2], [2.0**53, 2.0**53 - 1, 3], [0.1, 0.7, 1e-9]])
def test_the_mean_of_equal_extremes_is_the_extreme(dtype: torch.dtype, by: list[float]) -> None:
    info = torch.iinfo(dtype)
    parts = [torch.tensor([info.max, info.min], dtype=dtype)] * 3
    assert mean(parts, by).tolist() == [info.max, info.min]


def test_large_and_small_integers_of_one_block_do_not_mix() -> None:
    parts = [torch.tensor([1, 2**62, -3, -(2**63)]), torch.tensor([2, 2**62 + 2, -4, 2**63 - 1])]
    assert mean(parts, [1, 1]).tolist() == [2, 2**62 + 1, -4, 0]


@given(st.lists(st.tuples(st.booleans(), any_weight), min_size=1, max_size=7))
@example([(True, 2.0**53), (False, 2.0**53 - 1), (False, 2.0)])
@example([(True, 0.3), (False, 0.1), (False, 0.2)])
def test_a_bool_is_true_where_half_of_the_weight_says_so(votes: list[tuple[bool, float]]) -> None:
    result = mean([torch.tensor([vote]) for vote, _ in votes], [weight for _, weight in votes])
    assert result.dtype == torch.bool
    in_favour = exact_mean([int(vote) for vote, _ in votes], [weight for _, weight in votes])
    assert bool(result) == (in_favour >= Fraction(1, 2))


# Bits and memory.


@given(schemas, st.lists(any_weight, min_size=1, max_size=5), st.integers(8, 100))
def test_the_bits_do_not_depend_on_the_block_size(
    schema: Schema,
    by: list[float],
    block_bytes: int,
) -> None:
    contributions = [with_ordinary_values(schema, seed) for seed in range(len(by))]
    small, large = (in_blocks(contributions, by, size) for size in (block_bytes, 1 << 20))
    assert small.sha256() == large.sha256()


whole_numbers = Schema(TensorSpec(str(dtype), dtype, (57,)) for dtype in (*INTEGERS, torch.bool))


@settings(max_examples=50)
@given(st.lists(any_weight, min_size=1, max_size=5), st.integers(8, 100))
def test_nor_do_those_of_integers_at_the_ends_of_their_range(
    by: list[float],
    block_bytes: int,
) -> None:
    contributions = [with_random_bytes(whole_numbers, seed) for seed in range(len(by))]
    small, large = (in_blocks(contributions, by, size) for size in (block_bytes, 1 << 20))
    assert small.sha256() == large.sha256()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_bits_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    schema = Schema([TensorSpec("x", dtype, (40_009,))])  # torch shares out 32,768 and more
    contributions = [with_ordinary_values(schema, seed) for seed in range(3)]
    by = [3.0, 0.1 if dtype.is_floating_point else 7.0, 2.0**53]
    digests = with_every_number_of_threads(lambda: in_blocks(contributions, by, 1 << 20).sha256())
    assert len(set(digests)) == 1


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_one_client_alone_is_its_own_mean(dtype: torch.dtype) -> None:
    part = (torch.arange(-5, 5) * 1.5).to(dtype)
    assert torch.equal(mean([part], [17.0]), part)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_row_is_left_alone_and_may_be_reused_when_the_next_is_asked_for(
    dtype: torch.dtype,
) -> None:
    parts = [torch.tensor([0, 1, 1, 0], dtype=dtype), torch.tensor([1, 1, 0, 0], dtype=dtype)]
    buffer = torch.empty(4, dtype=dtype)

    class Reused:
        def __len__(self) -> int:
            return len(parts)

        def __iter__(self) -> Iterator[tuple[Tensor, float]]:
            for part, weight in zip(parts, [3.0, 1.0], strict=True):
                buffer.copy_(part)
                yield buffer, weight
                assert torch.equal(buffer, part)

    assert torch.equal(reduce_rows(dtype, 4, Reused()), mean(parts, [3.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.int8, torch.bool])
def test_memory_does_not_grow_with_the_number_of_clients(dtype: torch.dtype) -> None:
    length, live = 4099, list[int]()

    class Many:
        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Iterator[tuple[Tensor, float]]:
            for _ in range(6):
                row = torch.ones(length, dtype=dtype)
                tensors = (each for each in gc.get_objects() if type(each) is Tensor)
                live.append(sum(each.shape == (length,) for each in tensors))
                yield row, 2.0**53 - 1  # so large that integers need more than float64

    reduce_rows(dtype, length, Many())
    assert max(live[2:]) == live[2]
