"""The same bytes over plain TCP sockets: what the machine itself can do.

    python -m feddkd.bench.plain_tcp server --clients 4 --rounds 8 --megabytes 100 --tensors 1

The server sends a buffer to each client and receives one of the same size from each, with a thread for
each client. Nothing is checked, copied or reduced. It prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from feddkd.bench.workload import Role, Stopwatch, Workload

TIMEOUT_S = 120.0


def serve(workload: Workload) -> dict[str, object]:
    """Run the exchanges and report on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=workload.clients) as listener, contextlib.ExitStack() as links:
        listener.settimeout(TIMEOUT_S)
        address = "{}:{}".format(*listener.getsockname())
        command = [sys.executable, "-m", __spec__.name, "client", "--server", address, *workload.arguments]
        processes = [subprocess.Popen(command) for _ in range(workload.clients)]
        connections = [links.enter_context(_tuned(listener.accept()[0])) for _ in processes]
        model, received = bytearray(workload.size_bytes), [bytearray(workload.size_bytes) for _ in processes]
        stopwatch = Stopwatch([process.pid for process in processes])

        def exchange(connection: socket.socket, buffer: bytearray) -> None:
            connection.sendall(model)
            receive(connection, buffer)

        with ThreadPoolExecutor(workload.clients) as threads:
            for _ in range(workload.rounds):
                stopwatch.start()
                list(threads.map(exchange, connections, received))
                stopwatch.stop()
        report = stopwatch.report()
    for process in processes:
        process.wait(TIMEOUT_S)
    return report


def answer(address: str, workload: Workload) -> None:
    """Send back what comes, until the server closes the connection."""
    host, _, port = address.rpartition(":")
    with _tuned(socket.create_connection((host, int(port)), timeout=TIMEOUT_S)) as connection:
        buffer = bytearray(workload.size_bytes)
        for _ in range(workload.rounds):
            receive(connection, buffer)
            connection.sendall(buffer)


def receive(connection: socket.socket, buffer: bytearray) -> None:
    """Fill a buffer from a connection. Raises ConnectionError if it ends before that."""
    rest = memoryview(buffer)
    while rest:
        size = connection.recv_into(rest)
        if size == 0:
            raise ConnectionError("the connection ended in the middle of an exchange")
        rest = rest[size:]


def _tuned(connection: socket.socket) -> socket.socket:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the benchmark's processes."""
    role = Role.of(arguments)
    if role.server is None:
        print(json.dumps(serve(role.workload)))
    else:
        answer(role.server, role.workload)


if __name__ == "__main__":
    main()
