"""Defines the metrics of how far a run is, and of what its exchanges cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from feddkd import __version__
from feddkd.config import Config
from feddkd.observability.versions import installed_versions
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.scheduler.records import ExchangeRecord, RoundRecord
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS, DIRECTIONS, Traffic

OTHER = "other"
"""The `exchange` label of bytes that belong to no exchange: joining, late answers, farewells."""

RUN_STATES = ("waiting", "running", "paused", "completed", "failed", "stopped")
_BELOW_10_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 3.5, 5.0, 7.5)
_FROM_10_S = (10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 450.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0)
DURATION_BUCKETS_S = (*_BELOW_10_S, *_FROM_10_S)
"""From 0.1 s on at most a factor of 1.7 apart: a quantile that is read from them is off by less than that."""
UNKNOWN = math.nan
"""A gauge without a value yet: unlike 0 it is no loss and no accuracy."""


class RunMetrics:
    """Which run and versions these are, and how far the run is."""

    def __init__(self, registry: CollectorRegistry, config: Config) -> None:
        found = installed_versions()
        build = Info("feddkd_build", "Versions of feddkd and of the packages that its results depend on; always 1.", registry=registry)
        build.info({"version": __version__, "python": found["python"], "torch": found["torch"], "grpc": found["grpcio"]})
        self._names = (config.algorithm.name, config.model.name, config.data.name)
        labels = ["run_id", "algorithm", "model", "dataset"]
        self._info = Info("feddkd_run", "The current run; always 1, absent before the run starts.", labels, registry=registry)
        self._state = Gauge("feddkd_run_state", "1 for the run's current state, 0 for the others.", ["state"], registry=registry)
        self.current_round = Gauge("feddkd_current_round", "Number of the current round, from 1; 0 before the first.", registry=registry)
        self._target_rounds = Gauge("feddkd_target_rounds", "Number of rounds that the run will have.", registry=registry)
        self._target_rounds.set(config.rounds)
        self.rounds = Counter(
            "feddkd_rounds_total",
            "Rounds that were completed, and attempts that failed because clients were missing.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("completed", "failed"):
            self.rounds.labels(outcome)
        self.round_duration = Histogram(
            "feddkd_round_duration_seconds",
            "Time from the selection of a round's clients to its evaluated model, in seconds, failed attempts included.",
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._round_start = Gauge(
            "feddkd_round_start_time_seconds",
            "When the current attempt at a round began, in seconds since 1970; NaN before the first.",
            registry=registry,
        )
        self._last_exchange = Gauge(
            "feddkd_last_exchange_time_seconds",
            "When the last exchange ended, or its round began if that was later, in seconds since 1970; NaN before.",
            registry=registry,
        )
        for time_of in (self._round_start, self._last_exchange):
            time_of.set(UNKNOWN)
        self.enter("waiting")

    def round_started(self, round_number: int) -> None:
        self.current_round.set(round_number)
        self._round_start.set_to_current_time()
        self._last_exchange.set_to_current_time()
        self.enter("running")

    def exchange_done(self) -> None:
        self._last_exchange.set_to_current_time()

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


class CommunicationMetrics:
    """What the exchanges cost, and how many clients took part."""

    def __init__(self, registry: CollectorRegistry, exchanges: Sequence[str]) -> None:
        self._wire_bytes = _WireBytes(exchanges)
        self._clients = _Clients()
        registry.register(self._wire_bytes)
        registry.register(self._clients)
        self._tensors = _TensorMetrics(registry, exchanges)
        self._duration = Histogram(
            "feddkd_exchange_duration_seconds",
            "Time from the broadcast of an exchange to its reduced result, in seconds.",
            ["exchange"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self._gradient_evaluations = Counter(
            "feddkd_gradient_evaluations_total",
            "Per-example gradients that clients computed for the replies that arrived.",
            ["exchange"],
            registry=registry,
        )
        self._contributions = Counter(
            "feddkd_contributions_total",
            "Replies that the server asked for, accepted or missing.",
            ["exchange", "result"],
            registry=registry,
        )
        self._round_bytes = Gauge(
            "feddkd_round_wire_bytes",
            "Bytes of serialized gRPC messages of the last completed round; NaN before the first.",
            ["direction"],
            registry=registry,
        )
        for direction in DIRECTIONS:
            self._round_bytes.labels(direction).set(UNKNOWN)
        for exchange in exchanges:
            self._duration.labels(exchange)
            self._gradient_evaluations.labels(exchange)
            for result in ("accepted", "missing"):
                self._contributions.labels(exchange, result)

    def add(self, record: ExchangeRecord) -> None:
        exchange = record.id.name
        self._tensors.add(record)
        self._wire_bytes.add(exchange, record.traffic)
        self._duration.labels(exchange).observe(record.seconds)
        self._gradient_evaluations.labels(exchange).inc(record.gradient_evaluations)
        self._contributions.labels(exchange, "accepted").inc(record.clients_reported)
        self._contributions.labels(exchange, "missing").inc(len(record.clients_missing))

    def round_done(self, record: RoundRecord) -> None:
        self._round_bytes.labels("down").set(record.traffic.wire_bytes_down)
        self._round_bytes.labels("up").set(record.traffic.wire_bytes_up)

    def watch(self, engine: Engine) -> None:
        """Ask the engine, at every scrape, for what changes while no observer is told."""
        self._wire_bytes.other_traffic = engine.other_traffic
        self._clients.states = engine.states


class _TensorMetrics:
    """The tensors that the exchanges moved, and what their codecs did to them."""

    def __init__(self, registry: CollectorRegistry, exchanges: Sequence[str]) -> None:
        labels = ["direction", "exchange"]
        self._payload_bytes = Counter(
            "feddkd_payload_bytes_total",
            "Bytes of encoded tensors that reached clients completely (down) or were reduced (up).",
            labels,
            registry=registry,
        )
        self._dense_bytes = Counter("feddkd_dense_bytes_total", "Bytes of the same tensors without a codec.", labels, registry=registry)
        self._snapshot_bytes = Counter(
            "feddkd_snapshot_bytes_total",
            "The part of the payload bytes down that was whole models, for clients that lacked the previous one.",
            labels,
            registry=registry,
        )
        self._codec_seconds = Counter(
            "feddkd_codec_seconds_total",
            "Time spent in codecs, in seconds: mean over the clients (up), at the server (down).",
            labels,
            registry=registry,
        )
        self._codec_error = Gauge(
            "feddkd_codec_error_ratio",
            "Norm of the codec's change over the norm of the encoded tensor, in the last exchange; NaN before the first.",
            labels,
            registry=registry,
        )
        for exchange in exchanges:
            self._snapshot_bytes.labels("down", exchange)
            for direction in DIRECTIONS:
                for counter in (self._payload_bytes, self._dense_bytes, self._codec_seconds):
                    counter.labels(direction, exchange)
                self._codec_error.labels(direction, exchange).set(UNKNOWN)

    def add(self, record: ExchangeRecord) -> None:
        exchange, traffic = record.id.name, record.traffic
        self._payload_bytes.labels("down", exchange).inc(traffic.payload_bytes_down)
        self._payload_bytes.labels("up", exchange).inc(traffic.payload_bytes_up)
        self._dense_bytes.labels("down", exchange).inc(traffic.dense_bytes_down)
        self._dense_bytes.labels("up", exchange).inc(traffic.dense_bytes_up)
        self._snapshot_bytes.labels("down", exchange).inc(traffic.snapshot_bytes_down)
        for direction in DIRECTIONS:
            # A client's clock is its own: no less than nothing, and no more than the exchange took.
            seconds = record.metrics.get(CODEC_SECONDS[direction], 0.0)
            self._codec_seconds.labels(direction, exchange).inc(min(max(seconds, 0.0), record.seconds))
            if CODEC_ERROR[direction] in record.metrics:
                self._codec_error.labels(direction, exchange).set(record.metrics[CODEC_ERROR[direction]])


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
            "Bytes of serialized gRPC messages, retries included; exchange other: joins, late replies, farewells.",
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
    """A gauge of its own, because clients come and go while no observer is told.

    `Gauge.set_function` would ask for each state at another instant: their sum would not be the clients.
    """

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
