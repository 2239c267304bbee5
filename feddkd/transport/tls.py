"""Reads TLS credentials from PEM files, and allows plaintext only on loopback."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from feddkd.certs.certificate import Certificate, parsing, read_certificates
from feddkd.certs.revocation import Revoked
from feddkd.errors import ConfigError
from feddkd.transport.certificate_policy import ClientCertificatePolicy, Clock, utc_now
from feddkd.transport.proxy import is_loopback
from feddkd.transport.reloaded_files import ReloadedFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server shows who it is, and what it demands of clients.

    Attributes:
        credentials: as gRPC takes them; the files are read again when they change.
        policy: what client certificates have to be.
    """

    credentials: grpc.ServerCredentials = field(repr=False)
    policy: ClientCertificatePolicy


def server_tls(
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
    *,
    crl: Path | None = None,
    any_certificate: bool = False,
    clock: Clock = utc_now,
) -> ServerTls | None:
    """Serve with a certificate; None serves in plaintext. Files that change later are read again.

    Args:
        client_ca: admits only clients whose certificate this CA signed.
        crl: a list of the certificates that the CA has revoked.
        any_certificate: admits a certificate of the CA for every client id, not only for those that it names.

    Raises:
        ConfigError: a part is missing, a file cannot be read or is no PEM file, the key does not
            fit the certificate, or the CA has not signed the list.
    """
    if client_ca is None and (crl is not None or any_certificate):
        raise ConfigError(f"{'--tls-crl' if crl is not None else '--any-certificate'} needs --tls-client-ca")
    if certificate is None or key is None:
        if not (certificate is key is client_ca is None):
            raise ConfigError("TLS needs both --tls-cert and --tls-key")
        return None

    def configuration() -> grpc.ServerCertificateConfiguration:
        pair = _read_pair(certificate, key)
        if problem := Certificate.of(x509.load_pem_x509_certificate(pair[1])).problem(clock()):
            logger.warning("--tls-cert %s %s: clients will not connect", certificate, problem)
        return grpc.ssl_server_certificate_configuration([pair], _read_ca("--tls-client-ca", client_ca) if client_ca is not None else None)

    files = ReloadedFiles([file for file in (certificate, key, client_ca) if file is not None], configuration)

    def changed() -> Any:  # the stubs do not say that None means no change
        return files.value if files.refresh() else None

    credentials = grpc.dynamic_ssl_server_credentials(files.value, changed, require_client_authentication=client_ca is not None)
    revoked = None
    if client_ca is not None and crl is not None:
        revoked = _lists(crl, client_ca)
    policy = ClientCertificatePolicy(revoked, binds_ids=not any_certificate, verifies=client_ca is not None, clock=clock)
    return ServerTls(credentials, policy)


class ClientTls:
    """The CA that a client trusts, and the certificate that it presents; the files are read again when they change.

    Attributes:
        ca: the file with the certificates that may sign a server's.
        certificate: the file with the client's own certificate, if it has one.
        key: the file with the certificate's private key.
    """

    def __init__(self, ca: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        """Read the files. Raises ConfigError: one cannot be read or is not what it should be."""
        self.ca = ca
        self.certificate = certificate
        self.key = key
        self._files = ReloadedFiles([file for file in (ca, certificate, key) if file is not None], self._make)

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """All of it, as gRPC takes it, as it was read last."""
        return self._files.value

    def refresh(self) -> None:
        """Read the files again if they have changed."""
        self._files.refresh()

    def _make(self) -> grpc.ChannelCredentials:
        roots = _read_ca("--tls-ca", self.ca)
        pair = _read_pair(self.certificate, self.key) if self.certificate and self.key else (None, None)
        return grpc.ssl_channel_credentials(roots, *pair)


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls | None:
    """Trust servers that `ca` signed; show them `certificate` if there is one. None: plaintext.

    Raises:
        ConfigError: a file cannot be read or is not what it should be, or a part is missing.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    if ca is None:
        if certificate is not None:
            raise ConfigError("--tls-cert needs --tls-ca")
        return None
    return ClientTls(ca, certificate, key)


def check_plaintext_allowed(host: str, insecure: bool) -> None:
    """Refuse to send tensors unencrypted to another machine unless the user insists.

    Raises:
        ConfigError: `host` is not this machine and `insecure` is not set.
    """
    if not insecure and not is_loopback(host):
        raise ConfigError(
            f"{host} is not a loopback address: give TLS certificates (--tls-...), or --insecure to send everything unencrypted"
        )


def _lists(crl: Path, client_ca: Path) -> ReloadedFiles[Revoked]:
    """Keep the lists of revoked certificates current; older ones do not take the place of newer ones."""
    last = Revoked()

    def read() -> Revoked:
        nonlocal last
        authorities = read_certificates(client_ca)
        found = Revoked.read(crl, authorities)
        found.check_follows(last, authorities)
        last = found
        return found

    return ReloadedFiles([crl, client_ca], read)


def _read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Read a key and its certificate; gRPC would only say that it cannot listen, or cannot connect.

    Raises:
        ConfigError: a file cannot be read or is not PEM, or the key is not the certificate's.
    """
    key_pem, pem = _read(key), _read(certificate)
    try:
        with parsing():  # a password is among what goes wrong
            shown = x509.load_pem_x509_certificate(pem)
            Certificate.of(shown)  # its names can be read
            fits = load_pem_private_key(key_pem, None).public_key() == shown.public_key()
    except ValueError:
        what = "a certificate and its key in PEM format, without a password"
        raise ConfigError(f"--tls-cert {certificate} and --tls-key {key} are not {what}") from None
    if not fits:
        raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {certificate}")
    return key_pem, pem


def _read_ca(option: str, ca: Path) -> bytes:
    """Read a file of certificates. Raises ConfigError if it holds none."""
    pem = _read(ca)
    try:
        with parsing():
            x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{option} {ca} holds no certificate in PEM format") from None
    return pem


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
