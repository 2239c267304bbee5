"""Reads and writes lists of revoked certificates (CRLs, RFC 5280) in PEM format."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from feddkd.errors import ConfigError
from feddkd.files import read_regular

MAX_CRL_BYTES = 16 << 20
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Revoked:
    """The certificates that some CAs have revoked.

    Attributes:
        serials: (name of the CA in DER, serial number) of each.
        outdated_since: when the CA said that it would have a newer list; None if no list says so.
    """

    serials: frozenset[tuple[bytes, int]] = frozenset()
    outdated_since: datetime.datetime | None = None

    @classmethod
    def read(cls, file: Path, authorities: Sequence[x509.Certificate]) -> Revoked:
        """Read one or several lists from a file.

        Raises:
            ConfigError: the file cannot be read, holds no list, or one that none of the CAs has signed.
        """
        try:
            blocks = _BLOCK.findall(read_regular(file, MAX_CRL_BYTES))
            lists = [x509.load_pem_x509_crl(block) for block in blocks]
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        except ValueError:
            lists = []
        if not lists:
            raise ConfigError(f"{file} holds no list of revoked certificates (CRL) in PEM format")
        serials = set[tuple[bytes, int]]()
        for each in lists:
            if not _is_signed(each, authorities):
                raise ConfigError(f"{file} is a list of revoked certificates of another CA ({each.issuer.rfc4514_string()})")
            issuer = each.issuer.public_bytes()
            serials.update((issuer, entry.serial_number) for entry in each)
        ends = [each.next_update_utc for each in lists if each.next_update_utc is not None]
        return cls(frozenset(serials), min(ends, default=None))

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
) -> bytes:
    """Make a list in PEM format: the entries of the one before, and further serial numbers.

    Args:
        before: the last list in PEM format; empty for none.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now).next_update(next_update)
    number = 0
    if before:
        last = x509.load_pem_x509_crl(before)
        number = last.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for entry in last:
            builder = builder.add_revoked_certificate(entry)
    for serial in serials:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build())
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    builder = builder.add_extension(x509.CRLNumber(number + 1), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _is_signed(found: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> bool:
    """Return whether one of the CAs has signed a list."""
    for authority in authorities:
        key = authority.public_key()
        if authority.subject != found.issuer:
            continue
        if isinstance(key, (dsa.DSAPublicKey, rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
            try:
                if found.is_signature_valid(key):
                    return True
            except TypeError:  # another kind of key has signed it
                continue
    return False
