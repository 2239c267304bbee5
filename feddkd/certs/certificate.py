"""Reads a certificate: for whom it is, from when until when, and how it is told apart from others."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from feddkd.errors import ConfigError
from feddkd.files import read_regular
from feddkd.text import printable

MAX_FILE_BYTES = 1 << 20
MAX_CERTIFICATE_BYTES = 64 << 10
"""Of a certificate that a client shows, in PEM. An ordinary one has 1 to 3 KiB."""

SHOWN_NAMES = 8
"""Names of a certificate that a message lists."""

URI_PREFIX = "feddkd:"
"""A subject alternative name of the kind URI that begins like this names a client id, too."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate.

    Attributes:
        begins: from when it holds, in UTC.
        ends: until when.
        names: hosts, addresses and URIs that it is for, in order.
        ids: client ids that it may take part as.
        subject: its subject, in one line that is safe to print.
        serial: the number that its CA gave it.
        issuer: the name of its CA, in DER.
        sha256: of its DER form.
    """

    begins: datetime.datetime
    ends: datetime.datetime
    names: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()
    subject: str = ""
    serial: int = 0
    issuer: bytes = b""
    sha256: bytes = b""

    @classmethod
    def of_pem(cls, pem: bytes) -> Certificate:
        """Read the first certificate in PEM bytes. Raises ValueError."""
        if len(pem) > MAX_CERTIFICATE_BYTES:
            raise ValueError(f"a certificate of {len(pem)} bytes; at most {MAX_CERTIFICATE_BYTES} are read")
        with parsing():
            found = x509.load_pem_x509_certificate(pem)
        return cls.of(found)

    @classmethod
    def all_of_pem(cls, pem: bytes) -> tuple[Certificate, ...]:
        """Read all certificates in PEM bytes; none in empty ones. Raises ValueError."""
        if len(pem) > MAX_CERTIFICATE_BYTES:
            raise ValueError(f"certificates of {len(pem)} bytes; at most {MAX_CERTIFICATE_BYTES} are read")
        with parsing():
            found = x509.load_pem_x509_certificates(pem) if pem else []
        return tuple(map(cls.of, found))

    @classmethod
    def of(cls, found: x509.Certificate) -> Certificate:
        """Take over what matters here. Raises ValueError for whatever in it is malformed."""
        with parsing():
            names, ids = _names(found)
            return cls(
                begins=found.not_valid_before_utc,
                ends=found.not_valid_after_utc,
                names=names,
                ids=ids,
                subject=printable(found.subject.rfc4514_string(), 200),
                serial=found.serial_number,
                issuer=found.issuer.public_bytes(),
                sha256=found.fingerprint(hashes.SHA256()),
            )

    @classmethod
    def read(cls, file: Path) -> Certificate:
        """Read the first certificate of a PEM file. Raises ConfigError."""
        found = read_certificates(file)[0]
        try:
            return cls.of(found)
        except ValueError:
            raise ConfigError(f"{file} holds no certificate that can be read") from None

    def problem(self, now: datetime.datetime) -> str:
        """Return why it does not hold at a moment; empty if it does."""
        clock = f"this machine's clock says {_moment(now)}"
        if now < self.begins:
            return f"is not valid before {_moment(self.begins)}, and {clock}"
        if now > self.ends:
            return f"has expired on {_moment(self.ends)}, and {clock}"
        return ""

    @property
    def shown_names(self) -> str:
        """Some of its names, safe to print; its subject if it has none."""
        return listed(self.names) or self.subject or "no name"

    @property
    def shown_ids(self) -> str:
        """Some of the client ids that it names, safe to print."""
        return listed(sorted(self.ids)) or "no client id"

    @property
    def shown_serial(self) -> str:
        """The serial number, in hexadecimal digits."""
        return f"{self.serial:x}"

    def __str__(self) -> str:
        names = f" for {listed(self.names)}" if self.names else ""
        return f"{names}, valid until {self.ends:%Y-%m-%d}"


def listed(names: tuple[str, ...] | list[str]) -> str:
    """List some names in one line that is safe to print."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(printable(name, 100) for name in names[:SHOWN_NAMES]) + more


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Raise ValueError for whatever goes wrong in it.

    The library reads parts of a certificate when they are asked for, and has many exceptions: for versions,
    algorithms and curves that it does not know, for extensions that come twice, and for integers that are too long.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(str(error)) from error


def read_certificates(file: Path) -> list[x509.Certificate]:
    """Read all certificates of a PEM file, at least one. Raises ConfigError."""
    try:
        content = read_regular(file, MAX_FILE_BYTES)
        with parsing():
            found = x509.load_pem_x509_certificates(content)
            for each in found:
                _names(each)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError:
        raise ConfigError(f"{file} holds no certificate in PEM format") from None
    return found


def to_pem(certificate: x509.Certificate) -> bytes:
    """Write a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def _names(found: x509.Certificate) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return for which hosts, addresses and URIs a certificate is, and which client ids it names.

    A common name counts only where there are no subject alternative names, as for hosts (RFC 6125).
    """
    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return (), frozenset(str(name.value) for name in common) if len(common) == 1 else frozenset()
    hosts = alternatives.get_values_for_type(x509.DNSName)
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    addresses = map(str, alternatives.get_values_for_type(x509.IPAddress))
    ids = [uri.removeprefix(URI_PREFIX) for uri in uris if uri.startswith(URI_PREFIX)]
    return (*hosts, *addresses, *uris), frozenset([*hosts, *ids])


def _moment(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
