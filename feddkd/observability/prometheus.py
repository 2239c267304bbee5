"""The Prometheus metrics of a run, in a registry of their own.

Labels take their values from short lists that are known before the run begins: no client ids, no round numbers, and
the run id in `feddkd_run_info` alone. Sizes are in bytes, times in seconds, shares from 0 to 1; down and up are seen
from the client. docs/metrics.md lists every metric.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from feddkd import __version__, algorithms
from feddkd.algorithms.feddkd import TEACHER_ENTROPY
from feddkd.config import Config
from feddkd.errors import AddressInUseError
from feddkd.exchange import DELIVER, Evaluation
from feddkd.observability.versions import installed_versions
from feddkd.scheduler.cohort import DRIFT_DIVERSITY
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.traffic import Traffic

OTHER = "other"
"""The `exchange` label of bytes that belong to no exchange: joining, late answers, farewells."""

RUN_STATES = ("waiting", "running", "paused", "completed", "failed")
DIRECTIONS = ("down", "up")
DURATION_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
UNKNOWN = math.nan
"""A gauge without a value yet: unlike 0 it is no loss and no accuracy."""


class PrometheusMetrics(Observer):
    """Turns what the scheduler tells into metrics; they can be read from any thread.

    Attributes:
        registry: holds all of them, and those of the process; not the library's global one, so runs do not collide.
    """

    def __init__(self, config: Config) -> None:
        """Register every metric, each with its labels at 0 or, where 0 would be a claim, at NaN.

        Raises:
            ConfigError: there is no such algorithm.
        """
        # The library's switch is global: a `_created` series for each of ours would double them and say nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        exchanges = (*algorithms.find(config.algorithm.name).exchanges, DELIVER)
        self._run = _RunMetrics(self.registry, config)
        self._communication = _CommunicationMetrics(self.registry, exchanges)
        self._learning = _LearningMetrics(self.registry, config)

    def serve(self, port: int, address: str = "127.0.0.1") -> MetricsServer:
        """Answer scrapes over HTTP, on a thread of its own, until the server is closed.

        Args:
            port: 0 takes a free one.

        Raises:
            AddressInUseError: the port is taken, or the address is not one of this machine's.
        """
        try:
            server, thread = start_http_server(port, address, self.registry)
        except OSError as error:
            host = f"[{address}]" if ":" in address else address
            raise AddressInUseError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
        return MetricsServer(server, thread)

    def run_started(self, run_id: str, rounds: int) -> None:
        self._run.start(run_id, rounds)

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:  # noqa: ARG002
        self._run.current_round.set(round_number)
        self._run.enter("running")

    def engine_ready(self, engine: Engine) -> None:
        self._communication.watch(engine)

    def exchange_done(self, record: ExchangeRecord) -> None:
        self._communication.add(record)
        self._learning.add(record)

    def round_evaluated(self, round_number: int, evaluation: Evaluation) -> None:  # noqa: ARG002
        self._learning.evaluated("server", evaluation)
        self._learning.raise_best(evaluation)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:  # noqa: ARG002
        self._run.rounds.labels("failed").inc()

    def paused(self, reason: str) -> None:  # noqa: ARG002
        self._run.enter("paused")

    def round_done(self, record: RoundRecord) -> None:
        self._run.rounds.labels("completed").inc()
        self._run.round_duration.observe(record.seconds)
        if record.evaluation is not None:
            self._learning.raise_best(record.evaluation)

    def run_done(self, record: RunRecord) -> None:  # noqa: ARG002
        self._run.enter("completed")

    def run_failed(self, reason: str) -> None:  # noqa: ARG002
        self._run.enter("failed")


class MetricsServer:
    """Answers scrapes until it is closed.

    Attributes:
        port: where it listens.
    """

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = server.server_port

    def close(self) -> None:
        """Stop listening and free the port; closing again does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _RunMetrics:
    """What is running, since which version, and how far it is."""

    def __init__(self, registry: CollectorRegistry, config: Config) -> None:
        found = installed_versions()
        build = Info("feddkd_build", "Versions of feddkd and of what its results depend on; always 1.", registry=registry)
        build.info({"version": __version__, "python": found["python"], "torch": found["torch"], "grpc": found["grpcio"]})
        self._names = (config.algorithm.name, config.model.name, config.data.name)
        labels = ["run_id", "algorithm", "model", "dataset"]
        self._info = Info("feddkd_run", "What is running; always 1, absent before the run begins.", labels, registry=registry)
        self._state = Gauge("feddkd_run_state", "1 for the state that the run is in, 0 for the others.", ["state"], registry=registry)
        self.current_round = Gauge("feddkd_current_round", "Round under way, from 1; 0 before the first.", registry=registry)
        self._target_rounds = Gauge("feddkd_target_rounds", "Rounds after which the run is done.", registry=registry)
        self._target_rounds.set(config.rounds)
        self.rounds = Counter(
            "feddkd_rounds_total",
            "Rounds that were completed, and attempts that failed for want of clients.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("completed", "failed"):
            self.rounds.labels(outcome)
        self.round_duration = Histogram(
            "feddkd_round_duration_seconds",
            "Seconds from the selection of a round's clients to its evaluated model, failed attempts included.",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.enter("waiting")

    def start(self, run_id: str, rounds: int) -> None:
        self._info.labels(run_id, *self._names).info({})
        self._target_rounds.set(rounds)
        self.enter("running")

    def enter(self, state: str) -> None:
        # The new state first: a scrape in between sees two states, never none.
        self._state.labels(state).set(1)
        for other in RUN_STATES:
            if other != state:
                self._state.labels(other).set(0)


class _CommunicationMetrics:
    """What the exchanges cost, and who took part in them."""

    def __init__(self, registry: CollectorRegistry, exchanges: Sequence[str]) -> None:
        self._wire_bytes = _WireBytes(exchanges)
        self._clients = _Clients()
        registry.register(self._wire_bytes)
        registry.register(self._clients)
        self._payload_bytes = Counter(
            "feddkd_payload_bytes_total",
            "Bytes of encoded tensors that reached clients whole (down) or were reduced (up).",
            ["direction", "exchange"],
            registry=registry,
        )
        self._duration = Histogram(
            "feddkd_exchange_duration_seconds",
            "Seconds from the broadcast of an exchange to its reduced result.",
            ["exchange"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._gradient_evaluations = Counter(
            "feddkd_gradient_evaluations_total",
            "Gradients of single examples' losses that clients computed for the answers that arrived.",
            ["exchange"],
            registry=registry,
        )
        self._contributions = Counter(
            "feddkd_contributions_total",
            "Answers that clients were asked for, by what became of them.",
            ["exchange", "result"],
            registry=registry,
        )
        for exchange in exchanges:
            self._duration.labels(exchange)
            self._gradient_evaluations.labels(exchange)
            for direction in DIRECTIONS:
                self._payload_bytes.labels(direction, exchange)
            for result in ("accepted", "missing"):
                self._contributions.labels(exchange, result)

    def add(self, record: ExchangeRecord) -> None:
        exchange = record.id.name
        self._payload_bytes.labels("down", exchange).inc(record.traffic.payload_bytes_down)
        self._payload_bytes.labels("up", exchange).inc(record.traffic.payload_bytes_up)
        self._wire_bytes.add(exchange, record.traffic)
        self._duration.labels(exchange).observe(record.seconds)
        self._gradient_evaluations.labels(exchange).inc(record.gradient_evaluations)
        self._contributions.labels(exchange, "accepted").inc(record.clients_reported)
        self._contributions.labels(exchange, "missing").inc(len(record.clients_missing))

    def watch(self, engine: Engine) -> None:
        """Ask the engine, at every scrape, for what changes while no observer is told."""
        self._wire_bytes.other_traffic = engine.other_traffic
        self._clients.states = engine.states


class _WireBytes(Collector):
    """A counter of its own, because the bytes outside exchanges grow while no observer is told."""

    def __init__(self, exchanges: Sequence[str]) -> None:
        self.other_traffic: Callable[[], Traffic] = Traffic
        self._bytes = {(direction, exchange): 0 for direction in DIRECTIONS for exchange in exchanges}

    def add(self, exchange: str, traffic: Traffic) -> None:
        self._bytes["down", exchange] += traffic.wire_bytes_down
        self._bytes["up", exchange] += traffic.wire_bytes_up

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Claims the metric's name in the registry."""
        yield CounterMetricFamily(
            "feddkd_wire_bytes_total",
            "Bytes of serialized gRPC messages, retries included; exchange other: joining, late answers, farewells.",
            labels=["direction", "exchange"],
        )

    def collect(self) -> Iterator[CounterMetricFamily]:
        for family in self.describe():
            for labels, count in self._bytes.items():
                family.add_metric(labels, count)
            other = self.other_traffic()
            family.add_metric(("down", OTHER), other.wire_bytes_down)
            family.add_metric(("up", OTHER), other.wire_bytes_up)
            yield family


class _Clients(Collector):
    """A gauge of its own, because clients come and go while no observer is told."""

    def __init__(self) -> None:
        self.states: Callable[[], ClientStates] = ClientStates

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Claims the metric's name in the registry."""
        yield GaugeMetricFamily("feddkd_clients", "Clients by state: connected, working or lost.", labels=["state"])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for family in self.describe():
            for state, count in dataclasses.asdict(self.states()).items():
                family.add_metric((state,), count)
            yield family


class _LearningMetrics:
    """What the bytes bought. Losses are mean cross-entropies in nats unless a metric says otherwise."""

    def __init__(self, registry: CollectorRegistry, config: Config) -> None:
        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, f"{text}; NaN before the first.", labels, registry=registry)

        evaluated_by = ["evaluated_by"]
        self._accuracy = gauge("feddkd_accuracy_ratio", "Share (0 to 1) of examples that the last global model gets right", evaluated_by)
        self._loss = gauge("feddkd_loss", "Mean cross-entropy in nats of the last global model", evaluated_by)
        for evaluator, there_is_one in (("server", config.data.test_set), ("clients", config.data.holdout > 0)):
            if there_is_one:
                self._accuracy.labels(evaluator).set(UNKNOWN)
                self._loss.labels(evaluator).set(UNKNOWN)
        self._best = gauge("feddkd_best_accuracy_ratio", "Greatest accuracy (0 to 1) that the model of a round has reached")
        self._training_loss = gauge("feddkd_training_loss", "Clients' mean loss in nats over the last local training")
        self._dkd_loss = gauge("feddkd_dkd_loss", "Clients' mean distillation loss at the last DKD step")
        self._dkd_loss_initial = gauge("feddkd_dkd_loss_initial", "Clients' mean distillation loss at step 0 of the last round")
        # By the name that a metric has in an exchange's record; what else clients report is in the ledger alone.
        self._reported = {
            DRIFT_DIVERSITY: gauge(
                "feddkd_drift_diversity",
                "How much the clients' last updates cancel out: their mean squared norm over that of their mean, 1 where all agree",
            ),
            TEACHER_ENTROPY: gauge("feddkd_teacher_entropy", "Mean entropy in nats of the teachers' predictions in the last round"),
        }
        for unknown in (self._best, self._training_loss, self._dkd_loss, self._dkd_loss_initial, *self._reported.values()):
            unknown.set(UNKNOWN)
        self._best_accuracy = -math.inf

    def add(self, record: ExchangeRecord) -> None:
        if record.client_evaluation is not None:
            self.evaluated("clients", record.client_evaluation)
        for name, reported in self._reported.items():
            if name in record.metrics:
                reported.set(record.metrics[name])
        if record.loss is None:
            return
        if record.id.name == "local_train":
            self._training_loss.set(record.loss)
        elif record.id.name == "dkd_step":
            self._dkd_loss.set(record.loss)
            if record.id.step == 0:
                self._dkd_loss_initial.set(record.loss)

    def evaluated(self, evaluator: str, evaluation: Evaluation) -> None:
        self._accuracy.labels(evaluator).set(evaluation.accuracy)
        self._loss.labels(evaluator).set(evaluation.loss)

    def raise_best(self, evaluation: Evaluation) -> None:
        self._best_accuracy = max(self._best_accuracy, evaluation.accuracy)
        self._best.set(self._best_accuracy)
