import math
from collections.abc import Callable, Mapping

import pytest
import torch
from harness import RUN_ID, SCHEMA, filled, mean_of

from feddkd.errors import QuorumError
from feddkd.exchange import UPDATE_NORM_SQUARED, ExchangeId, ExchangeKind, trainable_parameters
from feddkd.scheduler.cohort import DRIFT_DIVERSITY, RoundCohort
from feddkd.scheduler.engine import ClientStates, Exchange, Outcome, Report
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.records import ExchangeRecord
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

KINDS = {"train": ExchangeKind(), "step": ExchangeKind(answer=trainable_parameters), "tell": ExchangeKind(answer=None)}
MODEL = filled(SCHEMA, 0)


class ScriptedEngine:
    """Everybody answers, but for those that the script leaves out."""

    def __init__(self, missing: Mapping[tuple[str, int], Mapping[str, str]] | None = None) -> None:
        self.missing = missing or {}
        self.exchanges: list[Exchange] = []

    def carry_out(self, exchange: Exchange) -> Outcome:
        self.exchanges.append(exchange)
        missing = self.missing.get((exchange.id.name, exchange.id.step), {})
        reports = {client: Report(loss=float(len(client))) for client in exchange.clients if client not in missing}
        mean = filled(exchange.answer_schema, 1) if exchange.answer_schema is not None and reports else None
        return Outcome(mean, reports, dict(missing), Traffic(1, 10, 100, 1000), 0.5)

    def clients(self) -> Mapping[str, int]:
        raise NotImplementedError

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        raise NotImplementedError

    def other_traffic(self) -> Traffic:
        raise NotImplementedError

    def states(self) -> ClientStates:
        raise NotImplementedError

    def finish(self, completed: bool, reason: str) -> None:
        raise NotImplementedError


TWO = Schema([TensorSpec("w", torch.float64, (2,)), TensorSpec("count", torch.float64, (), trainable=False)])


def two(x: float, y: float) -> Tensors:
    """A vector, and beside it a buffer that should count for nothing."""
    return Tensors.copy_of(TWO, {"w": torch.tensor([x, y], dtype=torch.float64), "count": torch.tensor(99.0, dtype=torch.float64)})


class AveragingEngine(ScriptedEngine):
    """Clients answer with these updates and their squared norms over what is trainable."""

    def __init__(self, updates: Mapping[str, Tensors]) -> None:
        super().__init__()
        self.updates = updates

    def carry_out(self, exchange: Exchange) -> Outcome:
        reports = {
            client: Report(metrics={UPDATE_NORM_SQUARED: update.select(TWO.trainable).norm() ** 2})
            for client, update in self.updates.items()
        }
        return Outcome(mean_of(self.updates, exchange.clients), reports, {}, Traffic(), 0.0)


def cohort_of(
    engine: ScriptedEngine,
    clients: Mapping[str, float],
    min_clients: int = 1,
    journal: Journal | None = None,
    on_exchange: Callable[[ExchangeRecord], None] = lambda _: None,
    total_weight: float | None = None,
    schema: Schema = SCHEMA,
) -> RoundCohort:
    return RoundCohort(
        engine,
        clients,
        math.fsum(clients.values()) if total_weight is None else total_weight,
        KINDS,
        schema,
        run_id=RUN_ID,
        round_number=3,
        attempt=1,
        min_clients=min_clients,
        deadline_s=7.0,
        journal=journal or NoJournal(),
        on_exchange=on_exchange,
    )


CLIENTS = {"c": 1.0, "a": 2.0, "bb": 3.0}


def test_an_exchange_says_who_what_and_until_when() -> None:
    engine = ScriptedEngine()
    cohort_of(engine, CLIENTS).exchange("step", MODEL, step=4)
    (exchange,) = engine.exchanges
    assert exchange.id == ExchangeId(RUN_ID, 3, 1, "step", 4)
    assert list(exchange.clients.items()) == [("a", 2.0), ("bb", 3.0), ("c", 1.0)]
    assert exchange.payload is MODEL
    assert exchange.answer_schema == SCHEMA.trainable
    assert exchange.deadline_s == 7.0


def test_only_the_first_exchange_of_a_round_evaluates() -> None:
    engine = ScriptedEngine()
    cohort = cohort_of(engine, CLIENTS)
    for step in range(3):
        cohort.exchange("train", MODEL, step)
    assert [exchange.evaluate for exchange in engine.exchanges] == [True, False, False]


def test_who_misses_the_first_exchange_is_not_asked_again_but_who_misses_a_later_one_is() -> None:
    engine = ScriptedEngine({("train", 0): {"a": "slow"}, ("step", 0): {"c": "slow"}})
    cohort = cohort_of(engine, CLIENTS)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL, 0)
    cohort.exchange("step", MODEL, 1)
    assert [list(exchange.clients) for exchange in engine.exchanges] == [["a", "bb", "c"], ["bb", "c"], ["bb", "c"]]
    assert cohort.clients_reported == 2


def test_below_the_quorum_an_exchange_fails_and_says_who_is_missing_and_why() -> None:
    engine = ScriptedEngine({("train", 0): {"a": "disconnected", "c": "no answer within 7 s"}})
    records: list[ExchangeRecord] = []
    cohort = cohort_of(engine, CLIENTS, min_clients=2, on_exchange=records.append)
    with pytest.raises(QuorumError) as failed:
        cohort.exchange("train", MODEL)
    assert str(failed.value) == (
        "round 3 train[0] attempt 1: 1 of 3 clients answered, 2 are needed (a: disconnected; c: no answer within 7 s)"
    )
    # It is on record all the same, and its bytes are counted.
    assert records[0].clients_missing == {"a": "disconnected", "c": "no answer within 7 s"}
    assert cohort.traffic == Traffic(1, 10, 100, 1000)


def test_exactly_the_quorum_is_enough() -> None:
    engine = ScriptedEngine({("train", 0): {"a": "slow"}})
    assert cohort_of(engine, CLIENTS, min_clients=2).exchange("train", MODEL).schema == SCHEMA


def test_a_cohort_of_nobody_needs_a_quorum_of_none() -> None:
    assert cohort_of(ScriptedEngine(), {}, min_clients=0).report("tell", MODEL).reports == {}
    with pytest.raises(QuorumError, match=r"0 of 0 clients answered, 1 are needed$"):
        cohort_of(ScriptedEngine(), {}).exchange("train", MODEL)


def test_records_tell_counts_bytes_and_the_weighted_loss() -> None:
    records: list[ExchangeRecord] = []
    cohort = cohort_of(ScriptedEngine({("train", 0): {"c": "slow"}}), CLIENTS, on_exchange=records.append)
    cohort.exchange("train", MODEL)
    cohort.exchange("step", MODEL)
    first = records[0]
    assert (first.clients_selected, first.clients_reported, first.clients_missing) == (3, 2, {"c": "slow"})
    assert first.loss == pytest.approx((2 * 1 + 3 * 2) / 5)
    assert cohort.traffic == Traffic(2, 20, 200, 2000)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}])
def test_drift_diversity_is_one_where_updates_agree_and_two_where_two_are_orthogonal(weights: Mapping[str, float]) -> None:
    def diversity(*values: tuple[float, float]) -> float | None:
        updates = {client: two(*each) for client, each in zip(weights, values, strict=True)}
        engine, records = AveragingEngine(updates), list[ExchangeRecord]()
        cohort_of(engine, weights, on_exchange=records.append, schema=TWO).exchange("train", two(0, 0))
        return records[0].metrics.get(DRIFT_DIVERSITY)

    assert diversity((3, 4), (3, 4)) == pytest.approx(1)
    # Weights 1 and 1: 4 over 2. Weights 1 and 3: 4 over (0.5)^2 + (1.5)^2.
    assert diversity((2, 0), (0, 2)) == pytest.approx(2 if weights["b"] == 1 else 1.6)
    # They cancel out, or there are none: no mean to compare with.
    assert diversity((3, 0), (-3 / weights["b"], 0)) is None
    assert diversity((0, 0), (0, 0)) is None


def test_who_says_nothing_of_a_metric_does_not_count_in_its_mean() -> None:
    reports = {"a": Report(metrics={"x": 1.0}), "b": Report(metrics={"x": 5.0, "y": 2.0}), "c": Report()}
    outcome = Outcome(None, reports, {}, Traffic(), 0.0)
    assert outcome.mean_metrics({"a": 3.0, "b": 1.0, "c": 6.0}) == {"x": 2.0, "y": 2.0}


def test_work_and_computing_time_add_up() -> None:
    reports = {"a": Report(compute_s=0.5, gradient_evaluations=100), "b": Report(compute_s=0.25, gradient_evaluations=2**64 - 1)}
    outcome = Outcome(None, reports, {}, Traffic(), 0.0)
    assert (outcome.gradient_evaluations, outcome.client_seconds) == (2**64 + 99, 0.75)


def test_the_share_is_of_those_selected_and_then_of_those_who_answered() -> None:
    cohort = cohort_of(ScriptedEngine({("train", 0): {"a": "slow"}, ("step", 0): {"c": "slow"}}), CLIENTS, total_weight=12.0)
    assert cohort.share == pytest.approx(6 / 12)
    cohort.exchange("train", MODEL)
    assert cohort.share == pytest.approx(4 / 12)
    cohort.exchange("step", MODEL)
    assert cohort.share == pytest.approx(4 / 12)


def test_the_weights_are_of_those_selected_and_then_of_those_who_answered() -> None:
    cohort = cohort_of(ScriptedEngine({("train", 0): {"a": "slow"}, ("step", 0): {"c": "slow"}}), CLIENTS)
    assert list(cohort.weights) == [2.0, 3.0, 1.0]
    cohort.exchange("train", MODEL)
    assert list(cohort.weights) == [3.0, 1.0]
    cohort.exchange("step", MODEL)
    assert list(cohort.weights) == [3.0, 1.0]


def test_the_loss_is_that_of_the_latest_exchange() -> None:
    cohort = cohort_of(ScriptedEngine({("train", 0): {"c": "slow"}, ("step", 0): {"bb": "slow"}}), CLIENTS)
    assert cohort.loss is None
    cohort.exchange("train", MODEL)
    assert cohort.loss == pytest.approx((2 * 1 + 3 * 2) / 5)
    cohort.exchange("step", MODEL)
    assert cohort.loss == pytest.approx(1)


class RememberingJournal:
    def __init__(self, known: Mapping[ExchangeId, Outcome]) -> None:
        self.known = known
        self.recorded: list[ExchangeId] = []

    def recall(self, exchange: ExchangeId) -> Outcome | None:
        return self.known.get(exchange)

    def record(self, exchange: ExchangeId, outcome: Outcome) -> None:
        self.recorded.append(exchange)


def test_what_the_journal_knows_does_not_go_to_the_network_but_still_decides_who_is_in_the_round() -> None:
    first = ExchangeId(RUN_ID, 3, 1, "train", 0)
    remembered = Outcome(filled(SCHEMA, 9), {"bb": Report()}, {"a": "gone", "c": "gone"}, Traffic(5, 5, 5, 5), 1.0)
    journal = RememberingJournal({first: remembered})
    engine = ScriptedEngine()
    records: list[ExchangeRecord] = []
    cohort = cohort_of(engine, CLIENTS, journal=journal, on_exchange=records.append)
    assert cohort.exchange("train", MODEL) is remembered.mean
    cohort.exchange("step", MODEL)
    assert [(exchange.id.name, list(exchange.clients)) for exchange in engine.exchanges] == [("step", ["bb"])]
    assert journal.recorded == [ExchangeId(RUN_ID, 3, 1, "step", 0)]
    assert [record.id.name for record in records] == ["train", "step"]


def test_an_outcome_is_journalled_before_anything_is_made_of_it() -> None:
    journal = RememberingJournal({})
    cohort = cohort_of(ScriptedEngine({("train", 0): dict.fromkeys(CLIENTS, "gone")}), CLIENTS, journal=journal)
    with pytest.raises(QuorumError):
        cohort.exchange("train", MODEL)
    assert journal.recorded == [ExchangeId(RUN_ID, 3, 1, "train", 0)]


def test_an_exchange_that_the_algorithm_does_not_declare_cannot_be_asked_for() -> None:
    with pytest.raises(KeyError, match="unheard_of"):
        cohort_of(ScriptedEngine(), CLIENTS).exchange("unheard_of", Tensors(SCHEMA))
