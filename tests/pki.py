"""Certificates for tests: a CA in a folder, and what it has signed, valid now or at another time."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from feddkd.certs.authority import Authority
from feddkd.certs.certificate import to_pem

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)


class Pki:
    """A CA, and the certificates of a server at 127.0.0.1 and of clients."""

    def __init__(self, folder: Path, name: str = "federation CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority.init(folder, name, 3650, b"", NOW - 100 * DAY)

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def crl(self) -> Path:
        return self.folder / "ca.crl"

    def server(self, name: str = "server", hosts: Sequence[str] = ("127.0.0.1",), starts: datetime.datetime = NOW, days: int = 30) -> Path:
        """Issue a server's certificate and return its file; the key is beside it."""
        file = self.folder / f"{name}.pem"
        self.authority.issue(name, hosts=hosts, ids=(), file=file, days=days, passphrase=b"", now=starts)
        return file

    def client(self, name: str, ids: Sequence[str] | None = None, *, starts: datetime.datetime = NOW, days: int = 30) -> Path:
        """Issue a client's certificate and return its file; the key is beside it."""
        file = self.folder / f"{name}.pem"
        self.authority.issue(name, hosts=(), ids=ids or (name,), file=file, days=days, passphrase=b"", now=starts)
        return file

    def renew(self, name: str) -> Path:
        """Renew a certificate in place."""
        file = self.folder / f"{name}.pem"
        self.authority.renew(name, file, 60, b"", NOW)
        return file

    def revoke(self, name: str) -> None:
        """Revoke a certificate; the list is `crl`."""
        self.authority.revoke(name, b"", NOW)

    def handmade(self, common_name: str, *, uri: str = "", dns: Sequence[str] = (), file: str = "") -> Path:
        """Sign a client's certificate with any names, or with a common name alone, as other tools do."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.authority.certificate.subject)
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
        names = [*map(x509.DNSName, dns), *([x509.UniformResourceIdentifier(uri)] if uri else [])]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.authority.key(b""), hashes.SHA256())
        path = self.folder / f"{file or common_name}.pem"
        path.write_bytes(to_pem(certificate))
        path.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return path


DAMAGES = {
    "version": ("a003020102", "a003020109"),
    "curve": ("06082a8648ce3d030107", "06082a8648ce3d03017f"),
    "signature algorithm": ("06082a8648ce3d040302", "06082a8648ce3d04037f"),
    "time": ("170d3", "170d7"),
    "extension": ("0603551d", "0603551c"),
    "octets of an extension": ("0603551d230418", "0603551d230417"),
}
"""Hexadecimal digits of a certificate or a list in DER, and what damages it: each gives another error of the library."""


def damaged(pem: bytes, kind: str) -> bytes:
    """Damage a certificate or a list everywhere in one way."""
    begin, *lines, end = pem.decode().strip().splitlines()
    digits = base64.b64decode("".join(lines)).hex().replace(*DAMAGES[kind])
    return f"{begin}\n{base64.encodebytes(bytes.fromhex(digits)).decode()}{end}\n".encode()


def self_signed(name: str) -> bytes:
    """Make a certificate in PEM that no CA has signed."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    return to_pem(builder.sign(key, hashes.SHA256()))


def signed_ca(subject: x509.Certificate, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Sign the name and the key of a CA, in PEM, as one below which there may be others."""
    builder = x509.CertificateBuilder().subject_name(subject.subject).issuer_name(issuer.subject).public_key(subject.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 10 * DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return to_pem(builder.sign(key, hashes.SHA256()))
