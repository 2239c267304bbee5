"""Reads and writes lists of revoked certificates (CRLs, RFC 5280) in PEM format."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from feddkd.certs.certificate import parsing
from feddkd.errors import ConfigError
from feddkd.files import read_regular
from feddkd.text import printable

MAX_CRL_BYTES = 16 << 20
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _List:
    """One list: whose it is, which of the CAs has signed it (its SHA-256; empty for none), and what is on it."""

    issuer: bytes
    issued_by: str
    signer: bytes
    serials: tuple[int, ...]
    number: int
    next_update: datetime.datetime | None

    @classmethod
    def of_pem(cls, pem: bytes, authorities: Sequence[x509.Certificate]) -> _List:
        """Read a list. Raises ValueError for whatever in it is malformed."""
        with parsing():
            found = x509.load_pem_x509_crl(pem)
            serials = tuple(entry.serial_number for entry in found)
            signer, shown = _signer(found, authorities), printable(found.issuer.rfc4514_string(), 200)
            return cls(found.issuer.public_bytes(), shown, signer, serials, _number(found), found.next_update_utc)


@dataclass(frozen=True, slots=True)
class Revoked:
    """The certificates that some CAs have revoked.

    Attributes:
        serials: (name of the CA in DER, serial number) of each.
        outdated_since: when the CA said that it would have a newer list; None if no list says so.
        numbers: of the newest list of each CA, by the SHA-256 of the CA's certificate; a CA counts its lists upwards.
    """

    serials: frozenset[tuple[bytes, int]] = frozenset()
    outdated_since: datetime.datetime | None = None
    numbers: Mapping[bytes, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, authorities: Sequence[x509.Certificate]) -> Revoked:
        """Read one or several lists from a file.

        Raises:
            ConfigError: the file cannot be read, holds no list, or one that none of the CAs has signed.
        """
        try:
            blocks = _BLOCK.findall(read_regular(file, MAX_CRL_BYTES))
            found = [_List.of_pem(block, authorities) for block in blocks]
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        except ValueError:
            found = []
        if not found:
            raise ConfigError(f"{file} holds no list of revoked certificates (CRL) in PEM format")
        if stranger := next((each for each in found if not each.signer), None):
            raise ConfigError(f"{file} is a list of revoked certificates of another CA ({stranger.issued_by})")
        serials = frozenset((each.issuer, serial) for each in found for serial in each.serials)
        ends = [each.next_update for each in found if each.next_update is not None]
        numbers = dict[bytes, int]()
        for each in found:
            numbers[each.signer] = max(each.number, numbers.get(each.signer, 0))
        return cls(serials, min(ends, default=None), numbers)

    def check_follows(self, before: Revoked, authorities: Sequence[x509.Certificate]) -> None:
        """Check that no CA's list is older than the one in use, or gone: it would un-revoke certificates.

        Raises:
            ConfigError: one is.
        """
        for authority in authorities:
            mark = authority.fingerprint(hashes.SHA256())
            last, number = before.numbers.get(mark, -1), self.numbers.get(mark, -1)
            if number < last:
                name = printable(authority.subject.rfc4514_string(), 200)
                found = f"has number {number}, and the one in use {last}" if number >= 0 else "is gone"
                raise ConfigError(f"the list of revoked certificates of {name} {found}")

    def has(self, issuer: bytes, serial: int) -> bool:
        """Return whether a CA has revoked its certificate of this number."""
        return (issuer, serial) in self.serials


def revocation_list(
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    before: bytes,
    serials: Iterable[int],
    now: datetime.datetime,
    next_update: datetime.datetime,
    *,
    number: int = 0,
) -> bytes:
    """Make a list in PEM format: the entries of the one before, and further serial numbers.

    Args:
        before: the last list in PEM format; empty for none.
        number: one less than that of the list, where there is none before it.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now).next_update(next_update)
    if before:
        last = x509.load_pem_x509_crl(before)
        number = _number(last)
        for entry in last:
            builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build())
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    builder = builder.add_extension(x509.CRLNumber(number + 1), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _number(found: x509.CertificateRevocationList) -> int:
    """Return the number of a list; 0 where it has none."""
    try:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _signer(found: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> bytes:
    """Return the SHA-256 of that of the CAs which has signed a list; empty if none has."""
    for authority in authorities:
        try:
            with parsing():
                if authority.subject != found.issuer:
                    continue
                key = authority.public_key()
        except ValueError:  # a kind of key, or a name, that the library cannot read: another CA has signed the list
            continue
        if isinstance(key, (dsa.DSAPublicKey, rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            try:
                if found.is_signature_valid(key):
                    return authority.fingerprint(hashes.SHA256())
            except (TypeError, UnsupportedAlgorithm):  # another kind of key has signed it, or in an unknown way
                continue
    return b""
