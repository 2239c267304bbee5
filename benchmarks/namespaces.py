"""Network namespaces, one for each client, that virtual cables of a limited rate join to that of a server. Root, Linux."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from feddkd.observability.wall_time import Link

BURST_BYTES = 1 << 15
"""What tbf lets through at once; less than the line carries in a tenth of a second."""

QUEUE_MS = 400


@contextmanager
def cabled(link: Link, clients: int) -> Iterator[list[tuple[Sequence[str], str]]]:
    """Set the namespaces up, and delete them in the end.

    Args:
        link: the rates of each cable; it adds no delay.

    Yields:
        For the server and then for each client, what stands before a command to run it in its namespace, and the
        address of the server from there. The server's own is the one that stands for all of its addresses.

    Raises:
        subprocess.CalledProcessError: `ip` or `tc` refused.
    """
    prefix = f"feddkd{os.getpid()}"
    server, *others = names = [f"{prefix}s", *(f"{prefix}c{index}" for index in range(clients))]
    with contextlib.ExitStack() as stack:
        for name in names:
            _do("ip", "netns", "add", name)
            stack.callback(_do, "ip", "netns", "del", name)
            _do("ip", "-n", name, "link", "set", "lo", "up")
        addresses = [_join(server, name, index, link) for index, name in enumerate(others)]
        yield [(_inside(server), "0.0.0.0"), *((_inside(name), address) for name, address in zip(others, addresses, strict=True))]


def _join(server: str, client: str, index: int, link: Link) -> str:
    """Lay a cable between two namespaces; returns the address of the server's end."""
    near, far = f"c{index}", f"s{index}"
    _do("ip", "-n", client, "link", "add", near, "type", "veth", "peer", "name", far, "netns", server)
    for namespace, end, address, rate in ((client, near, 2, link.uplink), (server, far, 1, link.downlink)):
        _do("ip", "-n", namespace, "address", "add", f"10.99.{index}.{address}/24", "dev", end)
        _do("ip", "-n", namespace, "link", "set", end, "up")
        limit = ("rate", f"{rate:.0f}bit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms")
        _do("tc", "-n", namespace, "qdisc", "add", "dev", end, "root", "tbf", *limit)
    return f"10.99.{index}.1"


def _inside(namespace: str) -> Sequence[str]:
    return ("ip", "netns", "exec", namespace)


def _do(*command: str) -> None:
    subprocess.run(command, check=True)
