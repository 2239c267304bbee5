"""Reads TLS credentials from PEM files, and allows plaintext only on loopback."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from feddkd.errors import ConfigError
from feddkd.transport.proxy import is_loopback


def server_credentials(
    certificate: Path | None,
    key: Path | None,
    client_ca: Path | None,
) -> grpc.ServerCredentials | None:
    """Serve with a certificate; None serves in plaintext.

    Args:
        client_ca: admits only clients whose certificate this CA signed.

    Raises:
        ConfigError: a part is missing, a file cannot be read or is no PEM file, or the key does not
            fit the certificate.
    """
    if certificate is None or key is None:
        if not (certificate is key is client_ca is None):
            raise ConfigError("TLS needs both --tls-cert and --tls-key")
        return None
    pair = [(_read(key), _read(certificate))]
    roots = _read(client_ca) if client_ca is not None else None
    _check_pair(certificate, key)
    if client_ca is not None:
        _check_ca("--tls-client-ca", client_ca)
    return grpc.ssl_server_credentials(pair, roots, require_client_auth=roots is not None)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """The CA that a client trusts, and the certificate that it presents.

    Attributes:
        ca: the file with the certificates that may sign a server's.
        certificate: the file with the client's own certificate, if it has one.
        key: the file with the certificate's private key.
        credentials: all of it, as gRPC takes it.
    """

    ca: Path
    certificate: Path | None
    key: Path | None
    credentials: grpc.ChannelCredentials = field(repr=False)


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
    roots = _read(ca)
    pair = (_read(key), _read(certificate)) if certificate and key else (None, None)
    _check_ca("--tls-ca", ca)
    if certificate and key:
        _check_pair(certificate, key)
    return ClientTls(ca, certificate, key, grpc.ssl_channel_credentials(roots, *pair))


def certificate_hash(auth_context: Mapping[str, Iterable[bytes]]) -> bytes | None:
    """Return the SHA-256 of the certificate that a client showed; None if it showed none."""
    for pem in auth_context.get("x509_pem_cert", ()):
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest()
    return None


def check_plaintext_allowed(host: str, insecure: bool) -> None:
    """Refuse to send tensors unencrypted to another machine unless the user insists.

    Raises:
        ConfigError: `host` is not this machine and `insecure` is not set.
    """
    if not insecure and not is_loopback(host):
        raise ConfigError(
            f"{host} is not a loopback address: give TLS certificates (--tls-...), or --insecure to send everything unencrypted"
        )


def _check_pair(certificate: Path, key: Path) -> None:
    """Let Python's own TLS read the files: gRPC would only say that it cannot listen, or cannot connect.

    Raises:
        ConfigError: one of them is not PEM, or the key is not the certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # never ask for one
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {certificate}") from None
        what = "a certificate and its key in PEM format, without a password"
        raise ConfigError(f"--tls-cert {certificate} and --tls-key {key} are not {what}") from None


def _check_ca(option: str, ca: Path) -> None:
    """Check that a file holds a certificate. Raises ConfigError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca)
    except ssl.SSLError:
        raise ConfigError(f"{option} {ca} holds no certificate in PEM format") from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
