"""Events are written down and read back without a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.scheduler.events import (
    DeliveredLate,
    DeliveryStarted,
    Event,
    ExchangeDone,
    Resumed,
    RoundFailed,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    from_json,
    to_json,
)
from feddkd.scheduler.records import ExchangeRecord
from feddkd.traffic import Traffic

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
counts = st.integers(0, 2**53)
floats = st.floats(allow_nan=True, allow_infinity=True)
traffics = st.builds(Traffic, *[counts] * 7)
examples = st.builds(ExampleCounts, counts, counts)
clients = st.dictionaries(texts, examples, max_size=3)
reasons = st.dictionaries(texts, texts, max_size=3)
numbers = st.dictionaries(texts, floats, max_size=3)
by_class = st.lists(counts, max_size=3).map(tuple)
evaluations = st.builds(Evaluation, counts, counts, floats, by_class, by_class)
several = st.lists(texts, max_size=3).map(tuple)
ids = st.builds(ExchangeId, texts, counts, counts, texts, counts)
names = st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64)
records = st.builds(
    ExchangeRecord,
    id=ids,
    clients_selected=counts,
    clients_reported=counts,
    clients_missing=reasons,
    traffic=traffics,
    seconds=floats,
    client_seconds=floats,
    gradient_evaluations=counts,
    loss=st.none() | floats,
    client_evaluation=st.none() | evaluations,
    metrics=numbers,
    by_client=st.dictionaries(texts, numbers, max_size=2),
    lost=traffics,
)
EVENTS: dict[type, st.SearchStrategy[Event]] = {
    RunStarted: st.builds(RunStarted, counts, clients, reasons),
    Resumed: st.builds(Resumed, counts, counts, st.lists(st.tuples(ids, traffics), max_size=2).map(tuple), traffics, floats, reasons),
    RoundStarted: st.builds(
        RoundStarted, counts, counts, st.none() | st.lists(texts, max_size=3).map(tuple), st.none() | clients, counts, reasons
    ),
    ExchangeDone: st.builds(ExchangeDone, records, names),
    RoundFailed: st.builds(RoundFailed, counts, counts, texts, counts),
    RoundFinished: st.builds(RoundFinished, counts, st.none() | evaluations, counts, reasons, numbers, examples, names, names),
    DeliveryStarted: st.builds(DeliveryStarted, clients, reasons),
    DeliveredLate: st.builds(DeliveredLate, ids, several, traffics),
    RunFinished: st.builds(RunFinished, traffics, reasons),
}
events = st.one_of(*EVENTS.values())


def same(one: Any, other: Any) -> bool:
    """Equal with the types of all parts, signs of zero included; any NaN equals any other."""
    if type(one) is not type(other):
        return False
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    return bool(one == other)


@given(events)
def test_every_event_comes_back_as_it_was(event: Event) -> None:
    line = to_json(event)
    assert b"\n" not in line
    assert same(from_json(line), event)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1])
def test_any_number_survives(value: float) -> None:
    event = RoundFinished(1, Evaluation(1, 0, value), 1, {}, {"x": value}, ExampleCounts(1))
    assert same(from_json(to_json(event)), event)


@pytest.mark.parametrize("text", ["", "é", "\n", "\u2028\x85\x1b[2J", "\x00", '"}', "\U0001d518", '{"kind": "x"}'])
def test_any_text_survives_on_one_line(text: str) -> None:
    event = RoundFailed(1, 0, text)
    assert from_json(to_json(event)) == event
    assert to_json(event).splitlines() == [to_json(event)]


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", '{"kind": "unheard_of"}', '{"kind": "round_failed"}', '{"kind": "round_failed", "round": "x"}']
)
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValidationError):
        from_json(line)
