"""Metrics of the service around a run: its end, the sites that answer it, and its certificates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from feddkd.observability.metrics import UNKNOWN
from feddkd.scheduler.engine import Engine

REFUSALS = ("identity", "token", "taken", "full", "version", "invalid")
"""Why joins are refused: the values of the label `reason`."""

CERTIFICATE_ROLES = ("server", "client_ca")
"""Of the certificates that a server reads from files."""

OUTCOMES = ("completed", "failed", "stopped")


class ServiceMetrics:
    """How the run ended, which joins were refused, and until when the certificates are valid."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._end = Gauge(
            "feddkd_run_end_time_seconds",
            "When the run ended, in seconds since 1970, by its outcome; NaN before, and for the other outcomes.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._end.labels(outcome).set(UNKNOWN)
        self._refused = _Refused()
        registry.register(self._refused)
        self.certificate_expiry = Gauge(
            "feddkd_certificate_expiry_time_seconds",
            "End of the validity of a certificate, in seconds since 1970; NaN where there is none.",
            ["role"],
            registry=registry,
        )
        for role in CERTIFICATE_ROLES:
            self.certificate_expiry.labels(role).set(UNKNOWN)

    def watch(self, engine: Engine) -> None:
        """Ask the engine, at every scrape, which joins were refused and until when its certificates are valid."""
        self._refused.engine = engine
        for role in CERTIFICATE_ROLES:
            self.certificate_expiry.labels(role).set_function(partial(_end_of, engine, role))

    def ended(self, outcome: str) -> None:
        """Take in that the run ended now."""
        self._end.labels(outcome).set(time.time())


def _end_of(engine: Engine, role: str) -> float:
    return engine.certificate_ends().get(role, UNKNOWN)


class _Refused(Collector):
    """The calls that the server has refused."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = self.engine.refused() if self.engine is not None else {}
        family = CounterMetricFamily("feddkd_refused_joins", "Joins that the server refused, by the kind of reason.", labels=["reason"])
        for reason in REFUSALS:
            family.add_metric([reason], counts.get(reason, 0))
        yield family
