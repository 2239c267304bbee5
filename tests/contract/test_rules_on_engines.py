"""What every rule promises on every engine: the same bits and the same ratios, whoever is first, last or lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_table import EngineUnderTest, agreed, on_every_engine
from harness import answering, exchange_of, filled

from feddkd.aggregator.compared import ComparedElements
from feddkd.aggregator.rule import Rule, RuleContext
from feddkd.config import Config
from feddkd.config.aggregation import RuleTable
from feddkd.exchange import Exchange
from feddkd.registry import RULES
from feddkd.tensors import Schema, Tensors, TensorSpec

SCHEMA = Schema(
    [
        TensorSpec("w", torch.float32, (700,)),
        TensorSpec("mean", torch.float32, (30,), trainable=False),
        TensorSpec("steps", torch.int64, (), trainable=False),
    ]
)
CLIENTS = {f"c{number}": 1.0 + number for number in range(6)}
SMALL_CHUNKS = "transport.chunk_bytes=1024"


def contributions(**sizes: float) -> dict[str, Tensors]:
    """One for each client, with trainable tensors of other sizes for some."""
    found = {client: filled(SCHEMA, seed) for seed, client in enumerate(CLIENTS, start=1)}
    for client, size in sizes.items():
        found[client]["w"].mul_(size)
    return found


def rule_of(name: str, **settings: Any) -> Rule:
    table = Config.parse({"aggregation": {"rule": {"name": name, **settings}}}).aggregation.rule
    assert isinstance(table, RuleTable)
    chosen: Rule = RULES[name].of(table, RuleContext(ComparedElements.of(SCHEMA), outlier_ratio=6.0))
    return chosen


def exchange(rule: Rule, clients: dict[str, float] | None = None) -> Exchange:
    return exchange_of(clients or CLIENTS, filled(SCHEMA, 0), reply_schema=SCHEMA, rule=rule)


@on_every_engine
@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_has_the_same_bits_on_every_engine(name: str, engine: EngineUnderTest) -> None:
    parts = contributions(c2=-20.0)
    workers = {client: answering(part) for client, part in parts.items()}
    outcome = agreed(engine, exchange(rule_of(name)), workers, SMALL_CHUNKS, model=SCHEMA)
    assert outcome.reduced is not None
    assert max(outcome.ratios, key=lambda client: outcome.ratios[client]) == "c2"
    assert outcome.ratios["c2"] > 6


@on_every_engine
def test_what_is_brought_to_the_usual_length_counts_with_its_direction_only(engine: EngineUnderTest) -> None:
    workers = {client: answering(part) for client, part in contributions(c5=1e6).items()}
    outcome = agreed(engine, exchange(rule_of("mean")), workers, SMALL_CHUNKS, model=SCHEMA)
    usual = {client: answering(part) for client, part in contributions().items()}
    expected = agreed(engine, exchange(rule_of("mean")), usual, SMALL_CHUNKS, model=SCHEMA)
    assert outcome.reduced is not None
    assert expected.reduced is not None
    assert float(outcome.reduced["w"].norm()) < 2 * float(expected.reduced["w"].norm())
    without = {client: weight for client, weight in CLIENTS.items() if client != "c5"}
    honest = agreed(engine, exchange(rule_of("mean"), without), usual, SMALL_CHUNKS, model=SCHEMA)
    assert honest.reduced is not None
    assert torch.equal(outcome.reduced["mean"], honest.reduced["mean"])
    assert torch.equal(outcome.reduced["steps"], honest.reduced["steps"])


@on_every_engine
def test_a_sum_that_is_too_large_is_no_fault_where_it_is_brought_to_the_usual_length(engine: EngineUnderTest) -> None:
    parts = contributions(c0=1e30)
    workers = {client: answering(part) for client, part in parts.items()}
    outcome = agreed(engine, exchange(rule_of("mean")), workers, SMALL_CHUNKS, model=SCHEMA)
    assert outcome.fault == ""
    assert outcome.reduced is not None
    assert float(outcome.reduced["w"].norm()) < 10 * float(parts["c1"]["w"].norm())


@on_every_engine
def test_too_few_contributions_are_a_fault_that_says_how_many_are_needed(engine: EngineUnderTest) -> None:
    workers = {client: answering(part) for client, part in contributions().items()}
    outcome = agreed(engine, exchange(rule_of("krum", hostile=2)), workers, SMALL_CHUNKS, model=SCHEMA)
    assert outcome.reduced is None
    assert outcome.fault == "krum with hostile = 2 and keep = 0 needs 7 contributions, 6 came"
    assert list(outcome.replies) == list(CLIENTS)
