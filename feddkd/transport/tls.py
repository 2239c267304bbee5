"""TLS credentials from PEM files, and the rule that plaintext stays on this machine."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path

import grpc

from feddkd.errors import ConfigError


def server_credentials(certificate: Path | None, key: Path | None, client_ca: Path | None) -> grpc.ServerCredentials | None:
    """Serve with a certificate; with `client_ca`, admit only clients whose certificate it signed. None: plaintext.

    Raises:
        ConfigError: a file cannot be read, or a part is missing.
    """
    if certificate is None or key is None:
        if not (certificate is key is client_ca is None):
            raise ConfigError("TLS needs both --tls-cert and --tls-key")
        return None
    roots = _read(client_ca) if client_ca is not None else None
    return grpc.ssl_server_credentials([(_read(key), _read(certificate))], roots, require_client_auth=roots is not None)


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
