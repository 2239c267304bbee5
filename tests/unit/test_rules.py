"""Rules that reduce contributions: against examples by hand, and against what they promise."""

from __future__ import annotations

import math
import statistics
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.aggregator.columns import slices
from feddkd.aggregator.compared import ComparedElements, Part, square_sum
from feddkd.aggregator.distances import PairDistances
from feddkd.aggregator.history import LEEWAY, History, LengthLimits
from feddkd.aggregator.median import median_of, weighted_median_of, write_median
from feddkd.aggregator.rule import Rule, RuleContext, RuleError
from feddkd.aggregator.trimmed_mean import trimmed
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.config import Config
from feddkd.config.aggregation import RuleTable
from feddkd.registry import RULES
from feddkd.tensors import Schema, Segment, Tensors, TensorSpec

VECTOR = Schema([TensorSpec("w", torch.float64, (2,))])
MIXED = Schema(
    [
        TensorSpec("w", torch.float32, (5, 3)),
        TensorSpec("half", torch.float16, (4,)),
        TensorSpec("running_var", torch.float32, (3,), trainable=False),
        TensorSpec("batches", torch.int64, (), trainable=False),
        TensorSpec("mask", torch.bool, (4,), trainable=False),
    ]
).beside({"loss": Schema([TensorSpec("value", torch.float64, (), trainable=False)])})

ROBUST = ("median", "trimmed_mean", "krum", "geometric_median", "norm_bounding", "centred_clipping")
ALL = ("mean", *ROBUST)


def rule(name: str, schema: Schema, settings: Mapping[str, Any] | None = None, **setting: Any) -> Rule:
    """A rule as the configuration chooses it."""
    table = Config.parse({"aggregation": {"rule": {"name": name, **(settings or {})}}}).aggregation.rule
    assert isinstance(table, RuleTable)
    found: Rule = RULES[name].of(table, RuleContext(ComparedElements.of(schema), **setting))
    return found


def reduced(
    chosen: Rule, parts: Sequence[Tensors], weights: Sequence[float] | None = None, block_bytes: int = 1 << 20
) -> tuple[Tensors, Sequence[float]]:
    """Reduce contributions as an engine does; returns the result and the ratios."""
    schema, blocks = parts[0].schema, parts[0].schema.chunks(block_bytes)
    reduction = chosen.start([f"c{number:03d}" for number in range(len(parts))])
    by = weights or [1.0] * len(parts)

    def rows(block: Segment) -> list[tuple[Tensor, float]]:
        return [(part.elements(block), weight) for part, weight in zip(parts, by, strict=True)]

    for _ in range(chosen.passes - 1):
        for block in blocks:
            reduction.survey(block, rows(block))
    out = Tensors(schema)
    for _ in range(2):
        for block in blocks:
            reduction.reduce(block, rows(block), out.elements(block))
        if not reduction.repeats():
            break
    return out, reduction.ratios()


def vectors(*rows: Sequence[float]) -> list[Tensors]:
    return [Tensors.copy_of(VECTOR, {"w": torch.tensor(row, dtype=torch.float64)}) for row in rows]


def result(chosen: Rule, *rows: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    found: list[float] = reduced(chosen, vectors(*rows), weights)[0]["w"].tolist()
    return found


# By hand.


def test_the_median_of_each_element() -> None:
    assert result(rule("median", VECTOR), [1, 50], [2, -9], [1000, 3]) == [2.0, 3.0]
    assert result(rule("median", VECTOR), [1, 50], [2, -9], [1000, 3], [4, 5]) == [3.0, 4.0]


def test_claimed_weights_do_not_move_a_rule_that_counts_clients() -> None:
    for name in ("median", "trimmed_mean", "krum", "centred_clipping"):
        rows = [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [4.0, 5.0], [9.0, 9.0]]
        assert result(rule(name, VECTOR), *rows) == result(rule(name, VECTOR), *rows, weights=[1, 1, 1, 1, 2.0**53])


def test_the_trimmed_mean_leaves_a_share_out_at_each_end() -> None:
    rows: list[list[float]] = [[0, 0], [1, 10], [2, 20], [3, 30], [1e6, -1e6]]
    assert result(rule("trimmed_mean", VECTOR, {"trim": 0.2}), *rows) == [2.0, 10.0]
    assert result(rule("trimmed_mean", VECTOR, {"trim": 0.0}), [1, 1], [2, 6]) == [1.5, 3.5]


@pytest.mark.parametrize(
    ("share", "clients", "left_out"), [(0.2, 10, 2), (0.2, 9, 2), (0.1, 30, 3), (0.0, 5, 0), (0.49, 3, 1), (0.49, 2, 0), (0.4, 1, 0)]
)
def test_how_many_are_trimmed(share: float, clients: int, left_out: int) -> None:
    assert trimmed(share, clients) == left_out


def test_krum_takes_the_contribution_nearest_to_its_neighbours() -> None:
    rows: list[list[float]] = [[0, 0], [1, 0], [0, 1], [0.4, 0.4], [100, 100]]
    assert result(rule("krum", VECTOR, {"hostile": 1, "keep": 1}), *rows) == [0.4, 0.4]


def test_multi_krum_takes_the_mean_of_the_best() -> None:
    rows: list[list[float]] = [[0, 0], [1, 0], [0, 1], [0.4, 0.4], [100, 100]]
    # Scores, each of the 2 nearest: 0.32 + 1, 0.52 + 1, 0.52 + 1, 0.32 + 0.52, large. The client that is first wins a tie.
    found = result(rule("krum", VECTOR, {"hostile": 1}), *rows)
    assert found == pytest.approx([0.2, 0.2])


def test_krum_with_too_few_contributions_says_how_many_it_needs() -> None:
    with pytest.raises(RuleError, match=r"krum with hostile = 2 and keep = 0 needs 7 contributions, 6 came"):
        result(rule("krum", VECTOR, {"hostile": 2}), *[[0.0, float(number)] for number in range(6)])


def test_the_geometric_median_of_a_triangle_is_its_fermat_point() -> None:
    # Of an equilateral triangle that is the centre.
    height = math.sqrt(3) / 2
    found = result(rule("geometric_median", VECTOR), [0, 0], [1, 0], [0.5, height])
    assert found == pytest.approx([0.5, height / 3], abs=1e-6)
    # An angle above 120 degrees: the vertex itself.
    assert result(rule("geometric_median", VECTOR), [0, 0], [10, 1], [-10, 1]) == pytest.approx([0, 0], abs=1e-3)


def test_the_geometric_median_on_a_line_is_the_weighted_median() -> None:
    found = result(rule("geometric_median", VECTOR), [0, 0], [1, 0], [5, 0], weights=[1.0, 1.0, 3.0])
    assert found == pytest.approx([5, 0], abs=1e-3)


def test_contributions_that_agree_are_the_geometric_median_however_far_the_others_are() -> None:
    for far in (1.0, 1e9, 1e17):
        assert result(rule("geometric_median", VECTOR), [0, 0], [0, 0], [far, 0]) == [0, 0]
        assert result(rule("geometric_median", VECTOR), [3, 4], [3, 4], [3, 4], [far, 0], [0, -far]) == [3, 4]


@pytest.mark.parametrize("name", ["geometric_median", "norm_bounding"])
def test_numbers_have_the_weights_that_models_have(name: str) -> None:
    parts = with_sides({"running_var": 7.0})
    assert reduced(rule(name, SIDES), parts, [1.0] * 9 + [10.0])[0]["running_var"].tolist() == [7.0, 7.0]
    assert reduced(rule(name, SIDES), parts, [1.0] * 9 + [8.0])[0]["running_var"].tolist() == [1.0, 1.0]


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(1, 5)), min_size=1, max_size=9))
def test_a_weight_counts_like_as_many_clients(pairs: list[tuple[int, int]]) -> None:
    repeated = torch.tensor([[value] for value, weight in pairs for _ in range(weight)])
    matrix, weights = torch.tensor([[value] for value, _ in pairs]), torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
    for dtype in (torch.float64, torch.int64):
        assert weighted_median_of(matrix.to(dtype), weights).tolist() == median_of(repeated.to(dtype)).tolist()
    assert weighted_median_of(matrix > 0, weights).tolist() == median_of(repeated > 0).tolist()


def test_norm_bounding_clips_to_the_median_length() -> None:
    found = result(rule("norm_bounding", VECTOR), [1, 0], [0, 2], [-30, 40])
    assert found == pytest.approx([(1 + 0 - 1.2) / 3, (0 + 2 + 1.6) / 3])
    assert result(rule("norm_bounding", VECTOR, {"multiple": 25}), [1, 0], [0, 2], [-30, 40]) == pytest.approx([-29 / 3, 14])


def test_centred_clipping_clips_around_the_last_result() -> None:
    previous = vectors([10, 0])[0]
    chosen = rule("centred_clipping", VECTOR, {"radius": 2.0}, previous=previous)
    assert result(chosen, [11, 0], [10, 1], [10, -1000]) == pytest.approx([10 + 1 / 3, (1 - 2) / 3])
    first = rule("centred_clipping", VECTOR, {"radius": 2.0})
    assert result(first, [1, 0], [0, 1], [0, -1000]) == pytest.approx([1 / 3, -1 / 3])


def test_centred_clipping_takes_the_median_distance_where_no_radius_is_given() -> None:
    assert result(rule("centred_clipping", VECTOR), [1, 0], [0, 2], [30, 40]) == pytest.approx([(1 + 1.2) / 3, (2 + 1.6) / 3])


# The default.


def guarded(**setting: Any) -> Rule:
    return rule("mean", VECTOR, outlier_ratio=7.0, **setting)


HONEST = [[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]]


def test_the_default_is_the_weighted_mean_to_the_bit_where_nobody_stands_out() -> None:
    torch.manual_seed(0)
    parts = [Tensors(MIXED) for _ in range(5)]
    for part in parts:
        for name, tensor in part.items():
            tensor.copy_(torch.randn(tensor.shape) * 10 if tensor.dtype.is_floating_point else torch.randint(0, 2, tensor.shape))
            assert name in MIXED.by_name
    weights = [3.0, 1.0, 0.7, 12.0, 5.0]
    found, ratios = reduced(rule("mean", MIXED, outlier_ratio=6.0), parts, weights)
    plain, _ = reduced(WeightedMean(), parts, weights)
    assert found.sha256() == plain.sha256()
    assert statistics.median(ratios) == 1.0


def test_a_contribution_that_is_too_long_is_brought_to_the_median_length() -> None:
    assert result(guarded(), *HONEST, [-20.0, 0.0]) == pytest.approx([(2 - 1) / 5, 0])
    assert result(guarded(), *HONEST, [-11.0, 0.0]) == pytest.approx([(2 - 11) / 5, 0])


def test_gradients_may_be_twice_as_long_as_updates() -> None:
    assert result(guarded(contribution="gradient"), *HONEST, [-31.0, 0.0]) == pytest.approx([(2 - 31) / 5, 0])
    assert result(guarded(contribution="gradient"), *HONEST, [-33.0, 0.0]) == pytest.approx([(2 - 1) / 5, 0])


@pytest.mark.parametrize("honest_exchanges", [0, 1, 10, 400])
def test_a_client_that_was_honest_for_long_has_no_more_room_than_a_new_one(honest_exchanges: int) -> None:
    limits = LengthLimits(7.0, 32.0).of("update")
    history = History()
    for _ in range(honest_exchanges):
        history = history.after({"c004": 1.0}, limits)
    assert result(guarded(history=history), *HONEST, [-10.0, 0.0]) == pytest.approx([(2 - 10) / 5, 0])
    history = history.after({"c004": 10.0}, limits)
    assert result(guarded(history=history), *HONEST, [-10.0, 0.0]) == pytest.approx([(2 - 1) / 5, 0])


def test_exchanges_that_a_client_was_not_in_do_not_count() -> None:
    limits = LengthLimits(7.0, 32.0).of("update")
    history = History().after({"c004": 10.0}, limits)
    for _ in range(50):
        history = history.after({"c000": 1.0, "c001": 1.2}, limits)
    assert result(guarded(history=history), *HONEST, [-10.0, 0.0]) == pytest.approx([(2 - 1) / 5, 0])


def test_exchanges_that_are_usual_make_up_for_a_long_one() -> None:
    limits = LengthLimits(7.0, 32.0).of("update")
    history = History().after({"c004": 10.0}, limits).after({"c004": 1.0}, limits)
    assert result(guarded(history=history), *HONEST, [-10.0, 0.0]) == pytest.approx([(2 - 10) / 5, 0])


def test_a_large_client_may_send_longer_contributions_by_the_root_of_its_size() -> None:
    sizes = {"c000": 1.0, "c001": 1.0, "c002": 1.0, "c003": 1.0, "c004": 9.0}
    assert result(guarded(sizes=sizes), *HONEST, [-40.0, 0.0]) == pytest.approx([(2 - 40) / 5, 0])
    assert result(guarded(sizes=sizes), *HONEST, [-70.0, 0.0]) == pytest.approx([(2 - 1) / 5, 0])


def test_a_client_without_examples_does_not_hide_one_that_is_too_long() -> None:
    assert result(guarded(), [0.0, 0.0], [1.0, 0.0], [-1e9, 0.0]) == pytest.approx([0, 0])
    assert result(guarded(), [0.0, 0.0], [0.0, 0.0], [1e9, 0.0]) == pytest.approx([1e9 / 3, 0])  # all that there is


def test_two_contributions_are_compared_with_nothing() -> None:
    assert result(guarded(), [1.0, 0.0], [1e6, 0.0]) == [500000.5, 0.0]


def test_what_is_beside_the_model_of_a_client_that_is_scaled_is_left_out() -> None:
    parts = [Tensors(MIXED) for _ in range(4)]
    for number, part in enumerate(parts):
        part["w"].fill_(1.0 if number < 3 else -100.0)
        part["running_var"].fill_(2.0 if number < 3 else 1e9)
        part["batches"].fill_(5 if number < 3 else 10**9)
        part["mask"].fill_(number < 2)
        part["loss/value"].fill_(0.5 if number < 3 else 1e300)
    found, _ = reduced(rule("mean", MIXED, outlier_ratio=6.0), parts, [1.0, 1.0, 1.0, 100.0])
    assert found["running_var"].tolist() == [2.0] * 3
    assert (found["batches"].item(), found["loss/value"].item()) == (5, 0.5)
    assert found["mask"].all()


SIDES = Schema([TensorSpec("w", torch.float64, (2,)), TensorSpec("running_var", torch.float64, (2,), trainable=False)]).beside(
    {
        "control": Schema([TensorSpec("w", torch.float64, (2,))]),
        "update_norm_squared": Schema([TensorSpec("value", torch.float64, (), trainable=False)]),
    }
)


def with_sides(hostile: Mapping[str, float]) -> list[Tensors]:
    """Ten contributions of ones, the last one with other values."""
    parts = [Tensors(SIDES) for _ in range(10)]
    for number, part in enumerate(parts):
        for name, tensor in part.items():
            tensor.fill_(hostile.get(name, 1.0) if number == 9 else 1.0)
    return parts


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("control/w", -30.0, 0.8),  # brought to the median length
        ("control/w", 1e6, 1.0),
        ("running_var", 1e9, 1.0),  # left out
        ("running_var", -1e9, 1.0),
        ("update_norm_squared/value", 1e9, 1.0),
        ("update_norm_squared/value", 1e300, 1.0),
        ("update_norm_squared/value", 20.0, 1.0),  # the server knows the norm
        ("update_norm_squared/value", 6.0, 1.5),
        ("running_var", 200.0, 20.9),  # honest ones differ as much
    ],
)
def test_what_travels_beside_trainable_tensors_has_a_limit_of_its_own(name: str, value: float, expected: float) -> None:
    found, _ = reduced(rule("mean", SIDES, outlier_ratio=7.0), with_sides({name: value}))
    assert found[name].flatten().tolist() == pytest.approx([expected] * found[name].numel())
    assert found["w"].tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("block_bytes", [1 << 20, 8])
def test_an_update_that_makes_a_running_variance_negative_is_left_out_there(block_bytes: int) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (2,)), TensorSpec("bn.running_var", torch.float32, (3,), trainable=False)])
    base = Tensors.copy_of(schema, {"w": torch.zeros(2), "bn.running_var": torch.tensor([1.0, 2.0, 50.0])})
    parts = [Tensors.copy_of(schema, {"w": torch.ones(2), "bn.running_var": torch.full((3,), -0.1)}) for _ in range(4)]
    parts[3]["bn.running_var"].copy_(torch.tensor([1.0, 1.0, -51.0]))
    found, _ = reduced(rule("mean", schema, outlier_ratio=7.0, base=base), parts, block_bytes=block_bytes)
    assert found["bn.running_var"].tolist() == pytest.approx([-0.1] * 3)
    parts[3]["bn.running_var"].copy_(torch.tensor([1.0, 1.0, -49.0]))
    found, _ = reduced(rule("mean", schema, outlier_ratio=7.0, base=base), parts, block_bytes=block_bytes)
    assert found["bn.running_var"].tolist() == pytest.approx([0.175, 0.175, -49.3 / 4])


def test_what_is_beside_the_model_is_not_limited_where_nothing_is() -> None:
    chosen = rule("mean", SIDES, {"longest": 0}, outlier_ratio=0.0)
    assert reduced(chosen, with_sides({"running_var": 1e9}))[0]["running_var"][0] == pytest.approx(1e8, rel=1e-6)


def test_an_outlier_weighs_no_more_than_the_median_client() -> None:
    assert result(guarded(), *HONEST, [-1e6, 0.0], weights=[1.0, 1.0, 1.0, 1.0, 30.0]) == pytest.approx([(2 - 1) / 5, 0])


def test_an_outlier_has_no_more_weight_even_where_it_is_not_long() -> None:
    history = History({"c004": 3.2})
    assert result(guarded(history=history), *HONEST, [-1.0, 0.0], weights=[1.0, 1.0, 1.0, 1.0, 30.0]) == pytest.approx([(2 - 1) / 5, 0])


def test_no_limit_leaves_the_mean_alone() -> None:
    chosen = rule("mean", VECTOR, {"longest": 0}, outlier_ratio=0.0)
    assert result(chosen, [1.0, 0.0], [1.0, 0.0], [1e6, 0.0]) == pytest.approx([(2 + 1e6) / 3, 0])


def test_an_excess_is_the_sum_of_what_is_above_the_limit_and_never_below_zero() -> None:
    limits, history = LengthLimits(2.0), History()
    for ratio in (0.1, 8.0, 3.0):
        history = history.after({"a": ratio, "b": 1.0}, limits)
    assert history.excess == {"a": pytest.approx(math.log(4.0 * 1.5))}
    assert history.is_outlier("a", 1.8, limits)
    assert not history.is_outlier("a", 1.0, limits)
    assert not History().is_outlier("a", 2.0 * LEEWAY, limits)
    assert History().is_outlier("a", 2.0 * LEEWAY + 0.1, limits)
    assert history.after({}, limits) == history


def test_an_outlier_whose_contributions_become_usual_is_none_soon_after() -> None:
    limits = LengthLimits(7.0).of("update")
    history = History()
    for _ in range(100):
        history = history.after({"a": 1e6}, limits)
    for _ in range(2):
        assert history.is_outlier("a", 1.0, limits) is (history.excess["a"] > math.log(LEEWAY) + math.log(4.2))
        history = history.after({"a": 1.0}, limits)
    assert not history.is_outlier("a", 1.0, limits)


# What rules promise.

numbers = st.floats(-1e3, 1e3, width=32)
contributions = st.lists(st.lists(numbers, min_size=15, max_size=15), min_size=7, max_size=12)


def trainable(rows: Sequence[Sequence[float]]) -> list[Tensors]:
    schema = Schema([TensorSpec("w", torch.float32, (15,))])
    return [Tensors.copy_of(schema, {"w": torch.tensor(row, dtype=torch.float32)}) for row in rows]


@pytest.mark.parametrize("name", ALL)
@given(row=st.lists(numbers, min_size=15, max_size=15), clients=st.integers(5, 12))
def test_where_all_agree_the_result_is_theirs(name: str, row: list[float], clients: int) -> None:
    parts = trainable([row] * clients)
    found, _ = reduced(rule(name, parts[0].schema, outlier_ratio=6.0), parts)
    assert torch.allclose(found["w"], parts[0]["w"], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", ALL)
@given(rows=contributions, seed=st.randoms(use_true_random=False))
def test_the_order_of_the_clients_does_not_matter_but_for_rounding(name: str, rows: list[list[float]], seed: Any) -> None:
    parts = trainable(rows)
    mixed = seed.sample(parts, len(parts))
    chosen = rule(name, parts[0].schema, {"keep": 1} if name == "krum" else None)
    first, second = reduced(chosen, parts)[0]["w"], reduced(chosen, mixed)[0]["w"]
    if name == "krum":
        # Of equal scores the first client's is taken.
        assert any(torch.equal(second, part["w"]) for part in parts)
    else:
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
@given(rows=contributions, hostile=st.lists(st.sampled_from([-1e30, -1e3, 0.0, 5.0, 1e30]), min_size=1, max_size=3))
def test_fewer_than_half_cannot_take_an_element_out_of_the_honest_range(name: str, rows: list[list[float]], hostile: list[float]) -> None:
    attacks = [[value] * 15 for value in hostile]
    parts = trainable([*rows, *attacks])
    found, _ = reduced(rule(name, parts[0].schema, {"trim": 0.45} if name == "trimmed_mean" else None), parts)
    honest = torch.tensor(rows, dtype=torch.float32)
    assert bool((found["w"] >= honest.min(0).values).all())
    assert bool((found["w"] <= honest.max(0).values).all())


@pytest.mark.parametrize("name", ["median", "krum", "norm_bounding", "centred_clipping", "geometric_median", "trimmed_mean"])
def test_a_large_site_may_be_further_away_than_others(name: str) -> None:
    torch.manual_seed(3)
    parts = trainable([(torch.randn(15) * (10 if number == 9 else 1)).tolist() for number in range(10)])
    sizes = {f"c{number:03d}": 25.0 if number == 9 else 1.0 for number in range(10)}
    _, without = reduced(rule(name, parts[0].schema), parts)
    _, ratios = reduced(rule(name, parts[0].schema, sizes=sizes), parts)
    assert ratios[9] == pytest.approx(without[9] / 5)
    assert list(ratios[:9]) == list(without[:9])


@pytest.mark.parametrize("name", ROBUST)
@given(size=st.floats(10, 1e30))
def test_what_two_of_ten_can_move_is_bounded_whatever_they_send(name: str, size: float) -> None:
    torch.manual_seed(1)
    honest = [torch.randn(15) for _ in range(8)]
    rows = [row.tolist() for row in honest] + [[-size] * 15, [size / 2] * 15]
    parts = trainable(rows)
    found, ratios = reduced(rule(name, parts[0].schema, {"hostile": 2} if name == "krum" else None), parts)
    spread = max(float(row.norm()) for row in honest)
    assert float(found["w"].norm()) <= 2 * spread
    assert min(sorted(ratios)[-2:]) >= sorted(ratios)[-3]
    assert {number for number, ratio in enumerate(ratios) if ratio > 4} == {8, 9} or size < 100


# Blocks, dtypes and memory.


@pytest.mark.parametrize("name", ALL)
def test_bits_do_not_depend_on_where_blocks_begin_where_a_rule_looks_at_elements_alone(name: str) -> None:
    torch.manual_seed(2)
    parts = []
    for number in range(7):
        part = Tensors(MIXED)
        for tensor in part.values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.dtype.is_floating_point else torch.randint(0, 2, tensor.shape))
        part["w"].mul_(100.0 if number == 3 else 1.0)
        parts.append(part)
    chosen = rule(name, MIXED, outlier_ratio=6.0)
    whole, _ = reduced(chosen, parts)
    cut, _ = reduced(chosen, parts, block_bytes=16)
    for tensor, other in zip(whole.values(), cut.values(), strict=True):
        torch.testing.assert_close(tensor, other)
    if name in ("median", "trimmed_mean"):
        assert whole.sha256() == cut.sha256()


@pytest.mark.parametrize("name", ROBUST)
def test_buffers_counters_and_numbers_are_reduced_to_something_between_those_of_most(name: str) -> None:
    parts = [Tensors(MIXED) for _ in range(7)]
    for number, part in enumerate(parts):
        part["w"].fill_(1.0)
        lies = number > 4
        part["running_var"].fill_(-1e30 if lies else 2.0 + number)
        part["batches"].fill_(-(2**62) if lies else 5 + number)
        part["mask"].fill_(number < 4)
        part["loss/value"].fill_(1e300 if lies else 0.5 + number)
    found, _ = reduced(rule(name, MIXED, {"trim": 0.4} if name == "trimmed_mean" else None), parts)
    assert 2.0 <= float(found["running_var"][0]) <= 6.0
    assert 5 <= int(found["batches"]) <= 9
    assert 0.5 <= float(found["loss/value"]) <= 4.5
    assert found["mask"].all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8])
def test_the_median_of_integers_is_one_of_them(dtype: torch.dtype) -> None:
    matrix = torch.tensor([[1], [9], [4], [100]], dtype=dtype)
    assert median_of(matrix).tolist() == [4]
    largest = torch.iinfo(dtype).max
    assert median_of(torch.full((3, 1), largest, dtype=dtype)).tolist() == [largest]


def test_parts_of_a_block_count_or_do_not() -> None:
    schema = Schema(
        [
            TensorSpec("a", torch.float32, (4,)),
            TensorSpec("mean", torch.float32, (2,), trainable=False),
            TensorSpec("b", torch.float32, (3,)),
        ]
    )
    compared = ComparedElements.of(schema)
    assert list(compared.parts(Segment(torch.float32, 0, 36))) == [Part(0, 4, True), Part(4, 6, False), Part(6, 9, True)]
    assert list(compared.parts(Segment(torch.float32, 8, 24))) == [Part(0, 2, True), Part(2, 4, False)]
    assert list(compared.parts(Segment(torch.float32, 20, 32))) == [Part(0, 1, False), Part(1, 3, True)]


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=3, max_size=8), st.randoms(use_true_random=False))
def test_distances_from_a_weighted_mean_follow_from_those_of_pairs(rows: list[list[float]], seed: Any) -> None:
    matrix = torch.tensor(rows, dtype=torch.float64)
    between = PairDistances(ComparedElements(((0, 24),)), len(rows))
    between.survey(Segment(torch.float64, 0, 24), [(row, 1.0) for row in matrix])
    weights = torch.tensor([seed.uniform(0.1, 1) for _ in rows], dtype=torch.float64)
    weights /= weights.sum()
    mean = (matrix * weights[:, None]).sum(0)
    expected = (matrix - mean).square().sum(1)
    torch.testing.assert_close(between.from_mean(weights), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 16383, 16384, 50000])
def test_a_sum_of_squares_does_not_depend_on_the_number_of_threads(length: int) -> None:
    torch.manual_seed(0)
    vector, threads = torch.randn(length), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(square_sum(vector))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == pytest.approx(float(vector.double().square().sum()))


class Fetched:
    """Rows that count how often they are read, and exist one at a time."""

    def __init__(self, clients: int, length: int) -> None:
        self.clients, self.length, self.reads = clients, length, 0

    def __len__(self) -> int:
        return self.clients

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        self.reads += 1
        return ((torch.full((self.length,), float(number)), 1.0) for number in range(self.clients))


def test_a_matrix_of_all_clients_is_bounded_however_many_they_are() -> None:
    rows, most = Fetched(100, 1000), 100 * 4 * 64
    out = torch.empty(1000)
    largest = max(columns.matrix.numel() * 4 for columns in slices(rows, 0, 1000, torch.float32, most))
    assert largest <= most
    assert rows.reads == math.ceil(1000 / 64)
    write_median(rows, 0, 1000, out, most_bytes=most)
    assert out.tolist() == [49.5] * 1000


@pytest.mark.parametrize("name", ["mean", "norm_bounding", "centred_clipping"])
def test_rules_without_pairs_hold_no_block_of_every_client(name: str) -> None:
    chosen = rule(name, VECTOR)
    peaks = []
    for clients in (10, 1000):
        reduction = chosen.start([f"c{number}" for number in range(clients)])
        block, out = Segment(torch.float64, 0, 16), torch.empty(2, dtype=torch.float64)
        rows = [(torch.ones(2, dtype=torch.float64), 1.0)] * clients
        if chosen.passes > 1:
            reduction.survey(block, rows)
        tracemalloc.start()
        reduction.reduce(block, rows, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1000 * 200  # some numbers for each client, no vectors
