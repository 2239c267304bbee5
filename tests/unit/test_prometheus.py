import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine
from feddkd.errors import ConfigError
from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.observability import site_metrics
from feddkd.observability.metrics import DURATION_BUCKETS_S
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.web import WebServer
from feddkd.scheduler.engine import ClientStates
from feddkd.scheduler.records import ExchangeRecord, RoundRecord, RunRecord
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
MODEL = Tensors(Schema([TensorSpec("w", torch.float32, (3,))]))
RUN_ID = "0123456789ab"

SITE_GAUGES = {
    "teacher_accuracy": "feddkd_site_teacher_accuracy_ratio",
    "client_accuracy": "feddkd_site_accuracy_ratio",
    "label_disagreement": "feddkd_site_label_disagreement_ratio",
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def families(metrics: PrometheusMetrics) -> list[Metric]:
    return list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))


def samples_of(metrics: PrometheusMetrics) -> Samples:
    found = [sample for family in families(metrics) for sample in family.samples]
    samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}
    assert len(samples) == len(found)
    return samples


def value(metrics: PrometheusMetrics, name: str, **labels: str) -> float:
    return samples_of(metrics)[name, frozenset(labels.items())]


def states(metrics: PrometheusMetrics) -> dict[str, float]:
    return {dict(labels)["state"]: number for (name, labels), number in samples_of(metrics).items() if name == "feddkd_run_state"}


def exchange(
    name: str = "local_train",
    *,
    round_number: int = 1,
    step: int = 0,
    traffic: Traffic | None = None,
    seconds: float = 0.02,
    loss: float | None = None,
    missing: int = 0,
    evaluation: Evaluation | None = None,
    gradient_evaluations: int = 0,
    metrics: Mapping[str, float] | None = None,
    by_client: Mapping[str, Mapping[str, float]] | None = None,
    outliers: Mapping[str, int] | None = None,
) -> ExchangeRecord:
    return ExchangeRecord(
        ExchangeId(RUN_ID, round_number, 0, name, step),
        clients_selected=4,
        clients_reported=4 - missing,
        clients_missing={f"client-{index}": "gone" for index in range(missing)},
        traffic=traffic or Traffic(100, 80, 110, 95),
        seconds=seconds,
        client_seconds=4 * seconds,
        gradient_evaluations=gradient_evaluations,
        loss=loss,
        client_evaluation=evaluation,
        metrics=metrics or {},
        by_client=by_client or {},
        outliers=outliers or {},
    )


def round_record(number: int, evaluation: Evaluation | None = None, seconds: float = 1.0) -> RoundRecord:
    return RoundRecord(number, evaluation, None, Traffic(1, 2, 3, 4), 0, seconds, 4, {}, 0, {})


def run_record(other: Traffic) -> RunRecord:
    return RunRecord(RUN_ID, 1, MODEL, None, None, Traffic(), other, 0, 1.0, {}, {})


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics(Config.parse({"task": {"metrics": ["f1"]}}))


class FakeEngine(InProcessEngine):
    """Nobody takes part; states and bytes are what the test says."""

    def __init__(self, states: ClientStates, traffic: Traffic) -> None:
        super().__init__({}, chunk_bytes=1024)
        self.client_states = states
        self.traffic = traffic

    def states(self) -> ClientStates:
        return self.client_states

    def other_traffic(self) -> Traffic:
        return self.traffic

    def here(self) -> list[str]:
        return ["a", "client-0"]

    def waiting_for(self) -> list[str]:
        return ["client-0", "client-1"]

    def last_heard(self) -> dict[str, float]:
        return {"a": 0.5, "client-0": 1.0, "client-1": 50.0}

    def last_replies(self) -> dict[str, tuple[ExchangeId, float]]:
        return {"a": (exchange().id, 0.25), "client-0": (exchange("dkd_step", step=99).id, 3.0)}


def feed_everything(metrics: PrometheusMetrics, rounds: int = 1) -> None:
    metrics.engine_ready(FakeEngine(ClientStates(1, 1, 1), Traffic()))
    metrics.clients_available({"a": ExampleCounts(10, 5), "client-0": ExampleCounts(1), "client-1": ExampleCounts(1)})
    metrics.run_started(RUN_ID, rounds)
    for number in range(1, rounds + 1):
        metrics.round_started(number, 0, 4)
        metrics.exchange_done(
            exchange(
                round_number=number,
                loss=1.0,
                missing=number % 3,
                evaluation=Evaluation(10, 5, 9.0),
                metrics={"own": 1.0},
                by_client={name: {"a": 0.5} for name in (*SITE_GAUGES, "client_f1")},
                outliers={"a": 3},
            )
        )
        for step in range(3):
            metrics.exchange_done(exchange("dkd_step", round_number=number, step=step, loss=0.5))
        metrics.round_evaluated(number, Evaluation(10, 5, 9.0))
        metrics.round_failed(number, 0, f"too few in round {number}")
        metrics.paused(f"round {number}")
        metrics.round_done(round_record(number, Evaluation(10, 5, 9.0)))
    metrics.exchange_done(exchange("deliver", round_number=rounds))
    metrics.run_done(run_record(Traffic(wire_bytes_down=5, wire_bytes_up=7)))


def test_known_counters_are_there_at_zero_before_anything_happens(metrics: PrometheusMetrics) -> None:
    counters = {
        (name, labels): number
        for (name, labels), number in samples_of(metrics).items()
        if name.startswith("feddkd_") and name.endswith(("_total", "_count"))
    }
    assert set(counters.values()) == {0.0}
    names = [name for name, _ in counters]
    kinds = ("local_train", "dkd_step", "deliver")
    for name in ("payload_bytes", "dense_bytes", "codec_seconds"):
        assert names.count(f"feddkd_{name}_total") == 2 * len(kinds)
    assert names.count("feddkd_snapshot_bytes_total") == len(kinds)
    assert names.count("feddkd_wire_bytes_total") == 2 * (len(kinds) + 1)
    assert names.count("feddkd_contributions_total") == 2 * len(kinds)
    assert names.count("feddkd_exchange_duration_seconds_count") == len(kinds)
    assert names.count("feddkd_gradient_evaluations_total") == len(kinds)
    assert names.count("feddkd_rounds_total") == 2


def test_exchange_labels_are_those_of_the_algorithm() -> None:
    metrics = PrometheusMetrics(Config.parse({"algorithm": {"name": "fedavg_sgd"}}))
    found = {dict(labels)["exchange"] for name, labels in samples_of(metrics) if name == "feddkd_wire_bytes_total"}
    assert found == {"local_train", "sgd_step", "deliver", "other"}


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.name"):
        PrometheusMetrics(Config.parse({"algorithm": {"name": "feddkd:nothing_of_that_name"}}))


def test_bytes_contributions_and_durations_are_what_was_fed(metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(traffic=Traffic(1000, 800, 1010, 905), seconds=0.3, missing=1))
    metrics.exchange_done(exchange(traffic=Traffic(2000, 1600, 2020, 1810), seconds=7.0))
    metrics.exchange_done(exchange("dkd_step", traffic=Traffic(50, 40, 51, 42), seconds=0.004, missing=3))
    expected = {
        ("feddkd_payload_bytes_total", "local_train"): (3000, 2400),
        ("feddkd_wire_bytes_total", "local_train"): (3030, 2715),
        ("feddkd_payload_bytes_total", "dkd_step"): (50, 40),
        ("feddkd_wire_bytes_total", "dkd_step"): (51, 42),
        ("feddkd_payload_bytes_total", "deliver"): (0, 0),
        ("feddkd_wire_bytes_total", "other"): (0, 0),
    }
    for (name, kind), (down, up) in expected.items():
        assert value(metrics, name, direction="down", exchange=kind) == down
        assert value(metrics, name, direction="up", exchange=kind) == up
    for kind, result, count in (("local_train", "accepted", 7), ("local_train", "missing", 1), ("dkd_step", "missing", 3)):
        assert value(metrics, "feddkd_contributions_total", exchange=kind, result=result) == count
    assert value(metrics, "feddkd_exchange_duration_seconds_sum", exchange="local_train") == pytest.approx(7.3)
    for bound, count in (("0.25", 0), ("0.5", 1), ("5.0", 1), ("10.0", 2), ("+Inf", 2)):
        assert value(metrics, "feddkd_exchange_duration_seconds_bucket", exchange="local_train", le=bound) == count
    assert value(metrics, "feddkd_exchange_duration_seconds_bucket", exchange="dkd_step", le="0.005") == 1


def test_encoded_bytes_count_beside_dense_ones_and_snapshots_apart(metrics: PrometheusMetrics) -> None:
    counted = Traffic(1000, 800, 1010, 905, dense_bytes_down=4000, dense_bytes_up=6400, snapshot_bytes_down=300)
    metrics.exchange_done(exchange(traffic=counted))
    metrics.exchange_done(exchange(traffic=counted))
    metrics.exchange_done(exchange("dkd_step", traffic=Traffic(50, 40, 51, 42, 60, 80)))
    for kind, down, up, snapshot in (("local_train", 8000, 12800, 600), ("dkd_step", 60, 80, 0), ("deliver", 0, 0, 0)):
        assert value(metrics, "feddkd_dense_bytes_total", direction="down", exchange=kind) == down
        assert value(metrics, "feddkd_dense_bytes_total", direction="up", exchange=kind) == up
        assert value(metrics, "feddkd_snapshot_bytes_total", direction="down", exchange=kind) == snapshot


def test_a_codecs_seconds_add_up_and_its_error_is_the_last_one(metrics: PrometheusMetrics) -> None:
    errors = [value(metrics, "feddkd_codec_error_ratio", direction=way, exchange="dkd_step") for way in ("down", "up")]
    assert all(map(math.isnan, errors))
    for error in (0.25, 0.5):
        codec = {"codec_s_down": 0.125, "codec_s_up": 0.25, "codec_error_down": error, "codec_error_up": error / 2}
        metrics.exchange_done(exchange("dkd_step", seconds=1.0, metrics=codec))
    assert value(metrics, "feddkd_codec_seconds_total", direction="down", exchange="dkd_step") == 0.25
    assert value(metrics, "feddkd_codec_seconds_total", direction="up", exchange="dkd_step") == 0.5
    assert value(metrics, "feddkd_codec_error_ratio", direction="down", exchange="dkd_step") == 0.5
    assert value(metrics, "feddkd_codec_error_ratio", direction="up", exchange="dkd_step") == 0.25
    assert math.isnan(value(metrics, "feddkd_codec_error_ratio", direction="up", exchange="local_train"))


@pytest.mark.parametrize(("claimed", "counted"), [(-5.0, 0.0), (1e90, 2.0), (0.5, 0.5)])
def test_a_client_cannot_claim_more_codec_time_than_the_exchange_took(claimed: float, counted: float, metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(seconds=2.0, metrics={"codec_s_up": claimed}))
    assert value(metrics, "feddkd_codec_seconds_total", direction="up", exchange="local_train") == counted


def test_the_clients_work_is_counted_by_exchange(metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(gradient_evaluations=700))
    metrics.exchange_done(exchange(gradient_evaluations=50, missing=4))
    metrics.exchange_done(exchange("dkd_step", gradient_evaluations=64))
    work = {kind: value(metrics, "feddkd_gradient_evaluations_total", exchange=kind) for kind in ("local_train", "dkd_step", "deliver")}
    assert work == {"local_train": 750, "dkd_step": 64, "deliver": 0}


def test_how_far_clients_disagree_and_how_sure_their_teachers_are(metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(metrics={"drift_diversity": 3.0, "update_norm_squared": 9.0}))
    metrics.exchange_done(exchange("dkd_step", metrics={"teacher_entropy": 0.5}))
    metrics.exchange_done(exchange("dkd_step", step=1))
    assert value(metrics, "feddkd_drift_diversity") == 3
    assert value(metrics, "feddkd_teacher_entropy") == 0.5
    metrics.exchange_done(exchange(round_number=2, metrics={"drift_diversity": 1.5}))
    assert value(metrics, "feddkd_drift_diversity") == 1.5
    # What else a client reports under a name of its choice makes no series.
    before = samples_of(metrics).keys()
    metrics.exchange_done(exchange(metrics={"a_name_of_its_own": 1.0}))
    assert samples_of(metrics).keys() == before


def test_the_run_goes_through_its_states(metrics: PrometheusMetrics) -> None:
    def state() -> str:
        one_hot = states(metrics)
        assert sorted(one_hot) == ["completed", "failed", "paused", "running", "stopped", "waiting"]
        assert sorted(one_hot.values()) == [0, 0, 0, 0, 0, 1]
        return max(one_hot, key=one_hot.__getitem__)

    assert state() == "waiting"
    metrics.run_started(RUN_ID, 7)
    assert state() == "running"
    metrics.paused("nobody is there")
    assert state() == "paused"
    metrics.round_started(1, 1, 4)
    assert state() == "running"
    metrics.run_done(run_record(Traffic()))
    assert state() == "completed"
    metrics.run_failed("too late")
    assert state() == "failed"
    metrics.run_stopped("stopped by SIGTERM")
    assert state() == "stopped"


def test_what_runs_and_how_far_it_is(metrics: PrometheusMetrics) -> None:
    assert not [name for name, _ in samples_of(metrics) if name == "feddkd_run_info"]
    assert value(metrics, "feddkd_target_rounds") == Config().rounds
    metrics.run_started(RUN_ID, 7)
    assert value(metrics, "feddkd_run_info", run_id=RUN_ID, algorithm="feddkd", model="mlp", dataset="digits") == 1
    metrics.round_started(1, 0, 4)
    metrics.round_failed(1, 0, "too few")
    metrics.round_started(1, 1, 4)
    metrics.round_started(2, 0, 4)
    metrics.round_done(round_record(1, seconds=90.0))
    assert value(metrics, "feddkd_target_rounds") == 7
    assert value(metrics, "feddkd_current_round") == 2
    assert value(metrics, "feddkd_rounds_total", outcome="completed") == 1
    assert value(metrics, "feddkd_rounds_total", outcome="failed") == 1
    assert value(metrics, "feddkd_round_duration_seconds_bucket", le="60.0") == 0
    assert value(metrics, "feddkd_round_duration_seconds_bucket", le="120.0") == 1
    assert value(metrics, "feddkd_round_duration_seconds_sum") == 90


def test_when_the_round_and_the_last_exchange_were(metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 10.0, 15.0, 20.0, 20.0))
    monkeypatch.setattr("time.time", lambda: next(clock))
    found: list[list[float | None]] = []
    events: list[Callable[[], None]] = [
        lambda: None,
        lambda: metrics.round_started(1, 0, 4),
        lambda: metrics.exchange_done(exchange()),
        lambda: metrics.round_started(1, 1, 4),
    ]
    for event in events:
        event()
        found.append([metrics.registry.get_sample_value(f"feddkd_{name}_time_seconds") for name in ("round_start", "last_exchange")])
    assert math.isnan(found[0][0] or 0)
    assert math.isnan(found[0][1] or 0)
    assert found[1:] == [[10.0, 10.0], [10.0, 15.0], [20.0, 20.0]], "a round after a pause begins its own time"


def test_build_info_names_the_versions(metrics: PrometheusMetrics) -> None:
    (build,) = [dict(labels) for name, labels in samples_of(metrics) if name == "feddkd_build_info"]
    assert set(build) == {"version", "python", "torch", "grpc"}
    assert build["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_clients_by_state(metrics: PrometheusMetrics) -> None:
    engine = FakeEngine(ClientStates(connected=5, working=2, lost=1), Traffic())
    metrics.engine_ready(engine)
    assert [value(metrics, "feddkd_clients", state=state) for state in ("connected", "working", "lost")] == [5, 2, 1]
    engine.client_states = ClientStates(connected=6, working=0, lost=2)
    assert [value(metrics, "feddkd_clients", state=state) for state in ("connected", "working", "lost")] == [6, 0, 2]


def test_learning_gauges_are_unknown_until_they_are_known(metrics: PrometheusMetrics) -> None:
    for name in ("best_accuracy_ratio", "training_loss", "dkd_loss", "dkd_loss_initial", "drift_diversity", "teacher_entropy"):
        assert math.isnan(value(metrics, f"feddkd_{name}"))
    for evaluator in ("server", "clients"):
        assert math.isnan(value(metrics, "feddkd_loss", evaluated_by=evaluator))
        assert math.isnan(value(metrics, "feddkd_accuracy_ratio", evaluated_by=evaluator))
    blind = PrometheusMetrics(Config.parse({"data": {"test_set": False}}))
    assert {dict(labels)["evaluated_by"] for name, labels in samples_of(blind) if name == "feddkd_loss"} == {"clients"}


def test_accuracy_and_loss_by_who_evaluated(metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(evaluation=Evaluation(100, 10, 230.0)))
    metrics.round_evaluated(1, Evaluation(200, 150, 100.0))
    metrics.round_evaluated(2, Evaluation(200, 140, 120.0))
    metrics.exchange_done(exchange(round_number=3, evaluation=Evaluation(100, 90, 40.0)))
    metrics.exchange_done(exchange("dkd_step", round_number=3))
    assert value(metrics, "feddkd_accuracy_ratio", evaluated_by="server") == 0.7
    assert value(metrics, "feddkd_loss", evaluated_by="server") == 0.6
    assert value(metrics, "feddkd_accuracy_ratio", evaluated_by="clients") == 0.9
    assert value(metrics, "feddkd_loss", evaluated_by="clients") == 0.4
    # The server's word counts for the best: what clients say of their own examples is another quantity.
    assert value(metrics, "feddkd_best_accuracy_ratio") == 0.75


def test_without_a_test_set_the_best_round_is_the_clients_best() -> None:
    metrics = PrometheusMetrics(Config.parse({"data": {"test_set": False}}))
    for number, correct in enumerate((3, 8, 6), start=1):
        metrics.round_done(round_record(number, Evaluation(10, correct, 1.0)))
    assert value(metrics, "feddkd_best_accuracy_ratio") == 0.8


def test_losses_of_training_and_of_distillation(metrics: PrometheusMetrics) -> None:
    metrics.exchange_done(exchange(loss=1.5))
    for step, loss in enumerate((0.9, 0.7, 0.4)):
        metrics.exchange_done(exchange("dkd_step", step=step, loss=loss))
    metrics.exchange_done(exchange("dkd_step", step=3, loss=None))
    assert value(metrics, "feddkd_training_loss") == 1.5
    assert value(metrics, "feddkd_dkd_loss_initial") == 0.9
    assert value(metrics, "feddkd_dkd_loss") == 0.4
    metrics.exchange_done(exchange("dkd_step", step=0, loss=math.inf))
    assert value(metrics, "feddkd_dkd_loss") == math.inf


def test_bytes_outside_exchanges_are_asked_of_the_engine(metrics: PrometheusMetrics) -> None:
    engine = FakeEngine(ClientStates(), Traffic(wire_bytes_down=30, wire_bytes_up=20))
    assert value(metrics, "feddkd_wire_bytes_total", direction="up", exchange="other") == 0
    metrics.engine_ready(engine)
    assert value(metrics, "feddkd_wire_bytes_total", direction="up", exchange="other") == 20
    engine.traffic.wire_bytes_up += 5
    assert value(metrics, "feddkd_wire_bytes_total", direction="up", exchange="other") == 25
    assert value(metrics, "feddkd_wire_bytes_total", direction="down", exchange="other") == 30


@pytest.mark.parametrize(("name", "gauge"), SITE_GAUGES.items())
def test_each_site_has_its_last_numbers(metrics: PrometheusMetrics, name: str, gauge: str) -> None:
    for value_of_b in (0.25, 0.75):
        metrics.exchange_done(exchange(by_client={name: {"site-b": value_of_b, "site-c.1": 0.0}, "loss": {"site-d": 1.0}}))
    metrics.exchange_done(exchange("dkd_step"))
    assert value(metrics, gauge, client="site-b") == 0.75
    assert value(metrics, gauge, client="site-c.1") == 0.0
    assert sum("client" in dict(labels) for _, labels in samples_of(metrics)) == 2


def test_the_number_of_sites_is_bounded(metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_metrics, "MOST_CLIENTS", 3)
    for client in "abcdea":
        metrics.exchange_done(exchange(by_client={"teacher_accuracy": {client: 0.5}, "client_accuracy": {client: 0.5}}))
    clients = [dict(labels)["client"] for name, labels in samples_of(metrics) if name == "feddkd_site_accuracy_ratio"]
    assert sorted(clients) == ["a", "d", "e"], "those that were heard last"


def test_each_site_has_its_time_its_state_and_its_misses(metrics: PrometheusMetrics) -> None:
    metrics.engine_ready(FakeEngine(ClientStates(1, 1, 1), Traffic()))
    metrics.clients_available({"a": ExampleCounts(10), "client-1": ExampleCounts(1)})
    assert value(metrics, "feddkd_site_missing_total", client="client-1") == 0
    metrics.exchange_done(exchange(missing=2))
    assert value(metrics, "feddkd_site_last_seconds", client="a", exchange="local_train") == 0.25
    assert ("feddkd_site_last_seconds", frozenset({("client", "client-0"), ("exchange", "local_train")})) not in samples_of(metrics)
    assert [value(metrics, "feddkd_site_missing_total", client=client) for client in ("a", "client-0", "client-1")] == [0, 1, 1]
    for client, state in (("a", "connected"), ("client-0", "working"), ("client-1", "lost")):
        assert [value(metrics, "feddkd_site_state", client=client, state=each) for each in ("connected", "working", "lost")] == [
            each == state for each in ("connected", "working", "lost")
        ]


def test_sites_that_were_let_go_are_not_lost(metrics: PrometheusMetrics) -> None:
    metrics.engine_ready(FakeEngine(ClientStates(), Traffic()))
    assert not [name for name, _ in samples_of(metrics) if name == "feddkd_site_state"]


def test_the_last_round_has_its_bytes(metrics: PrometheusMetrics) -> None:
    assert math.isnan(value(metrics, "feddkd_round_wire_bytes", direction="up"))
    metrics.round_done(round_record(1))
    record = round_record(1)
    assert value(metrics, "feddkd_round_wire_bytes", direction="up") == record.traffic.wire_bytes_up
    assert value(metrics, "feddkd_round_wire_bytes", direction="down") == record.traffic.wire_bytes_down


@pytest.mark.parametrize(("stopped", "outcome"), [(False, "failed"), (True, "stopped")])
def test_the_end_of_a_run_has_a_time_and_an_outcome(stopped: bool, outcome: str, metrics: PrometheusMetrics) -> None:
    before = time.time()
    (metrics.run_stopped if stopped else metrics.run_failed)("of some reason")
    assert before <= value(metrics, "feddkd_run_end_time_seconds", outcome=outcome) <= time.time()
    assert math.isnan(value(metrics, "feddkd_run_end_time_seconds", outcome="completed"))


def test_examples_are_those_of_the_clients_that_are_there(metrics: PrometheusMetrics) -> None:
    assert math.isnan(value(metrics, "feddkd_examples", labelled="no"))
    metrics.clients_available({"a": ExampleCounts(10, 5), "b": ExampleCounts(7)})
    assert [value(metrics, "feddkd_examples", labelled=which) for which in ("yes", "no")] == [17, 5]
    metrics.clients_available({"b": ExampleCounts(7)})
    assert [value(metrics, "feddkd_examples", labelled=which) for which in ("yes", "no")] == [7, 0]


def test_names_follow_the_rules_of_prometheus(metrics: PrometheusMetrics) -> None:
    feed_everything(metrics)
    own = [family for family in metrics.registry.collect() if not family.name.startswith(("process_", "python_"))]
    assert len(own) >= 18
    for family in own:
        assert re.fullmatch(r"feddkd_[a-z]+(_[a-z]+)*", family.name)
        assert not re.search(r"_(ms|millis\w*|minutes?|hours?|kb|mb|kib|mib|kilo\w*|mega\w*|bits?|percent|pct)(_|$)", family.name)
        # Quantities with a unit carry it at the end of the name, in the plural, in base units.
        for quantity, unit in (
            ("duration", "_seconds"),
            ("error", "_ratio"),
            ("time", "_seconds"),
            ("bytes", "_bytes"),
            ("accuracy", "_ratio"),
        ):
            assert quantity not in family.name or family.name.endswith(unit)
        assert family.type != "histogram" or family.name.endswith("_seconds")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
            labels = set(sample.labels)
            assert not labels & {"client_id", "round", "step", "attempt", "instance", "job"}
            assert ("client" in labels) == sample.name.startswith("feddkd_site_")
            assert "run_id" not in labels or sample.name == "feddkd_run_info"
            assert "run" not in labels
        assert "." in family.documentation


def test_sum_over_all_labels_makes_sense(metrics: PrometheusMetrics) -> None:
    feed_everything(metrics)
    wire = sum(number for (name, _), number in samples_of(metrics).items() if name == "feddkd_wire_bytes_total")
    assert wire == 5 * (110 + 95)


def test_a_thousand_rounds_add_no_series() -> None:
    short, long = PrometheusMetrics(Config()), PrometheusMetrics(Config())
    feed_everything(short, rounds=1)
    feed_everything(long, rounds=1000)
    assert samples_of(long).keys() == samples_of(short).keys()
    assert len(samples_of(long)) < 300
    assert value(long, "feddkd_rounds_total", outcome="completed") == 1000


def test_two_runs_in_one_process_do_not_mix(metrics: PrometheusMetrics) -> None:
    other = PrometheusMetrics(Config())
    metrics.exchange_done(exchange())
    assert value(other, "feddkd_wire_bytes_total", direction="up", exchange="local_train") == 0


def test_buckets_ascend_from_milliseconds_to_an_hour() -> None:
    assert list(DURATION_BUCKETS_S) == sorted(set(DURATION_BUCKETS_S))
    assert (DURATION_BUCKETS_S[0], DURATION_BUCKETS_S[-1]) == (0.005, 3600)
    resolved = [bound for bound in DURATION_BUCKETS_S if bound >= 0.1]
    assert max(high / low for low, high in pairwise(resolved)) <= 1.7


def served(metrics: PrometheusMetrics) -> closing[WebServer]:
    return closing(WebServer({"/metrics": metrics.page}, 0))


def test_openmetrics_is_served_to_those_who_ask_for_it(metrics: PrometheusMetrics) -> None:
    feed_everything(metrics)
    with served(metrics) as server:
        wanted = Request(f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        with urlopen(wanted) as response:
            assert response.headers["Content-Type"].startswith("application/openmetrics-text")
            found = {family.name: family for family in parse_openmetrics(response.read().decode())}  # type: ignore[no-untyped-call]
    assert found["feddkd_rounds"].type == "counter"
    assert found["feddkd_run"].type == "info"
    assert {sample.value for sample in found["feddkd_rounds"].samples} == {1.0}


def test_one_family_can_be_asked_for_by_name(metrics: PrometheusMetrics) -> None:
    with served(metrics) as server, urlopen(f"http://127.0.0.1:{server.port}/metrics?name[]=feddkd_wire_bytes_total") as response:
        assert [family.name for family in text_string_to_metric_families(response.read().decode())] == ["feddkd_wire_bytes"]


def exposed_name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def test_the_documentation_lists_exactly_the_registered_metrics(metrics: PrometheusMetrics) -> None:
    feed_everything(metrics)
    registered = {
        exposed_name(family): (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for family in metrics.registry.collect()
    }
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", DOCS.read_text().split("## Metrics of a client")[0], flags=re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == registered
