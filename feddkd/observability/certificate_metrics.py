"""A metric of certificates: until when they hold."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from feddkd.certs.certificate import Certificate
from feddkd.errors import ConfigError
from feddkd.observability.metrics import UNKNOWN


class CertificateExpiry:
    """Reads the files at every scrape: a certificate may be renewed while the process runs."""

    def __init__(self, registry: CollectorRegistry, roles: Sequence[str]) -> None:
        """Args:
        roles: the values of the label `role`.
        """
        self._gauge = Gauge(
            "feddkd_certificate_expiry_time_seconds",
            "End of the validity of a certificate, in seconds since 1970; NaN where there is none.",
            ["role"],
            registry=registry,
        )
        for role in roles:
            self._gauge.labels(role).set(UNKNOWN)

    def watch(self, files: Mapping[str, Path | None]) -> None:
        """Take the files, by role; None for a role without one."""
        for role, file in files.items():
            if file is not None:
                self._gauge.labels(role).set_function(functools.partial(_end_of, file))


def _end_of(file: Path) -> float:
    """Return when the certificate in a file ends, in seconds since 1970; NaN where the file cannot be read."""
    try:
        return Certificate.read(file).ends.timestamp()
    except ConfigError:
        return UNKNOWN
