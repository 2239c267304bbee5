"""The same bytes over gRPC streams and nothing else: what any program that streams over gRPC can reach.

    python -m feddkd.bench.raw_grpc server --clients 4 --rounds 8 --megabytes 100 --tensors 1

Messages are raw bytes of at most 1 MiB, without protobuf. The server receives into memory that it has; nothing is
checked, counted or reduced. It prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

import grpc.aio

from feddkd.bench.workload import MIB, Role, Stopwatch, Workload

METHOD = "/feddkd.bench.Raw/Exchange"

TIMEOUT_S = 120.0


class Link:
    """One client's stream, as the server has it."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes], size_bytes: int) -> None:
        self._context = context
        self._received = bytearray(size_bytes)
        self.over = asyncio.Event()

    async def exchange(self, chunks: Sequence[bytes]) -> None:
        """Send a model, and receive one of the same size."""
        for chunk in chunks:
            await self._context.write(chunk)
        await _receive(self._context.read, self._received)


async def serve(workload: Workload) -> dict[str, object]:
    """Run the exchanges and report on them."""
    links: asyncio.Queue[Link] = asyncio.Queue()

    async def participate(_: Any, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        link = Link(context, workload.size_bytes)
        await links.put(link)
        await link.over.wait()

    handler: Any = grpc.stream_stream_rpc_method_handler(participate)
    service, _, method = METHOD.lstrip("/").partition("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    command = [sys.executable, "-m", __spec__.name, "client", "--server", f"127.0.0.1:{port}", *workload.arguments]
    processes = [await asyncio.create_subprocess_exec(*command) for _ in range(workload.clients)]
    connected = [await asyncio.wait_for(links.get(), TIMEOUT_S) for _ in processes]
    model, stopwatch = bytearray(workload.size_bytes), Stopwatch([process.pid for process in processes])
    for _ in range(workload.rounds):
        stopwatch.start()
        chunks = chunks_of(model)
        await asyncio.gather(*(link.exchange(chunks) for link in connected))
        stopwatch.stop()
    report = stopwatch.report()
    for link in connected:
        link.over.set()
    for process in processes:
        await asyncio.wait_for(process.wait(), TIMEOUT_S)
    await server.stop(grace=None)
    return report


async def answer(address: str, workload: Workload) -> None:
    """Send back what comes, once all of it is here."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(METHOD)()
        await call.wait_for_connection()
        buffer = bytearray(workload.size_bytes)
        for _ in range(workload.rounds):
            await _receive(call.read, buffer)
            for chunk in chunks_of(buffer):
                await call.write(chunk)
        await call.done_writing()
        await call.read()  # the server ends the stream when the last exchange is counted


def chunks_of(model: bytearray) -> list[bytes]:
    """Divide a model into messages."""
    view = memoryview(model)
    return [bytes(view[start : start + MIB]) for start in range(0, len(view), MIB)]


async def _receive(read: Any, buffer: bytearray) -> None:
    """Fill a buffer from a stream. Raises ConnectionError if it ends before that."""
    filled = 0
    while filled < len(buffer):
        chunk = await read()
        if chunk is grpc.aio.EOF:
            raise ConnectionError("the stream ended in the middle of an exchange")
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the benchmark's processes."""
    role = Role.of(arguments)
    if role.server is None:
        print(json.dumps(asyncio.run(serve(role.workload))))
    else:
        asyncio.run(answer(role.server, role.workload))


if __name__ == "__main__":
    main()
