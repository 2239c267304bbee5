"""Metrics of the service around a run: its end, and the calls that were refused."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from feddkd.observability.metrics import UNKNOWN
from feddkd.refusal_kinds import KINDS
from feddkd.scheduler.engine import Engine

OUTCOMES = ("completed", "failed", "stopped")


class ServiceMetrics:
    """How the run ended, and which joins were refused."""

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

    def watch(self, engine: Engine) -> None:
        """Ask the engine, at every scrape, which joins were refused."""
        self._refused.engine = engine

    def ended(self, outcome: str) -> None:
        """Take in that the run ended now."""
        self._end.labels(outcome).set(time.time())


class _Refused(Collector):
    """The calls that the server has refused."""

    def __init__(self) -> None:
        self.engine: Engine | None = None

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = self.engine.refused() if self.engine is not None else {}
        family = CounterMetricFamily(
            "feddkd_refused_joins", "Joins and streams that the server refused, by the kind of reason.", labels=["reason"]
        )
        for reason in KINDS:
            family.add_metric([reason], counts.get(reason, 0))
        yield family
