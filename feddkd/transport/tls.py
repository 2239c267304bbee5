"""TLS credentials from PEM files, and the rule that plaintext stays on this machine."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc

from feddkd.errors import ConfigError


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
        _check_ca(client_ca)
    return grpc.ssl_server_credentials(pair, roots, require_client_auth=roots is not None)


def channel_credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials | None:
    """Trust servers that `ca` signed; show them a certificate of our own if there is one. None: plaintext.

    Raises:
        ConfigError: a file cannot be read, or a part is missing.
    """
    if (certificate is None) != (key is None):
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    if ca is None:
        if certificate is not None:
            raise ConfigError("--tls-cert is of no use without --tls-ca")
        return None
    return grpc.ssl_channel_credentials(
        _read(ca), _read(key) if key is not None else None, _read(certificate) if certificate is not None else None
    )


def certificate_hash(auth_context: Mapping[str, Iterable[bytes]]) -> bytes | None:
    """Return the SHA-256 of the certificate that a client showed; None if it showed none."""
    for pem in auth_context.get("x509_pem_cert", ()):
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).digest()
    return None


def check_plaintext_allowed(host: str, insecure: bool) -> None:
    """Refuse to send tensors in the clear to another machine unless the user insists.

    Raises:
        ConfigError: `host` is not this machine and `insecure` is not set.
    """
    if not insecure and not _is_loopback(host):
        raise ConfigError(f"{host} is not this machine: give TLS certificates (--tls-...), or --insecure to send everything in the clear")


def _check_pair(certificate: Path, key: Path) -> None:
    """Check what gRPC would say only when it listens, and then as "port taken"."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # never ask for one
    except ssl.SSLError as error:
        other = error.reason == "KEY_VALUES_MISMATCH"
        why = "the key is of another certificate" if other else "no PEM file, or an encrypted key"
        raise ConfigError(f"--tls-cert {certificate} and --tls-key {key}: {why}") from error


def _check_ca(client_ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(client_ca)
    except ssl.SSLError as error:
        raise ConfigError(f"--tls-client-ca {client_ca}: no PEM file with a certificate") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
