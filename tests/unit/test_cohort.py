import math
from collections.abc import Callable, Mapping

import pytest
import torch
from harness import RUN_ID, SCHEMA, filled, mean_of

from feddkd.aggregator.mean import GuardedMean
from feddkd.config import Config
from feddkd.errors import NotFiniteError, QuorumError
from feddkd.exchange import (
    UPDATE_NORM_SQUARED,
    Cause,
    ExampleCounts,
    Exchange,
    ExchangeId,
    ExchangeKind,
    Missing,
    Outcome,
    Reply,
    scalar,
    trainable_parameters,
)
from feddkd.scheduler.cohort import DRIFT_DIVERSITY, Attempt, RoundCohort
from feddkd.scheduler.downlink import Downlink
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.rule_book import RuleBook
from feddkd.scheduler.tally import RoundTally
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

KINDS = {
    "train": ExchangeKind(),
    "step": ExchangeKind(reply=trainable_parameters),
    "tell": ExchangeKind(reply=None),
    "count": ExchangeKind(reply=scalar),
}
MODEL = filled(SCHEMA, 0)
CONFIG = Config.load(overrides=["scheduler.deadline_s=7"])

SILENT = Missing(Cause.SILENT, "no reply within 7 s")
STALLED = Missing(Cause.SILENT, "its reply stalled for 60 s")
FAILED = Missing(Cause.FAILED, "no data")
GONE = Missing(Cause.DISCONNECTED, "not connected")
REFUSED = Missing(Cause.REFUSED, "refused: the loss is nan")
CLOSED = Missing(Cause.CLOSED, "the exchange closed after 2 replies")

CarryOut = Callable[[Exchange], Outcome]
Script = Mapping[tuple[str, int], Mapping[str, Missing]]


class Scripted:
    """Carries out exchanges: every client replies, except those that the script leaves out."""

    def __init__(self, missing: Script | None = None, fault: str = "") -> None:
        self.missing = missing or {}
        self.fault = fault
        self.exchanges: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> Outcome:
        self.exchanges.append(exchange)
        scripted = self.missing.get((exchange.id.name, exchange.id.step), {})
        missing = {client: scripted[client] for client in exchange.clients if client in scripted}
        replied = [client for client in exchange.clients if client not in scripted]
        replies = {client: Reply(loss=float(len(client))) for client in replied}
        schema = exchange.reply_schema
        reduced = filled(schema, 1) if schema is not None and replies and not self.fault else None
        return Outcome(reduced, replies, missing, Traffic(1, 10, 100, 1000), 0.5, self.fault)

    def asked(self) -> list[list[str]]:
        """The clients of each exchange."""
        return [list(exchange.clients) for exchange in self.exchanges]


TWO = Schema(
    [
        TensorSpec("w", torch.float64, (2,)),
        TensorSpec("count", torch.float64, (), trainable=False),
    ]
)


def two(x: float, y: float) -> Tensors:
    """A vector, and beside it a buffer that should count for nothing."""
    values = {
        "w": torch.tensor([x, y], dtype=torch.float64),
        "count": torch.tensor(99.0, dtype=torch.float64),
    }
    return Tensors.copy_of(TWO, values)


def claim(norm_squared: float) -> Reply:
    return Reply(metrics={UPDATE_NORM_SQUARED: norm_squared})


def averaging(updates: Mapping[str, Tensors]) -> CarryOut:
    """Clients reply with these updates and their squared norms over what is trainable."""

    def carry_out(exchange: Exchange) -> Outcome:
        norms = {client: update.select(TWO.trainable).norm() for client, update in updates.items()}
        replies = {client: claim(norm**2) for client, norm in norms.items()}
        return Outcome(mean_of(updates, exchange.clients), replies, {}, Traffic(), 0.0)

    return carry_out


def cohort_of(
    carry_out: CarryOut,
    clients: Mapping[str, int],
    min_clients: int = 1,
    on_exchange: Callable[[ExchangeRecord], None] = lambda _: None,
    others: int = 0,
    schema: Schema = SCHEMA,
) -> RoundCohort:
    return RoundCohort(
        Attempt(RUN_ID, 3, 1),
        {client: ExampleCounts(number) for client, number in clients.items()},
        ExchangePlan(CONFIG, KINDS, schema, RuleBook(CONFIG.aggregation), Downlink(CONFIG)),
        lambda exchange, account: on_exchange(account(carry_out(exchange))),
        available={client: ExampleCounts(number) for client, number in {**clients, "other": others}.items()},
        min_clients=min_clients,
    )


CLIENTS = {"c": 1, "a": 2, "bb": 3}


def test_an_exchange_says_who_what_and_until_when() -> None:
    engine = Scripted()
    cohort_of(engine, CLIENTS).exchange("step", MODEL, step=4)
    (exchange,) = engine.exchanges
    assert exchange.id == ExchangeId(RUN_ID, 3, 1, "step", 4)
    assert list(exchange.clients.items()) == [("a", 2.0), ("bb", 3.0), ("c", 1.0)]
    assert exchange.payload is MODEL
    assert exchange.reply_schema == SCHEMA.trainable
    assert isinstance(exchange.rule, GuardedMean)
    assert exchange.closing.deadline_s == 7.0


def test_only_the_first_exchange_of_a_round_evaluates() -> None:
    engine = Scripted()
    cohort = cohort_of(engine, CLIENTS)
    for step in range(3):
        cohort.exchange("train", MODEL, step)
    assert [exchange.evaluate for exchange in engine.exchanges] == [True, False, False]


@pytest.mark.parametrize("missing", [SILENT, FAILED, GONE, REFUSED, CLOSED])
def test_who_misses_the_first_exchange_is_not_in_the_round(missing: Missing) -> None:
    engine = Scripted({("train", 0): {"a": missing}})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL, 0)
    assert engine.asked() == [["a", "bb", "c"], ["bb", "c"]]
    assert cohort.clients_reported == 2
    assert cohort.clients_missing == {"a": missing.reason}


@pytest.mark.parametrize("missing", [FAILED, GONE, REFUSED, CLOSED])
def test_who_misses_one_later_exchange_is_asked_again(missing: Missing) -> None:
    engine = Scripted({("step", 0): {"c": missing}})
    cohort = cohort_of(engine, CLIENTS)
    for name, step in [("train", 0), ("step", 0), ("step", 1)]:
        cohort.exchange(name, MODEL, step)
    assert engine.asked() == [["a", "bb", "c"]] * 3
    assert cohort.clients_missing == {"c": f"step 1: {missing.reason}"}


# A client that is not waited for.


@pytest.mark.parametrize("missing", [SILENT, STALLED])
def test_a_client_that_was_silent_until_the_deadline_costs_a_round_one_deadline(
    missing: Missing,
) -> None:
    engine = Scripted({("step", step): {"a": missing} for step in range(2, 20)})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    for step in range(20):
        cohort.exchange("step", MODEL, step)
    assert ["a" in asked for asked in engine.asked()] == [True] * 4 + [False] * 17


@pytest.mark.parametrize(
    ("first", "second"),
    [(FAILED, FAILED), (GONE, REFUSED), (CLOSED, CLOSED), (REFUSED, GONE), (FAILED, SILENT)],
)
def test_a_client_that_misses_two_exchanges_is_not_asked_again(
    first: Missing,
    second: Missing,
) -> None:
    engine = Scripted({("step", 0): {"a": first}, ("step", 2): {"a": second}})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    for step in range(5):
        cohort.exchange("step", MODEL, step)
    assert ["a" in asked for asked in engine.asked()] == [True] * 4 + [False] * 2


def test_misses_of_different_clients_do_not_add_up() -> None:
    engine = Scripted({("step", 0): {"a": FAILED}, ("step", 1): {"c": FAILED}})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    for step in range(3):
        cohort.exchange("step", MODEL, step)
    assert engine.asked() == [["a", "bb", "c"]] * 4


def test_a_client_that_is_not_asked_is_missing_in_every_later_record() -> None:
    records: list[ExchangeRecord] = []
    engine = Scripted({("step", 0): {"c": SILENT}, ("step", 1): {"a": FAILED}})
    cohort = cohort_of(engine, CLIENTS, on_exchange=records.append)
    cohort.exchange("train", MODEL)
    for step in range(3):
        cohort.exchange("step", MODEL, step)
    not_asked = "not asked after it missed step 1: no reply within 7 s"
    assert [record.clients_missing for record in records] == [
        {},
        {"c": "no reply within 7 s"},
        {"a": "no data", "c": not_asked},
        {"c": not_asked},
    ]
    assert [record.clients_selected for record in records] == [3, 3, 3, 3]
    assert [record.clients_reported for record in records] == [3, 2, 1, 2]


def test_a_client_that_is_not_asked_still_counts_in_the_share() -> None:
    engine = Scripted({("step", 0): {"c": SILENT}})
    cohort = cohort_of(engine, CLIENTS, others=6)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL, 0)
    cohort.exchange("step", MODEL, 1)
    assert cohort.share == pytest.approx(6 / 12)
    assert cohort.loss == pytest.approx((2 * 1 + 3 * 2) / 5)  # of those who replied


def test_a_client_that_is_not_asked_counts_against_the_quorum() -> None:
    engine = Scripted({("step", 0): {"c": SILENT}, ("step", 1): {"a": FAILED}})
    cohort = cohort_of(engine, CLIENTS, min_clients=2)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL, 0)
    with pytest.raises(QuorumError) as failed:
        cohort.exchange("step", MODEL, 1)
    assert str(failed.value) == (
        "round 3 step 2 (attempt 2): 1 of 3 clients answered, 2 are needed "
        "(a: no data; c: not asked after it missed step 1: no reply within 7 s)"
    )


def test_when_no_client_is_left_to_ask_an_exchange_fails() -> None:
    engine = Scripted({("step", 0): dict.fromkeys(CLIENTS, SILENT)})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    with pytest.raises(QuorumError):
        cohort.exchange("step", MODEL, 0)
    with pytest.raises(QuorumError, match=r"0 of 3 clients answered, 1 are needed \(a: not asked"):
        cohort.exchange("step", MODEL, 1)


# The quorum.


def test_below_the_quorum_an_exchange_fails_and_says_who_is_missing_and_why() -> None:
    engine = Scripted({("train", 0): {"a": GONE, "c": SILENT}})
    records: list[ExchangeRecord] = []
    cohort = cohort_of(engine, CLIENTS, min_clients=2, on_exchange=records.append)
    with pytest.raises(QuorumError) as failed:
        cohort.exchange("train", MODEL)
    answered, reasons = "1 of 3 clients answered", "a: not connected; c: no reply within 7 s"
    assert str(failed.value) == f"round 3 train 1 (attempt 2): {answered}, 2 are needed ({reasons})"
    # It is on record all the same, and its bytes are counted.
    assert records[0].clients_missing == {"a": "not connected", "c": "no reply within 7 s"}
    assert records[0].clients_selected == 3
    assert records[0].traffic == Traffic(1, 10, 100, 1000)


@pytest.mark.parametrize(
    ("missing", "lost"),
    [
        (GONE, True),
        (SILENT, False),
        (Missing(Cause.FAILED, "disconnected from my camera"), False),
        (Missing(Cause.REFUSED, "not connected"), False),
    ],
)
def test_a_failure_tells_a_lost_connection_from_a_clients_own_words(
    missing: Missing,
    lost: bool,
) -> None:
    cohort = cohort_of(Scripted({("train", 0): {"a": missing}}), CLIENTS, min_clients=3)
    with pytest.raises(QuorumError) as failed:
        cohort.exchange("train", MODEL)
    assert failed.value.connection_lost is lost


def test_exactly_the_quorum_is_enough() -> None:
    engine = Scripted({("train", 0): {"a": SILENT}})
    assert cohort_of(engine, CLIENTS, min_clients=2).exchange("train", MODEL).schema == SCHEMA


def test_a_cohort_of_nobody_needs_a_quorum_of_none() -> None:
    assert cohort_of(Scripted(), {}, min_clients=0).report("tell", MODEL).replies == {}
    with pytest.raises(QuorumError, match=r"0 of 0 clients answered, 1 are needed$"):
        cohort_of(Scripted(), {}).exchange("train", MODEL)


# What is not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_payload_that_is_not_finite_is_not_sent(value: float) -> None:
    engine, records = Scripted(), list[ExchangeRecord]()
    payload = filled(SCHEMA, 2)
    payload["layer.bias"][3] = value
    cohort = cohort_of(engine, CLIENTS, on_exchange=records.append)
    with pytest.raises(NotFiniteError, match=r"^round 3 step 2 \(attempt 2\): .* not finite$"):
        cohort.exchange("step", payload, 1)
    assert (engine.exchanges, records) == ([], [])


def test_a_reduction_that_failed_is_on_record_and_then_fails_the_attempt() -> None:
    engine = Scripted(fault="the reduced contributions are unusable; largest: a (norm 1e+17)")
    records: list[ExchangeRecord] = []
    cohort = cohort_of(engine, CLIENTS, on_exchange=records.append)
    with pytest.raises(NotFiniteError) as failed:
        cohort.exchange("train", MODEL)
    assert str(failed.value) == f"round 3 train 1 (attempt 2): {engine.fault}"
    assert not failed.value.connection_lost
    assert [record.clients_reported for record in records] == [3]
    assert [record.traffic for record in records] == [Traffic(1, 10, 100, 1000)]


# What is on record.


def test_records_tell_counts_bytes_and_the_weighted_loss() -> None:
    records: list[ExchangeRecord] = []
    engine = Scripted({("train", 0): {"c": SILENT}})
    cohort = cohort_of(engine, CLIENTS, on_exchange=records.append)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL)
    first = records[0]
    assert (first.clients_selected, first.clients_reported) == (3, 2)
    assert first.clients_missing == {"c": "no reply within 7 s"}
    assert first.loss == pytest.approx((2 * 1 + 3 * 2) / 5)
    assert [record.traffic for record in records] == [Traffic(1, 10, 100, 1000)] * 2


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1}, {"a": 1, "b": 3}])
def test_drift_diversity_is_one_where_updates_agree_and_two_where_two_are_orthogonal(
    weights: Mapping[str, int],
) -> None:
    def diversity(*values: tuple[float, float]) -> float | None:
        updates = {client: two(*each) for client, each in zip(weights, values, strict=True)}
        records = list[ExchangeRecord]()
        cohort = cohort_of(averaging(updates), weights, on_exchange=records.append, schema=TWO)
        cohort.exchange("train", two(0, 0))
        return records[0].metrics.get(DRIFT_DIVERSITY)

    assert diversity((3, 4), (3, 4)) == pytest.approx(1)
    # Weights 1 and 1: 4 over 2. Weights 1 and 3: 4 over (0.5)^2 + (1.5)^2.
    assert diversity((2, 0), (0, 2)) == pytest.approx(2 if weights["b"] == 1 else 1.6)
    # They cancel out, or there are none: no mean to compare with.
    assert diversity((3, 0), (-3 / weights["b"], 0)) is None
    assert diversity((0, 0), (0, 0)) is None


def claiming(norm_squared: float, reduced: Callable[[Schema], Tensors]) -> CarryOut:
    """One client claims this norm, whatever its contribution is."""

    def carry_out(exchange: Exchange) -> Outcome:
        assert exchange.reply_schema is not None
        replies = dict.fromkeys(exchange.clients, claim(norm_squared))
        return Outcome(reduced(exchange.reply_schema), replies, {}, Traffic(), 0.0)

    return carry_out


def test_a_made_up_norm_beside_numbers_harms_nothing() -> None:
    """The contribution has no parameters of the model whose norm it could be."""
    records: list[ExchangeRecord] = []
    cohort = cohort_of(claiming(4.0, Tensors), {"a": 1}, on_exchange=records.append)
    cohort.exchange("count", MODEL)
    assert records[0].metrics == {UPDATE_NORM_SQUARED: 4.0}


@pytest.mark.parametrize("tiny", [5e-324, 1e-200, 1e-160, 1e-139])
def test_a_made_up_norm_of_a_tiny_update_overflows_nothing(tiny: float) -> None:
    tally = RoundTally()
    update = two(tiny, 0)
    engine = claiming(1e30, lambda _: update)
    cohort = cohort_of(engine, {"a": 1}, on_exchange=tally.add, schema=TWO)
    for step in range(20):
        cohort.exchange("train", two(0, 0), step)
    assert all(math.isfinite(mean) for mean in tally.metrics.values())


def test_who_says_nothing_of_a_metric_does_not_count_in_its_mean() -> None:
    replies = {
        "a": Reply(metrics={"x": 1.0}),
        "b": Reply(metrics={"x": 5.0, "y": 2.0}),
        "c": Reply(),
    }
    outcome = Outcome(None, replies, {}, Traffic(), 0.0)
    assert outcome.mean_metrics({"a": 3.0, "b": 1.0, "c": 6.0}) == {"x": 2.0, "y": 2.0}


def test_work_and_computing_time_add_up() -> None:
    replies = {
        "a": Reply(compute_s=0.5, gradient_evaluations=100),
        "b": Reply(compute_s=0.25, gradient_evaluations=2**64 - 1),
    }
    outcome = Outcome(None, replies, {}, Traffic(), 0.0)
    assert (outcome.gradient_evaluations, outcome.client_seconds) == (2**64 + 99, 0.75)


def test_the_share_is_of_those_selected_and_then_of_those_who_replied() -> None:
    engine = Scripted({("train", 0): {"a": SILENT}, ("step", 0): {"c": FAILED}})
    cohort = cohort_of(engine, CLIENTS, others=6)
    assert cohort.share == pytest.approx(6 / 12)
    cohort.exchange("train", MODEL)
    assert cohort.share == pytest.approx(4 / 12)
    cohort.exchange("step", MODEL)
    assert cohort.share == pytest.approx(4 / 12)


def test_the_weights_are_of_those_selected_and_then_of_those_who_answered() -> None:
    cohort = cohort_of(Scripted({("train", 0): {"a": SILENT}, ("step", 0): {"c": FAILED}}), CLIENTS)
    assert list(cohort.weights) == [2.0, 3.0, 1.0]
    cohort.exchange("train", MODEL)
    assert list(cohort.weights) == [3.0, 1.0]
    cohort.exchange("step", MODEL)
    assert list(cohort.weights) == [3.0, 1.0]


def test_the_loss_is_that_of_the_latest_exchange() -> None:
    engine = Scripted({("train", 0): {"c": SILENT}, ("step", 0): {"bb": FAILED}})
    cohort = cohort_of(engine, CLIENTS)
    assert cohort.loss is None
    cohort.exchange("train", MODEL)
    assert cohort.loss == pytest.approx((2 * 1 + 3 * 2) / 5)
    cohort.exchange("step", MODEL)
    assert cohort.loss == pytest.approx(1)


def test_a_remembered_outcome_decides_who_is_in_the_round() -> None:
    """The scheduler may return an outcome of before: whoever replied then is asked now."""
    engine = Scripted()
    remembered = Outcome(
        filled(SCHEMA, 9),
        {"bb": Reply()},
        {"a": GONE, "c": GONE},
        Traffic(5, 5, 5, 5),
        1.0,
    )

    def carry_out(exchange: Exchange) -> Outcome:
        return remembered if exchange.id.name == "train" else engine(exchange)

    records: list[ExchangeRecord] = []
    cohort = cohort_of(carry_out, CLIENTS, on_exchange=records.append)
    assert cohort.exchange("train", MODEL) is remembered.reduced
    cohort.exchange("step", MODEL)
    assert engine.asked() == [["bb"]]
    assert [record.id.name for record in records] == ["train", "step"]


def test_an_exchange_that_the_algorithm_does_not_declare_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError, match="unheard_of"):
        cohort_of(Scripted(), CLIENTS).exchange("unheard_of", Tensors(SCHEMA))


@pytest.mark.parametrize(("diverged", "fails"), [(1, False), (2, True), (3, True)])
def test_where_most_clients_say_that_the_model_is_of_no_use_the_round_fails(diverged: int, fails: bool) -> None:
    names = sorted(CLIENTS)[:diverged]
    ruined = dict.fromkeys(names, Missing(Cause.DIVERGED, "refused: the loss is nan"))
    cohort = cohort_of(Scripted({("train", 0): ruined}), CLIENTS, min_clients=0)
    if fails:
        with pytest.raises(NotFiniteError, match="most clients cannot use the model"):
            cohort.report("train", MODEL)
    else:
        assert len(cohort.report("train", MODEL).replies) == 2


def test_a_quorum_that_a_silent_client_broke_says_so() -> None:
    for missing, silent in ((SILENT, True), (FAILED, False)):
        with pytest.raises(QuorumError) as failed:
            cohort_of(Scripted({("train", 0): {"a": missing}}), CLIENTS, min_clients=3).exchange("train", MODEL)
        assert failed.value.silent is silent
