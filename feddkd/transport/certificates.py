"""Reads from PEM files when a certificate holds and for whom, before a connection shows it."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.errors import ConfigError

_decode: Any = vars(ssl)["_ssl"]._test_decode_cert
"""The ssl module reads a certificate that is not a CA's only in this function, or in a handshake.

The function has no public name, but CPython's own tests need it in every version. The `cryptography` package has a
public one; it would be a dependency of every installation for three fields of a file.
"""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The first certificate of a file.

    Attributes:
        begins: from when it holds, in UTC.
        ends: until when.
        names: hosts and addresses that it is for, in order.
    """

    file: Path
    begins: datetime.datetime
    ends: datetime.datetime
    names: tuple[str, ...]

    @classmethod
    def read(cls, file: Path) -> Certificate:
        """Read a PEM file. Raises ConfigError."""
        try:
            found = _decode(str(file))
        except (OSError, ssl.SSLError):
            raise ConfigError(f"{file} holds no certificate in PEM format") from None
        names = tuple(value for kind, value in found.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
        return cls(file, _moment(found["notBefore"]), _moment(found["notAfter"]), names)

    def check(self, now: datetime.datetime) -> None:
        """Check that it holds. Raises ConfigError."""
        if now < self.begins:
            raise ConfigError(
                f"{self.file} is not valid before {self.begins:%Y-%m-%d %H:%M} UTC, and this machine's clock says {_clock(now)}"
            )
        if now > self.ends:
            raise ConfigError(f"{self.file} has expired on {self.ends:%Y-%m-%d %H:%M} UTC, and this machine's clock says {_clock(now)}")

    def __str__(self) -> str:
        names = f" for {', '.join(self.names)}" if self.names else ""
        return f"{self.file}{names}, valid until {self.ends:%Y-%m-%d}"


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), datetime.UTC)


def _clock(now: datetime.datetime) -> str:
    return f"{now:%Y-%m-%d %H:%M} UTC"
