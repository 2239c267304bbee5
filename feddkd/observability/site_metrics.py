"""Gauges by site: metrics of teacher and global model, contradicted labels, and numbers of examples."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge

from feddkd.algorithms.feddkd import LABEL_DISAGREEMENT, TEACHER_ACCURACY
from feddkd.config import Config, MainMetric
from feddkd.exchange import ExampleCounts
from feddkd.observability.metrics import UNKNOWN
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

    def add(self, record: ExchangeRecord) -> None:
        for name, gauge in self._gauges.items():
            for client, value in record.by_client.get(name, {}).items():
                self._make_room(client)
                gauge.labels(client).set(value)
        for name in self._names:
            for client, value in record.by_client.get(f"{OF_CLIENT}{name}", {}).items():
                self._make_room(client)
                self._scores.labels(client, name).set(value)

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

    def count(self, examples: Mapping[str, ExampleCounts]) -> None:
        total = ExampleCounts.sum_of(examples.values())
        self._examples.labels("yes").set(total.labelled)
        self._examples.labels("no").set(total.unlabelled)
