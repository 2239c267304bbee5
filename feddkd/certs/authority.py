"""Makes a certificate authority (CA) in a folder, signs with it, and keeps what it has signed.

The folder holds `ca.pem`, `ca.key`, the list of revoked certificates `ca.crl`, and in `issued/` a copy of every
certificate. Keys are elliptic-curve keys on P-256.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from feddkd.certs.certificate import read_certificates, to_pem
from feddkd.certs.revocation import Revoked, revocation_list
from feddkd.durable import write_durably
from feddkd.errors import ConfigError, StateError

BACKDATED = datetime.timedelta(minutes=5)
"""A certificate holds from a little before now: clocks of other machines may be behind."""

CRL_LIFE = datetime.timedelta(days=365)
CA_NAME, KEY_NAME, CRL_NAME, ISSUED = "ca.pem", "ca.key", "ca.crl", "issued"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*")
_USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
_USAGES_OF_CA = ("key_cert_sign", "crl_sign")


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that the CA has signed, and whether it has revoked it."""

    name: str
    certificate: x509.Certificate
    revoked: bool


class Authority:
    """A CA in a folder. One process at a time may change it; the caller holds a lock."""

    def __init__(self, folder: Path, certificate: x509.Certificate) -> None:
        self.folder = folder
        self.certificate = certificate

    @classmethod
    def init(cls, folder: Path, name: str, days: int, passphrase: bytes, now: datetime.datetime) -> Authority:
        """Make a CA. Raises StateError if the folder holds one, or cannot be written."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, key.public_key(), now, days).issuer_name(subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(_USAGES_OF_CA), critical=True)
        certificate = builder.sign(key, hashes.SHA256())
        _write_pair(folder / CA_NAME, folder / KEY_NAME, certificate, key, passphrase)
        authority = cls(folder, certificate)
        authority._write_crl(key, (), now)
        return authority

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read a CA that `init` made. Raises ConfigError."""
        if not (folder / CA_NAME).exists():
            raise ConfigError(f"{folder} holds no CA ({CA_NAME}); `feddkd certs init --ca {folder}` makes one")
        return cls(folder, read_certificates(folder / CA_NAME)[0])

    def key(self, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
        """Read the CA's key. Raises ConfigError, also if the passphrase is wrong or missing."""
        file = self.folder / KEY_NAME
        try:
            key = load_pem_private_key(file.read_bytes(), passphrase or None)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        except TypeError:
            raise ConfigError(f"{file} needs a passphrase" if not passphrase else f"{file} has no passphrase") from None
        except ValueError:
            raise ConfigError(f"{file} cannot be read: the passphrase is wrong, or it is no key in PEM format") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self.certificate.public_key():
            raise ConfigError(f"{file} is not the key of {self.folder / CA_NAME}")
        return key

    @property
    def is_locked(self) -> bool:
        """Whether the CA's key has a passphrase. Raises ConfigError."""
        try:
            self.key(b"")
        except ConfigError as error:
            if "needs a passphrase" in str(error):
                return True
            raise
        return False

    def issue(
        self, name: str, *, hosts: Sequence[str], ids: Sequence[str], file: Path, days: int, passphrase: bytes, now: datetime.datetime
    ) -> x509.Certificate:
        """Sign a certificate for a new key, and write both: `file`, and its name with `.key`.

        Args:
            name: the common name.
            hosts: names and addresses of a server; empty for a client's certificate.
            ids: client ids of a client's certificate.

        Raises:
            ConfigError: a name is malformed, or the CA cannot be used.
            StateError: one of the files exists, or cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is not 1 to 64 letters, digits, '.', '_' and '-' that begin with a letter or digit")
        signer = self.key(passphrase)
        if any(each.name == name and not each.revoked and each.certificate.not_valid_after_utc > now for each in self.issued()):
            raise StateError(f"{name} has a certificate of this CA: renew it, or revoke it first")
        key = ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([*map(_host, hosts), *map(x509.DNSName, ids)])
        usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(subject, key.public_key(), alternatives, x509.ExtendedKeyUsage([usage]), signer, days, now)
        _write_pair(file, file.with_suffix(".key"), certificate, key, b"")
        self._keep(name, certificate, signer, now)
        return certificate

    def renew(self, name: str, file: Path, days: int, passphrase: bytes, now: datetime.datetime) -> x509.Certificate:
        """Sign the newest certificate of a name once more: the same names and key, other dates and serial number.

        Raises:
            ConfigError: there is none, or it is revoked, or the CA cannot be used.
            StateError: `file` cannot be written.
        """
        old = self._newest(name)
        if old.revoked:
            raise ConfigError(f"the certificate of {name} is revoked: issue another one instead, with a new key")
        signer, extensions = self.key(passphrase), old.certificate.extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        certificate = self._signed(old.certificate.subject, old.certificate.public_key(), alternatives, usage, signer, days, now)
        try:
            write_durably(file, to_pem(certificate))
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error
        self._keep(name, certificate, signer, now)
        return certificate

    def revoke(self, name: str, passphrase: bytes, now: datetime.datetime) -> list[x509.Certificate]:
        """Revoke all certificates of a name that have not expired, and write the list of revoked ones.

        Raises:
            ConfigError: there is none, or the CA cannot be used.
            StateError: the list cannot be written.
        """
        signer = self.key(passphrase)
        self._newest(name)
        found = [each.certificate for each in self.issued() if each.name == name and not each.revoked]
        if not found:
            raise ConfigError(f"the certificates of {name} are revoked already")
        self._write_crl(signer, [each.serial_number for each in found], now)
        return found

    def rebuild_crl(self, names: Sequence[str], passphrase: bytes, now: datetime.datetime) -> None:
        """Begin another list of revoked certificates in place of one that is lost or damaged, with all certificates of some names.

        Its number is the time in seconds since 1970: higher than that of any list before it, so that a server takes it.

        Raises:
            ConfigError: the list is whole, a name has no certificate, or the CA cannot be used.
            StateError: the list cannot be written.
        """
        signer = self.key(passphrase)
        with contextlib.suppress(ConfigError):
            self._revoked()
            raise StateError(f"{self.folder / CRL_NAME} is whole, and stays as it is")
        signed = self._signed_by_name()
        if unknown := next((name for name in names if name not in {each for each, _ in signed}), None):
            raise ConfigError(f"the CA in {self.folder} has signed no certificate for {unknown!r}")
        serials = [certificate.serial_number for name, certificate in signed if name in names]
        content = revocation_list(self.certificate, signer, b"", serials, now, now + CRL_LIFE, number=int(now.timestamp()))
        self._replace_crl(content)

    def issued(self) -> list[Issued]:
        """Return what the CA has signed, by name, then oldest first. Raises ConfigError."""
        revoked = self._revoked()
        signed = self._signed_by_name()
        return [Issued(name, each, revoked.has(each.issuer.public_bytes(), each.serial_number)) for name, each in signed]

    def _signed_by_name(self) -> list[tuple[str, x509.Certificate]]:
        found = [(file.stem.rpartition("-")[0], read_certificates(file)[0]) for file in (self.folder / ISSUED).glob("*.pem")]
        found.sort(key=lambda item: (item[0], item[1].not_valid_before_utc, item[1].not_valid_after_utc))
        return found

    def _newest(self, name: str) -> Issued:
        found = [each for each in self.issued() if each.name == name]
        if not found:
            raise ConfigError(f"the CA in {self.folder} has signed no certificate for {name!r}")
        return found[-1]

    def _revoked(self) -> Revoked:
        """Read the list of revoked certificates. Raises ConfigError, also if it is lost: it would be as if nothing was revoked."""
        file = self.folder / CRL_NAME
        if file.exists():
            return Revoked.read(file, [self.certificate])
        if any((self.folder / ISSUED).glob("*.pem")):
            way_out = "put it back (the server has a copy), or begin another with `feddkd certs rebuild-crl`"
            raise ConfigError(f"{file} is lost, and with it which certificates are revoked: {way_out}")
        return Revoked()

    def _signed(
        self,
        subject: x509.Name,
        key: CertificatePublicKeyTypes,
        alternatives: x509.SubjectAlternativeName,
        usage: x509.ExtendedKeyUsage,
        signer: ec.EllipticCurvePrivateKey,
        days: int,
        now: datetime.datetime,
    ) -> x509.Certificate:
        """Sign a certificate that does not outlive the CA's. Raises ConfigError if that has expired."""
        last = self.certificate.not_valid_after_utc
        if now >= last:
            raise ConfigError(f"the CA in {self.folder} has expired on {last:%Y-%m-%d}")
        builder = _builder(subject, key, now, days, last).issuer_name(self.certificate.subject)
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        for extension, is_critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_key_usage(("digital_signature",)), True),
            (usage, False),
            (alternatives, False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False),
        ):
            builder = builder.add_extension(extension, critical=is_critical)
        return builder.sign(signer, hashes.SHA256())

    def _keep(self, name: str, certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> None:
        """Keep a copy of a certificate, and make the list of revoked ones current. Raises StateError."""
        folder = self.folder / ISSUED
        try:
            folder.mkdir(exist_ok=True)
            write_durably(folder / f"{name}-{certificate.serial_number:x}.pem", to_pem(certificate))
        except OSError as error:
            raise StateError(f"cannot write {folder}: {error.strerror}") from error
        self._write_crl(signer, (), now)

    def _write_crl(self, signer: ec.EllipticCurvePrivateKey, serials: Sequence[int], now: datetime.datetime) -> None:
        file = self.folder / CRL_NAME
        before = file.read_bytes() if file.exists() else b""
        self._replace_crl(revocation_list(self.certificate, signer, before, serials, now, now + CRL_LIFE))

    def _replace_crl(self, content: bytes) -> None:
        file = self.folder / CRL_NAME
        try:
            write_durably(file, content)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error


def _builder(
    subject: x509.Name, key: CertificatePublicKeyTypes, now: datetime.datetime, days: int, last: datetime.datetime | None = None
) -> x509.CertificateBuilder:
    """Begin a certificate; it ends at `last` at the latest."""
    ends = now + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(min(ends, last) if last is not None else ends)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(wanted: Sequence[str]) -> x509.KeyUsage:
    every = (*_USAGES, *_USAGES_OF_CA, "encipher_only", "decipher_only")
    return x509.KeyUsage(**{usage: usage in wanted for usage in every})


def _host(host: str) -> x509.GeneralName:
    """Read a name or an address of a server. Raises ConfigError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) <= 253 and _HOST.fullmatch(host) and not re.fullmatch(r"[0-9.]+", host):
            return x509.DNSName(host)
    raise ConfigError(f"{host!r} is neither a host name nor an address; no certificate was made") from None


def _write_pair(file: Path, key_file: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> None:
    """Write a key that only its owner can read, and its certificate. Raises StateError if one of the files exists."""
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    for each in (file, key_file):
        if each.exists():
            raise StateError(f"{each} exists, and stays as it is; nothing was made")
    _write_new(key_file, secret, 0o600)
    try:
        _write_new(file, to_pem(certificate), 0o644)
    except StateError:
        key_file.unlink()
        raise


def _write_new(file: Path, content: bytes, mode: int) -> None:
    """Write a file that is not there yet. Raises StateError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        raise StateError(f"{file} exists, and stays as it is; nothing was made") from None
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}") from error
