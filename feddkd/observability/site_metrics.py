"""Metrics by site: of teacher and global model, contradicted labels, numbers of examples, answers and connection."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feddkd.algorithms.feddkd import LABEL_DISAGREEMENT, TEACHER_ACCURACY
from feddkd.config import Config, MainMetric
from feddkd.exchange import ExampleCounts
from feddkd.observability.metrics import UNKNOWN
from feddkd.scheduler.engine import ClientStates, Engine, client_state
from feddkd.scheduler.records import ExchangeRecord
from feddkd.scheduler.sites import CLIENT_ACCURACY, MOST_CLIENTS, OF_CLIENT


class SiteMetrics:
    """Gauges with a series for each client that said something: the last `MOST_CLIENTS` of them."""

    def __init__(self, registry: CollectorRegistry, config: Config) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["client"], registry=registry)

        self._gauges = {
            TEACHER_ACCURACY: gauge(
                "feddkd_site_teacher_accuracy_ratio",
                "Accuracy (0 to 1) of the site's last teacher on the labelled examples that the site holds out.",
            ),
            CLIENT_ACCURACY: gauge(
                "feddkd_site_accuracy_ratio",
                "Accuracy (0 to 1) of the last global model on the labelled examples that the site holds out.",
            ),
            LABEL_DISAGREEMENT: gauge(
                "feddkd_site_label_disagreement_ratio",
                "Share (0 to 1) of the site's labels that differ from its last teacher's most likely class.",
            ),
        }
        self._scores = Gauge(
            "feddkd_site_score",
            "A metric of the task, other than accuracy, of the last global model on the labelled examples that the site holds out.",
            ["client", "metric"],
            registry=registry,
        )
        # Accuracy has a gauge of its own.
        self._names = [name for name in MainMetric.of(config).names if name != "accuracy"]
        self._clients: dict[str, None] = {}  # those that were heard longest ago come first
        self._examples = Gauge(
            "feddkd_examples",
            "Training examples of the clients that can take part, labelled or not; NaN before the first join.",
            ["labelled"],
            registry=registry,
        )
        for labelled in ("yes", "no"):
            self._examples.labels(labelled).set(UNKNOWN)
        self._answers = SiteAnswers(registry)
        self._states = SiteStates()
        registry.register(self._states)

    def watch(self, engine: Engine) -> None:
        """Ask the engine how long sites take, and at every scrape who is there."""
        self._states.engine = self._answers.engine = engine

    def add(self, record: ExchangeRecord) -> None:
        for name, gauge in self._gauges.items():
            for client, value in record.by_client.get(name, {}).items():
                self._make_room(client)
                gauge.labels(client).set(value)
        for name in self._names:
            for client, value in record.by_client.get(f"{OF_CLIENT}{name}", {}).items():
                self._make_room(client)
                self._scores.labels(client, name).set(value)
        for client in self._answers.heard_of(record):
            self._make_room(client)
        self._answers.add(record)

    def outliers(self, exchanges: Mapping[str, int]) -> None:
        """Take in in how many exchanges running each client's contribution was an outlier."""
        for client, count in exchanges.items():
            self._make_room(client)
            self._answers.outlier_exchanges.labels(client).set(count)

    def _make_room(self, client: str) -> None:
        """Put a client last, and forget the first one if there are too many."""
        self._clients.pop(client, None)
        self._clients[client] = None
        if len(self._clients) > MOST_CLIENTS:
            forgotten = next(iter(self._clients))
            del self._clients[forgotten]
            for gauge in self._gauges.values():
                with contextlib.suppress(KeyError):  # it said nothing of this
                    gauge.remove(forgotten)
            for name in self._names:
                with contextlib.suppress(KeyError):
                    self._scores.remove(forgotten, name)
            self._answers.forget(forgotten)

    def count(self, examples: Mapping[str, ExampleCounts]) -> None:
        total = ExampleCounts.sum_of(examples.values())
        self._examples.labels("yes").set(total.labelled)
        self._examples.labels("no").set(total.unlabelled)
        if len(examples) <= MOST_CLIENTS:
            for client in examples:
                if client not in self._clients:
                    self._make_room(client)
                self._answers.expect(client)


class SiteAnswers:
    """How long each site takes to answer, and how often it does not.

    Attributes:
        engine: is asked for the times; None before there is one.
        outlier_exchanges: filled by who compares the contributions.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.engine: Engine | None = None
        self._last_seconds = Gauge(
            "feddkd_site_last_seconds",
            "Time from the broadcast to the site's complete reply in the last exchange of this name, in seconds.",
            ["client", "exchange"],
            registry=registry,
        )
        self._missing = Counter(
            "feddkd_site_missing_total",
            "Exchanges of the site's rounds that have no reply of the site.",
            ["client"],
            registry=registry,
        )
        self.outlier_exchanges = Gauge(
            "feddkd_site_outlier_exchanges",
            "Exchanges, one after the other until now, in which the site's contribution was an outlier.",
            ["client"],
            registry=registry,
        )
        self._exchanges: set[str] = set()

    def heard_of(self, record: ExchangeRecord) -> list[str]:
        """Return the clients that an exchange tells something of."""
        return [*record.clients_missing, *self._seconds_in(record)]

    def expect(self, client: str) -> None:
        """Begin to count at 0."""
        self._missing.labels(client)

    def add(self, record: ExchangeRecord) -> None:
        self._exchanges.add(record.id.name)
        for client in record.clients_missing:
            self._missing.labels(client).inc()
        for client, seconds in self._seconds_in(record).items():
            self._last_seconds.labels(client, record.id.name).set(seconds)

    def forget(self, client: str) -> None:
        """Remove the series of a client."""
        for metric in (self._missing, self.outlier_exchanges):
            with contextlib.suppress(KeyError):
                metric.remove(client)
        for exchange in self._exchanges:
            with contextlib.suppress(KeyError):
                self._last_seconds.remove(client, exchange)

    def _seconds_in(self, record: ExchangeRecord) -> Mapping[str, float]:
        """Return how long each client took for its reply; empty for very many, and for what an earlier process did."""
        if self.engine is None or record.clients_selected > MOST_CLIENTS:
            return {}
        return {client: seconds for client, (exchange, seconds) in self.engine.last_replies().items() if exchange == record.id}


class SiteStates(Collector):
    """A gauge of its own, because clients come and go while no observer is told.

    Attributes:
        engine: is asked at every scrape; None before there is one.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Claims the metric's name in the registry."""
        yield GaugeMetricFamily(
            "feddkd_site_state", "1 for the site's state: connected, working or lost; 0 for the others.", labels=["client", "state"]
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for family in self.describe():
            for client, state in self._states().items():
                for possible in dataclasses.asdict(ClientStates()):
                    family.add_metric((client, possible), float(possible == state))
            yield family

    def _states(self) -> dict[str, str]:
        """Return the state of each client, in client order; none once the clients were let go."""
        if self.engine is None or self.engine.states() == ClientStates():
            return {}
        here, awaited = set(self.engine.here()), set(self.engine.waiting_for())
        joined = sorted(here | self.engine.last_heard().keys())[:MOST_CLIENTS]
        return {client: client_state(client, here, awaited) for client in joined}
