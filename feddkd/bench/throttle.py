"""A slow line between a client and a server: a TCP proxy that limits the rate and delays, each way by itself.

It passes bytes on as a router with one queue would: each piece leaves when those before it have been sent at the
line's rate, and arrives half a round trip later. What waits for the line stays in the sender's socket, so the
sender feels it. The TCP connections end at the proxy: what TCP itself does over a long line is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from feddkd.observability.wall_time import Link

PIECE_BYTES = 1 << 14
"""Read at once; at 1 Mbit/s a piece takes 0.13 s."""

QUEUE_S = 0.03
"""So much of the line's time is taken in ahead: a late wake-up of this process does not leave the line idle."""

LOOPBACK = "127.0.0.1"


class Pacer:
    """Says when bytes leave and arrive on a line of a certain rate, if they are sent as soon as they can be."""

    def __init__(self, bits_per_s: float, delay_s: float) -> None:
        self._seconds_per_byte = 8 / bits_per_s
        self._delay_s = delay_s
        self._free_at = 0.0

    def send(self, size_bytes: int, now: float) -> tuple[float, float]:
        """Put bytes onto the line.

        Args:
            now: seconds on a clock that never goes back.

        Returns:
            When the last of them has left, and when it arrives, on the same clock.
        """
        self._free_at = max(self._free_at, now) + size_bytes * self._seconds_per_byte
        return self._free_at, self._free_at + self._delay_s


@contextmanager
def throttled(server: str, links: Sequence[Link]) -> Iterator[list[str]]:
    """Listen for one client on each link, and pass its bytes on to the server.

    Args:
        server: HOST:PORT.

    Yields:
        HOST:PORT for each client in the place of the server's.
    """
    host, _, port = server.rpartition(":")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="throttle", daemon=True)
    thread.start()
    proxies = [_Proxy((host, int(port)), link) for link in links]
    try:
        yield [f"{LOOPBACK}:{asyncio.run_coroutine_threadsafe(proxy.listen(), loop).result()}" for proxy in proxies]
    finally:
        asyncio.run_coroutine_threadsafe(_close(proxies), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(proxies: Sequence[_Proxy]) -> None:
    for proxy in proxies:
        await proxy.close()


class _Proxy:
    """Listens for the client of one line; all its connections share the line."""

    def __init__(self, server: tuple[str, int], link: Link) -> None:
        self._server = server
        self._up = Pacer(link.uplink, link.rtt_s / 2)
        self._down = Pacer(link.downlink, link.rtt_s / 2)
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self) -> int:
        """Begin to listen; returns the port."""
        self._listener = await asyncio.start_server(self._connected, LOOPBACK, 0, limit=PIECE_BYTES)
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Break what is connected, and listen no more."""
        self._listener.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a client's connection on to the server until both ends have hung up, or one is gone."""
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._server, limit=PIECE_BYTES)
            try:
                async with asyncio.TaskGroup() as both_ways:
                    both_ways.create_task(_carry(reader, far_writer, self._up))
                    both_ways.create_task(_carry(far_reader, writer, self._down))
            finally:
                far_writer.close()
        except (OSError, asyncio.CancelledError, ExceptionGroup):  # either end is gone, or the line is closed
            return
        finally:
            writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pacer: Pacer) -> None:
    """Carry one direction of a connection to its end."""
    on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
    async with asyncio.TaskGroup() as both_ends:
        both_ends.create_task(_deliver(on_the_way, writer))
        clock = asyncio.get_running_loop().time
        while True:
            piece = await reader.read(PIECE_BYTES)
            left_at, arrives_at = pacer.send(len(piece), clock())
            on_the_way.put_nowait((arrives_at, piece))
            if not piece:
                return
            await asyncio.sleep(left_at - QUEUE_S - clock())  # the next piece waits in the sender's socket


async def _deliver(on_the_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Hand over each piece when it arrives; an empty one is the end."""
    clock = asyncio.get_running_loop().time
    while True:
        arrives_at, piece = await on_the_way.get()
        await asyncio.sleep(arrives_at - clock())
        if not piece:
            with contextlib.suppress(OSError):  # the other end may have hung up first
                writer.write_eof()
            return
        writer.write(piece)
        await writer.drain()
