"""The places of an engine's hosts: a thread asks the host of each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from feddkd.engines.hosts import Host
from feddkd.exchange import ExchangeId


@dataclass(slots=True)
class Seat:
    """A host, and the thread that asks it.

    Attributes:
        settlements: of exchanges, by client whether the reply counted; the host has not heard of them yet.
    """

    number: int
    host: Host
    settlements: deque[tuple[ExchangeId, Mapping[str, bool]]] = field(default_factory=deque)
    thread: threading.Thread | None = None


def start_together(start: Callable[[int], Host | None], count: int) -> list[Host]:
    """Start hosts at the same time; returns those that there is room for.

    If one raises, the others are ended, and the first error is raised.

    Args:
        start: starts the host of a number; None where there is no room for it.
        count: of hosts, at least 1.
    """
    with ThreadPoolExecutor(count) as starting:
        started = [starting.submit(start, number) for number in range(count)]
    errors = [error for each in started if (error := each.exception()) is not None]
    hosts = [host for each in started if each.exception() is None and (host := each.result()) is not None]
    if errors:
        for host in hosts:
            host.end()
        raise errors[0]
    return hosts
