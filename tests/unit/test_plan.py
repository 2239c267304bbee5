"""What a configuration says of an exchange: when it closes, and what a client may contribute."""

from collections.abc import Mapping
from dataclasses import fields, replace

import pytest
from harness import RUN_ID, SCHEMA, OrderSensitiveMean, filled
from hypothesis import example, given
from hypothesis import strategies as st

from feddkd.aggregator.mean import GuardedMean
from feddkd.compression.broadcaster import Broadcast
from feddkd.compression.codecs import find
from feddkd.compression.constants import Constants
from feddkd.compression.encoding import Encoding
from feddkd.config import Config
from feddkd.exchange import (
    DELIVER,
    DELIVER_KIND,
    Closing,
    EvaluationForm,
    Exchange,
    ExchangeId,
    ExchangeKind,
    trainable_parameters,
)
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.rule_book import RuleBook
from feddkd.tensors import Tensors

KINDS = {
    "local_train": ExchangeKind(),
    "dkd_step": ExchangeKind(reply=trainable_parameters),
    "tell": ExchangeKind(reply=None),
    DELIVER: DELIVER_KIND,
}
PAYLOAD = filled(SCHEMA, 0)
FIVE = dict.fromkeys("abcde", 1.0)


def exchange_of(
    *overrides: str,
    name: str = "dkd_step",
    clients: Mapping[str, float] = FIVE,
    evaluate: bool = False,
) -> Exchange:
    config = Config.load(overrides=overrides)
    plan = ExchangePlan(config, KINDS, SCHEMA, RuleBook(config.aggregation), Downlink(config))
    return plan.describe(ExchangeId(RUN_ID, 1, 0, name, 2), clients, PAYLOAD, evaluate=evaluate)


def closing_of(*overrides: str, clients: int = 5, name: str = "dkd_step") -> Closing:
    named = {f"client-{index}": 1.0 for index in range(clients)}
    return exchange_of(*overrides, name=name, clients=named).closing


def test_an_exchange_holds_what_it_was_asked_for() -> None:
    weights = {"a": 2.0, "b": 3.0}
    exchange = exchange_of(clients=weights, evaluate=True)
    assert exchange.id == ExchangeId(RUN_ID, 1, 0, "dkd_step", 2)
    assert exchange.clients == weights
    assert exchange.payload is PAYLOAD
    assert isinstance(exchange.rule, GuardedMean)
    assert exchange.evaluate
    assert not exchange_of().evaluate


def test_what_a_client_may_contribute_depends_on_the_exchanges_name() -> None:
    assert exchange_of(name="local_train").reply_schema == SCHEMA
    assert exchange_of(name="dkd_step").reply_schema == SCHEMA.trainable
    assert exchange_of(name="tell").reply_schema is None


def test_a_norm_is_bounded_by_the_exchanges_name() -> None:
    overrides = "aggregation.max_norm.local_train=12.5", "aggregation.max_norm.dkd_step=3"
    assert exchange_of(*overrides, name="local_train").max_norm == 12.5
    assert exchange_of(*overrides, name="dkd_step").max_norm == 3
    assert exchange_of(*overrides, name="tell").max_norm is None
    assert exchange_of(name="dkd_step").max_norm is None


# When it closes.


def test_by_default_an_exchange_waits_for_all_until_the_deadline() -> None:
    settings = Config.load(overrides=[]).scheduler
    assert closing_of() == Closing(
        deadline_s=settings.deadline_s,
        enough=1,
        grace_after_enough_s=None,
        reconnect_grace_s=settings.reconnect_grace_s,
        stall_timeout_s=settings.stall_timeout_s,
    )


def test_the_times_are_the_configurations() -> None:
    closing = closing_of(
        "scheduler.deadline_s=7",
        "scheduler.reconnect_grace_s=8",
        "scheduler.stall_timeout_s=9",
        "scheduler.grace_after_quorum_s=10",
    )
    assert (closing.deadline_s, closing.reconnect_grace_s) == (7.0, 8.0)
    assert (closing.stall_timeout_s, closing.grace_after_enough_s) == (9.0, 10.0)


GRACE = "scheduler.grace_after_quorum_s=30"
FOUR = "scheduler.enough=4"
HALF = "scheduler.enough=0.5"
QUORUM = "scheduler.min_clients=3"


@pytest.mark.parametrize(
    ("overrides", "enough", "grace_s"),
    [
        # All: the grace begins with the quorum, and without one it is the deadline that counts.
        ([], 1, None),
        ([QUORUM], 3, None),
        ([QUORUM, GRACE], 3, 30.0),
        (["scheduler.clients=4"], 4, None),
        (["scheduler.clients=4", "scheduler.min_clients=2", GRACE], 2, 30.0),
        # A number or a share: closes at once, unless a grace is asked for.
        ([FOUR], 4, 0.0),
        ([FOUR, GRACE], 4, 30.0),
        ([FOUR, QUORUM], 4, 0.0),
        ([HALF], 3, 0.0),  # 2.5 of 5, rounded up
        ([HALF, GRACE], 3, 30.0),
        (["scheduler.enough=0.2"], 1, 0.0),
        (["scheduler.enough=1.0"], 5, 0.0),
        # Never fewer than the quorum: the exchange would fail.
        (["scheduler.enough=0.2", QUORUM], 3, 0.0),
        # More than there are: it waits for all of them.
        (["scheduler.enough=50"], 50, 0.0),
    ],
)
def test_an_exchange_may_close_after_enough_replies(
    overrides: list[str],
    enough: int,
    grace_s: float | None,
) -> None:
    closing = closing_of(*overrides)
    assert (closing.enough, closing.grace_after_enough_s) == (enough, grace_s)


@given(st.integers(1, 1000), st.integers(1, 100))
@example(100, 7)  # 0.07 * 100 is more than 7 in float64
def test_a_share_is_of_the_clients_asked_rounded_up(clients: int, percent: int) -> None:
    closing = closing_of(f"scheduler.enough={percent / 100}", clients=clients)
    assert closing.enough == -(-percent * clients // 100)


@pytest.mark.parametrize("setting", [FOUR, HALF])
def test_the_final_model_is_not_withheld_from_who_is_slower_than_enough_others(
    setting: str,
) -> None:
    assert closing_of(setting, name=DELIVER) == closing_of(name=DELIVER)
    # The grace after the quorum is for silent clients, and they must not hold up the end of a run.
    delivery = closing_of(setting, GRACE, QUORUM, name=DELIVER)
    assert (delivery.enough, delivery.grace_after_enough_s) == (3, 30.0)


# Exchanges are values.


def test_equal_configurations_give_equal_exchanges() -> None:
    overrides = "scheduler.enough=0.5", "scheduler.deadline_s=7", "aggregation.max_norm.dkd_step=3"
    first, second = exchange_of(*overrides), exchange_of(*overrides)
    assert first is not second
    assert first == second


def test_settings_that_change_no_outcome_change_no_exchange() -> None:
    assert exchange_of("transport.staging_bytes=2000000") == exchange_of()


@pytest.mark.parametrize(
    "override",
    [
        "scheduler.deadline_s=7",
        "scheduler.enough=2",
        "scheduler.grace_after_quorum_s=1",
        "scheduler.min_clients=2",
        "scheduler.reconnect_grace_s=1",
        "scheduler.stall_timeout_s=1",
        "aggregation.max_norm.dkd_step=3",
        "aggregation.weight_cap=2",
    ],
)
def test_settings_that_change_an_outcome_change_the_exchange(override: str) -> None:
    assert exchange_of(override) != exchange_of()


def test_exchanges_differ_in_every_field_but_the_payload() -> None:
    exchange = exchange_of()
    others = {
        "id": replace(exchange.id, step=3),
        "clients": {**FIVE, "a": 2.0},
        "reply_schema": None,
        "rule": OrderSensitiveMean(),
        "closing": replace(exchange.closing, deadline_s=1.0),
        "evaluate": True,
        "max_norm": 1.0,
        "reply_codec": find("eden1", unbiased=True),
        "seed": 1,
        "broadcast": Broadcast(b"version", Encoding(SCHEMA, 1 << 20).encode(Tensors(SCHEMA))),
        "zstd": True,
        "constants": Constants.of(filled(SCHEMA, 1)),
        "evaluation_form": EvaluationForm(counts_correct=False),
        "weight_cap": 2.0,
    }
    assert {field.name for field in fields(Exchange)} == {"payload", *others}
    for name, value in others.items():
        assert replace(exchange, **{name: value}) != exchange  # type: ignore[arg-type]
