"""Finds out why a client can never connect to a server, if gRPC reports only that it did not.

A retry cannot fix a wrong certificate, plaintext where the other end expects TLS, or a port of another
program. gRPC reports all of these as "unavailable", like a server that is not up yet.

A host name that does not exist is said in plain words and tried again: where containers or a VPN start
together, it may exist a moment later.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from feddkd.certs.certificate import Certificate, read_certificates
from feddkd.errors import ConfigError
from feddkd.transport.certificate_policy import utc_now
from feddkd.transport.tls import ClientTls

HANDSHAKE_TIMEOUT_S = 3.0

_CAUSE = re.compile(r"last error: [A-Z_]+: \S+: (?P<cause>.*)", re.DOTALL)
_LOOKUP = re.compile(r"errors resolving (?P<host>.*):\d+: \[field:hostname lookup error:(?P<cause>.*)\]", re.DOTALL)
_UNVERIFIED = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<reason>[^:]*)")
_NO_SUCH_HOST = ("Domain name not found", "Name or service not known")
_NOT_HTTP2 = "Failed parsing HTTP/2"
_ON_THE_WAY = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed", "Deadline Exceeded")
_CLOSED = ("Socket closed", "Connection reset")


def cause_of(details: str) -> str:
    """Return what went wrong, out of gRPC's text about all that it tried."""
    if any(word in details for word in _NO_SUCH_HOST):
        return f"there is no host {found['host']!r}" if (found := _LOOKUP.search(details)) else "there is no such host"
    found = _CAUSE.search(details) or _LOOKUP.search(details)
    return found["cause"] if found else details


def never_arrived(details: str) -> bool:
    """Return whether a call failed on its way, as gRPC's `details` say; what a server answers is something else."""
    return details.startswith(_ON_THE_WAY) or any(word in details for word in _CLOSED)


def lasting_problem(details: str, host: str, tls: ClientTls | None) -> str | None:
    """Return why trying again cannot help, as gRPC's `details` say; None where it may."""
    if _NOT_HTTP2 in details:
        return "what listens there is no feddkd server: it does not speak gRPC; check the port"
    return _certificate_problem(details, host, tls) if tls is not None else None


def _certificate_problem(details: str, host: str, tls: ClientTls) -> str | None:
    """Return why the client refused the server; None if it did not."""
    if "Hostname Verification Check failed" in details:
        return f"its certificate is for another host name than {host}"
    if "WRONG_VERSION_NUMBER" in details:
        return "it does not speak TLS: leave out --tls-ca, or start it with --tls-cert and --tls-key"
    found = _UNVERIFIED.search(details)
    if found is None:
        return None
    match reason := found["reason"].strip():
        case "certificate has expired":
            return "its certificate has expired"
        case "certificate is not yet valid":
            return "its certificate is not yet valid; check the clocks of both machines"
        case _:
            return f"its certificate is not trusted by --tls-ca {tls.ca} ({reason})"


async def handshake_problem(details: str, address: str, tls: ClientTls | None) -> str | None:
    """Return why the server hangs up on this client; None if it does not, or if that may pass.

    A server that wants TLS, or another certificate, closes the connection without a word. So this
    function connects once more and looks at how far the TLS handshake gets.
    """
    if not any(word in details for word in _CLOSED):
        return None
    return await asyncio.to_thread(_try_handshake, address, tls)


def host_and_port(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host is in brackets."""
    parts = urlsplit(f"//{address}")
    return parts.hostname or "", parts.port or 0


def _try_handshake(address: str, tls: ClientTls | None) -> str | None:
    host, port = host_and_port(address)
    try:
        with (
            socket.create_connection((host, port), HANDSHAKE_TIMEOUT_S) as connection,
            _context(tls).wrap_socket(connection, server_hostname=host) as secure,
        ):
            if tls is None:
                return "it speaks TLS: give the file of its CA with --tls-ca"
            greeting = secure.recv(1)
    except ssl.SSLError as error:
        reason = error.reason or ""
        refused = tls is not None and "ALERT" in reason and ("CERTIFICATE" in reason or "CA" in reason)
    except OSError:
        return None
    else:
        refused = not greeting
    if tls is None or not refused:
        return None
    if tls.certificate is None:
        return "it admits only clients with a certificate: give one with --tls-cert and --tls-key"
    return f"it does not accept the certificate --tls-cert {tls.certificate}: {_flaw_of(tls.certificate, tls.ca)}"


def _flaw_of(file: Path, ca: Path) -> str:
    """Say what is wrong with a certificate that a server refuses without a word, as far as this machine can know."""
    try:
        own, *_ = read_certificates(file)
        authorities = read_certificates(ca)
    except ConfigError as error:
        return str(error)
    if problem := Certificate.of(own).problem(utc_now()):
        return f"it {problem}"
    if not any(_has_signed(authority, own) for authority in authorities):
        return f"the CA in --tls-ca {ca} has not signed it"
    return "it is for a server, or the server's --tls-client-ca is another one than --tls-ca, or its clock differs from this machine's"


def _has_signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _context(tls: ClientTls | None) -> ssl.SSLContext:
    """A client that trusts every server, because it sends nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if tls is not None and tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
