"""Metrics of the service around a run: its end, the sites that answer it, and its certificates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from feddkd.observability.metrics import UNKNOWN
from feddkd.scheduler.engine import Engine

REFUSALS = ("identity", "token", "taken", "full", "version", "invalid")
"""Why joins are refused: the values of the label `reason`."""

CERTIFICATE_ROLES = ("server", "client_ca")
"""Of the certificates that a server reads from files."""

OUTCOMES = ("completed", "failed", "stopped")


class ServiceMetrics:
    """How the run ended, who was turned away, and until when the certificates are valid."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._end = Gauge(
            "feddkd_run_end_time_seconds",
            "When the run ended, in seconds since 1970, by its outcome; NaN before, and for the other outcomes.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._end.labels(outcome).set(UNKNOWN)
        self._refused_joins = RefusedJoins()
        registry.register(self._refused_joins)
        self.certificate_expiry = Gauge(
            "feddkd_certificate_expiry_time_seconds",
            "End of the validity of a certificate, in seconds since 1970; NaN where there is none.",
            ["role"],
            registry=registry,
        )
        for role in CERTIFICATE_ROLES:
            self.certificate_expiry.labels(role).set(UNKNOWN)

    def watch(self, engine: Engine) -> None:
        """Ask the engine at every scrape whom it refused."""
        self._refused_joins.refusals = engine.refusals

    def ended(self, outcome: str) -> None:
        """Take in that the run ended now."""
        self._end.labels(outcome).set(time.time())


class RefusedJoins(Collector):
    """A counter of its own, because joins are refused while no observer is told."""

    def __init__(self) -> None:
        self.refusals: Callable[[], Mapping[str, int]] = dict

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Claims the metric's name in the registry."""
        yield CounterMetricFamily("feddkd_refused_joins_total", "Joins that the server refused, by the kind of reason.", labels=["reason"])

    def collect(self) -> Iterator[CounterMetricFamily]:
        for family in self.describe():
            count = self.refusals()
            for reason in REFUSALS:
                family.add_metric((reason,), count.get(reason, 0))
            yield family
