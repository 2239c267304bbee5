"""Metrics of the service around a run: its end, the sites that answer it, and its certificates."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge

from feddkd.observability.metrics import UNKNOWN

REFUSALS = ("identity", "token", "certificate", "taken", "full", "invalid", "version")
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
        self.refused_joins = Counter(
            "feddkd_refused_joins_total", "Joins that the server refused, by the kind of reason.", ["reason"], registry=registry
        )
        for reason in REFUSALS:
            self.refused_joins.labels(reason)
        self.certificate_expiry = Gauge(
            "feddkd_certificate_expiry_time_seconds",
            "End of the validity of a certificate, in seconds since 1970; NaN where there is none.",
            ["role"],
            registry=registry,
        )
        for role in CERTIFICATE_ROLES:
            self.certificate_expiry.labels(role).set(UNKNOWN)

    def ended(self, outcome: str) -> None:
        """Take in that the run ended now."""
        self._end.labels(outcome).set(time.time())
