"""Knows the proxy that gRPC asks on the way to a server, and which hosts it must never be asked for.

gRPC takes the proxy from the environment without a word. Its rules are those of its C core: the
first of `PROXY_VARIABLES` that is set counts, in lower case only.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from feddkd.text import printable

PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
EXCEPTION_VARIABLES = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, without the password that its URL may hold.

    Attributes:
        variable: of the environment, that names it.
        address: HOST:PORT.
    """

    variable: str
    address: str

    def __str__(self) -> str:
        return f"the proxy {self.address} of the environment variable {self.variable}"


def is_loopback(host: str) -> bool:
    """Return whether a name or address never leads to another machine. No name is looked up."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_this_machine(host: str) -> bool:
    """Return whether a connection to `host` stays on this machine: loopback, and 0.0.0.0 as an address to connect to."""
    if is_loopback(host):
        return True
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def proxy_for(host: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy that a connection to `host` goes through; None for a direct one."""
    if is_this_machine(host):
        return None
    variable = next((name for name in PROXY_VARIABLES if name in environment), None)
    if variable is None or _is_excepted(host, environment):
        return None
    try:
        url = urlsplit(environment[variable])
        address = f"{url.hostname}:{url.port or 80}"
    except ValueError:
        return None
    if url.scheme != "http" or not url.hostname:  # gRPC takes no other
        return None
    return Proxy(variable, printable(address))


def _is_excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Whether the environment lists a host, its domain or its network as one to connect to directly."""
    variable = next((name for name in EXCEPTION_VARIABLES if name in environment), None)
    entries = environment[variable].split(",") if variable is not None else []
    return any(_covers(entry.strip(), host) for entry in entries if entry.strip())


def _covers(entry: str, host: str) -> bool:
    if host.lower().endswith(entry.lower()):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
