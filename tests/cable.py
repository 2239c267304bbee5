"""A TCP connection between clients and a server that a test can cut, at a byte of its choice, reset or block.

`feddkd.bench.throttle` makes it slow: throttled(cable.address, [link]).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from typing import Literal, Self

from feddkd.engines.simulation import LOOPBACK

Direction = Literal["up", "down"]
"""Up is towards the server."""

_READ_BYTES = 1 << 16
_NO_LINGER = struct.pack("ii", 1, 0)
"""What is closed with this is reset: the other end gets an error, and nothing that was still on its way."""


class _Connection:
    """One client's connection: from it to the cable, and from there to the server."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends: dict[Direction, tuple[socket.socket, socket.socket]] = {
            "up": (near, far),
            "down": (far, near),
        }
        self._pumps = len(self.ends)
        self._is_reset = False

    def end(self) -> None:
        how = socket.SHUT_RD if self._is_reset else socket.SHUT_RDWR
        for end in self.ends["up"]:
            with contextlib.suppress(OSError):
                end.shutdown(how)

    def reset(self) -> None:
        """End it once nobody reads it any more, as a router does that has forgotten it."""
        self._is_reset = True
        for end in self.ends["up"]:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.end()

    def leave(self) -> None:
        """One of the two directions is not read any more."""
        self._pumps -= 1
        if not self._pumps:
            for end in self.ends["up"]:
                end.close()


class Cable:
    """Passes bytes on between each client that connects to `address` and a server.

    Attributes:
        address: where clients connect, instead of to the server.
        cuts: how often a connection was cut at a byte.
        crossed: bytes that were handed on, by direction.
    """

    def __init__(self, server: str, *, resets: bool = False) -> None:
        """Begin to listen.

        Args:
            server: HOST:PORT of the server.
            resets: break connections by a reset, and not by their end.
        """
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address = f"{LOOPBACK}:{self._listener.getsockname()[1]}"
        self.cuts = 0
        self.crossed: Counter[Direction] = Counter()
        self._resets = resets
        self._passes: dict[Direction, threading.Event] = {"up": threading.Event(), "down": threading.Event()}
        self.unblock()
        self._lock = threading.Lock()
        self._plugged_in = True
        self._open: set[_Connection] = set()
        self._cuts_at: dict[Direction, list[int]] = {"up": [], "down": []}
        self._every: dict[Direction, int | None] = {"up": None, "down": None}
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unplug()
        self.unblock()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def cut(self) -> None:
        """Break every connection; new ones may follow at once."""
        with self._lock:
            self._cut()

    def unplug(self) -> None:
        """Break every connection, and let no new one through until `plug_in`."""
        with self._lock:
            self._plugged_in = False
            self._cut()

    def plug_in(self) -> None:
        """Let new connections through again."""
        with self._lock:
            self._plugged_in = True

    def cut_at(self, direction: Direction, *bytes_until: int, again: bool = False) -> None:
        """Break every connection once so many bytes more have crossed.

        Args:
            direction: which bytes count.
            bytes_until: 0 cuts before the next one. With several numbers, each counts from the cut before.
            again: cut each time that the last of these numbers has crossed, not only once.
        """
        with self._lock:
            self._cuts_at[direction] = [*bytes_until]
            self._every[direction] = bytes_until[-1] if again else None

    def block(self, *directions: Direction) -> None:
        """Let nothing cross in these directions, while all connections stay open; what is sent waits."""
        for direction in directions:
            self._passes[direction].clear()

    def unblock(self) -> None:
        """Let everything cross again."""
        for passes in self._passes.values():
            passes.set()

    def _cut(self) -> None:
        """Break every connection. Unless it is reset, both ends see its end after all that has crossed."""
        for connection in self._open:
            connection.reset() if self._resets else connection.end()
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if not self._plugged_in:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(self._server)
                except OSError:  # the server is gone
                    near.close()
                    continue
                connection = _Connection(near, far)
                self._open.add(connection)
            for direction in connection.ends:
                way = (connection, direction)
                threading.Thread(target=self._pump, args=way, daemon=True).start()

    def _pump(self, connection: _Connection, direction: Direction) -> None:
        """Pass bytes on until either end is closed."""
        source, target = connection.ends[direction]
        with contextlib.suppress(OSError):
            while data := source.recv(_READ_BYTES):
                allowed = self._allowed(direction, len(data))
                self._passes[direction].wait()
                target.sendall(data[:allowed])
                self.crossed[direction] += allowed
                if allowed < len(data):
                    self.cut()
                    break
        with self._lock:
            connection.end()
            self._open.discard(connection)
            connection.leave()

    def _allowed(self, direction: Direction, count: int) -> int:
        """How many of the next bytes may pass; fewer than `count` if the cut is among them."""
        with self._lock:
            cuts_at = self._cuts_at[direction]
            if not cuts_at:
                return count
            if count <= cuts_at[0]:
                cuts_at[0] -= count
                return count
            allowed = cuts_at.pop(0)
            every = self._every[direction]
            if not cuts_at and every is not None:
                cuts_at.append(every)
            self.cuts += 1
            return allowed
