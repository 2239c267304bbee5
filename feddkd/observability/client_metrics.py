"""The Prometheus metrics of one client, at the site: what the client itself knows.

Nothing of it is sent to the server. docs/metrics.md lists every metric.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import Counter, Gauge, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from feddkd.client.watch import Bytes, ClientWatch
from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.observability.certificate_metrics import CertificateExpiry
from feddkd.observability.metrics import UNKNOWN
from feddkd.observability.registry import MetricsRegistry

STATES = ("connecting", "waiting", "working")

CERTIFICATE_ROLES = ("client", "ca")


class ClientMetrics(ClientWatch):
    """Turns what a client does into metrics, which can be read from any thread.

    Attributes:
        registry: holds all of them, and those of the process.
        certificates: until when the certificates hold that the client has.
    """

    def __init__(self, client: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # as in the server's metrics
        self.registry = registry = MetricsRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._activity = _Activity()
        registry.register(self._activity)
        self.certificates = CertificateExpiry(registry, CERTIFICATE_ROLES)
        self._client = client
        self._info = Gauge(
            "feddkd_client_info", "The client and the run that it takes part in; always 1.", ["client", "run_id"], registry=registry
        )
        self._exchanges = Counter(
            "feddkd_client_exchanges_total",
            "Exchanges that the client computed a reply to, or failed in.",
            ["exchange", "result"],
            registry=registry,
        )
        self._connections = Counter("feddkd_client_connections_total", "Streams to the server that were opened.", registry=registry)
        self._round = Gauge("feddkd_client_round", "Number of the round of the last exchange; 0 before the first.", registry=registry)
        self._loss = Gauge("feddkd_client_loss", "Mean loss of the last reply that had one; NaN before the first.", registry=registry)
        self._accuracy = Gauge(
            "feddkd_client_accuracy_ratio",
            "Accuracy (0 to 1) of the last global model on what the site holds out; NaN before the first.",
            registry=registry,
        )
        self._examples = Gauge("feddkd_client_examples", "Training examples of the site.", ["labelled"], registry=registry)
        for unknown in (self._loss, self._accuracy, self._examples.labels("yes"), self._examples.labels("no")):
            unknown.set(UNKNOWN)

    def has_examples(self, counts: ExampleCounts) -> None:
        self._examples.labels("yes").set(counts.labelled)
        self._examples.labels("no").set(counts.unlabelled)

    def connected(self, run_id: str, stream: Bytes) -> None:
        self._info.clear()
        self._info.labels(self._client, run_id).set(1)
        self._connections.inc()
        self._activity.connected(stream)

    def disconnected(self) -> None:
        self._activity.disconnected()

    def began(self, task: Task) -> None:
        self._round.set(task.id.round)
        self._activity.began()

    def computed(self, task: Task, reply: Reply | None) -> None:
        self._activity.ended()
        self._exchanges.labels(task.id.name, "computed" if reply is not None else "failed").inc()
        if reply is None:
            return
        if reply.loss is not None:
            self._loss.set(reply.loss)
        if reply.evaluation is not None and reply.evaluation.accuracy is not None:
            self._accuracy.set(reply.evaluation.accuracy)


class _Activity(Collector):
    """State, times and bytes, which change while nothing is told."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started_at = clock()
        self._working_since: float | None = None
        self._computing_s = 0.0
        self._stream: Bytes | None = None
        self._ended: dict[str, int] = {"down": 0, "up": 0}

    def connected(self, stream: Bytes) -> None:
        with self._lock:
            self._stream = stream

    def disconnected(self) -> None:
        with self._lock:
            self._ended, self._stream = self._bytes(), None

    def began(self) -> None:
        with self._lock:
            self._working_since = self._clock()

    def ended(self) -> None:
        with self._lock:
            self._computing_s, self._working_since = self._computed_s(), None

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Claims the names of the metrics in the registry."""
        yield GaugeMetricFamily(
            "feddkd_client_state", "1 for the client's state: connecting, waiting or working; 0 for the others.", labels=["state"]
        )
        yield CounterMetricFamily("feddkd_client_wire_bytes_total", "Bytes of the messages of the client's streams.", labels=["direction"])
        yield CounterMetricFamily("feddkd_client_computing_seconds_total", "Time that the client computed, in seconds.")
        yield CounterMetricFamily("feddkd_client_waiting_seconds_total", "Time that the client did not compute, in seconds.")

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        with self._lock:
            computed_s, sizes = self._computed_s(), self._bytes()
            waited_s = self._clock() - self._started_at - computed_s
            state = "working" if self._working_since is not None else "connecting" if self._stream is None else "waiting"
        states, wire, computing, waiting = self.describe()
        for each in STATES:
            states.add_metric((each,), float(each == state))
        for direction, count in sizes.items():
            wire.add_metric((direction,), count)
        computing.add_metric((), computed_s)
        waiting.add_metric((), max(waited_s, 0.0))
        yield from (states, wire, computing, waiting)

    def _computed_s(self) -> float:
        return self._computing_s + (self._clock() - self._working_since if self._working_since is not None else 0.0)

    def _bytes(self) -> dict[str, int]:
        if self._stream is None:
            return self._ended
        return {"down": self._ended["down"] + self._stream.received_bytes, "up": self._ended["up"] + self._stream.sent_bytes}
