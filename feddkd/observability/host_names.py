"""Answers a browser only where it names this server by an address or a known name.

Else a page of somebody else's, whose name was made to lead here, could read a run (DNS rebinding). The live page is
always checked: browsers open it. Metrics and health are checked where the address is one of this machine's alone, as
it is by default: a browser on this machine is then the only way in from outside. On another address Prometheus and the
probes ask by any name, as service discovery has it, and any machine that reaches the port may read.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping
from http import HTTPStatus

from feddkd.observability.web import Request, Response, Route, text_response


def checked(routes: Mapping[str, Route], host: str) -> dict[str, Route]:
    """Return routes that answer under an address in figures, "localhost", the name of this machine, or `host`."""
    names = frozenset({"localhost", host.lower(), socket.gethostname().lower()})
    return {path: _checked(names, route) for path, route in routes.items()}


def checked_on_this_machine(routes: Mapping[str, Route], host: str) -> Mapping[str, Route]:
    """Return routes as `checked` does where only this machine reaches `host`, and else as they are."""
    is_local = host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
    return checked(routes, host) if is_local else routes


def _checked(names: Collection[str], route: Route) -> Route:
    def answer(request: Request) -> Response:
        host = _host_name(request.headers.get("host", ""))
        if host in names or _is_address(host):
            return route(request)
        return text_response("open this page by its IP address or as localhost\n", HTTPStatus.MISDIRECTED_REQUEST)

    return answer


def _host_name(header: str) -> str:
    """Return the name in a `Host` header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
