"""Accuracy at a budget and cost to a target, for any curve."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.observability.budgets import Curve, common_budget, cost_to_target, reading_within, round_of_target, spread

accuracies = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=20)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    accuracy = draw(accuracies)
    costs = st.lists(st.integers(1, 1000), min_size=len(accuracy), max_size=len(accuracy)).map(
        lambda each: list(itertools.accumulate(each))
    )
    return Curve(accuracy, draw(costs), draw(costs), [float(each) for each in draw(costs)])


@given(curves(), st.integers(0, 25_000))
def test_a_reading_is_the_last_evaluated_round_within_the_budget(curve: Curve, budget: int) -> None:
    reading = reading_within(curve.scores, curve.wire_bytes, budget)
    within = [number for number, spent in enumerate(curve.wire_bytes) if spent <= budget and curve.scores[number] is not None]
    if reading is None:
        assert not within
    else:
        assert reading.round == within[-1] + 1
        assert reading.score == curve.scores[within[-1]]


@given(curves())
def test_the_whole_budget_reads_the_final_accuracy(curve: Curve) -> None:
    reading = reading_within(curve.scores, curve.wire_bytes, curve.wire_bytes[-1])
    assert (reading.score if reading else None) == curve.final_score


@given(st.lists(curves(), min_size=1, max_size=4))
def test_every_run_reaches_the_common_budget_and_one_spends_it(many: list[Curve]) -> None:
    budget = common_budget(curve.wire_bytes for curve in many)
    assert all(curve.wire_bytes[-1] >= budget for curve in many)
    assert any(curve.wire_bytes[-1] == budget for curve in many)


@given(curves(), st.floats(0, 1))
def test_the_target_is_reached_once_and_not_before(curve: Curve, target: float) -> None:
    number = round_of_target(curve.scores, target)
    evaluated = [value for value in curve.scores if value is not None]
    assert (number is None) == all(value < target for value in evaluated)
    if number is not None:
        reached = curve.scores[number - 1]
        assert reached is not None
        assert reached >= target
        assert all(value is None or value < target for value in curve.scores[: number - 1])
        assert cost_to_target(curve.scores, curve.seconds, target) == curve.seconds[number - 1]
    else:
        assert cost_to_target(curve.scores, curve.seconds, target) is None


@given(curves())
def test_what_it_costs_to_reach_an_accuracy_buys_it(curve: Curve) -> None:
    """The two readings of a curve agree: within the cost of the best accuracy, the best accuracy is read."""
    if curve.best_score is None:
        return
    cost = cost_to_target(curve.scores, curve.wire_bytes, curve.best_score)
    assert cost is not None
    reading = reading_within(curve.scores, curve.wire_bytes, cost)
    assert reading is not None
    assert reading.score == curve.best_score


@given(curves(), st.data())
def test_the_first_rounds_of_a_run_are_a_run_that_delivers_its_model(curve: Curve, data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, len(curve.scores)))
    first = curve.first(rounds, delivery_bytes=7)
    assert list(first.rounds) == list(range(1, rounds + 1))
    assert list(first.scores) == list(curve.scores[:rounds])
    assert list(first.wire_bytes[:-1]) == list(curve.wire_bytes[: rounds - 1])
    # The last round of the whole run has its own delivery already.
    assert first.wire_bytes[-1] - curve.wire_bytes[rounds - 1] == (0 if rounds == len(curve.scores) else 7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_a_spread_lies_between_its_lowest_and_highest(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.count == len(values)
    assert found.lowest - 1e-12 <= found.mean <= found.highest + 1e-12
    assert found.deviation == (pytest.approx(statistics.stdev(values)) if len(values) > 1 else None)


def test_a_spread_needs_every_value() -> None:
    assert spread([]) is None
    assert spread([0.9, None]) is None
