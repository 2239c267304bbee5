"""A server that speaks the wire protocol by hand, so that a test decides every message that a client gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import grpc.aio
from harness import SCHEMA, _loop

from feddkd.engines.simulation import LOOPBACK
from feddkd.exchange import ExchangeId
from feddkd.tensors import Schema, Tensors
from feddkd.transport.frames import SERVICE, decode_chunk, is_chunk
from feddkd.transport.messages import work_message
from feddkd.transport.options import server_options
from feddkd.transport.payload import Assembly, Payload, schema_to_message
from feddkd.transport.pb import federation_pb2 as pb

_T = TypeVar("_T")
Context = grpc.aio.ServicerContext[bytes, bytes]


def on_loop(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a test's coroutine on the loop that all clients of all tests share."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop()).result(100)


class HandStream:
    """The server's end of one Participate stream."""

    def __init__(self, context: Context, hello: pb.Hello) -> None:
        self._context = context
        self._status: asyncio.Future[tuple[grpc.StatusCode, str]] = asyncio.get_running_loop().create_future()
        self.hello = hello

    async def send(self, *messages: bytes) -> None:
        for message in messages:
            await self._context.write(message)

    async def read(self) -> bytes:
        """The client's next message. Raises EOFError once the client has ended the stream."""
        message: object = await self._context.read()
        if not isinstance(message, bytes):
            raise EOFError
        return message

    async def request(self) -> pb.ParticipateRequest:
        return pb.ParticipateRequest.FromString(await self.read())

    async def answer(self, schema: Schema = SCHEMA) -> tuple[pb.Answer, Tensors]:
        """A whole reply with its tensors."""
        answer = (await self.request()).answer
        assembly = Assembly(answer.payload, schema)
        while not assembly.complete:
            assembly.add(decode_chunk(await self.read()))
        return answer, assembly.tensors

    async def rest(self) -> list[bytes]:
        """Everything that the client still sends until it ends the stream."""
        messages = []
        with contextlib.suppress(EOFError):
            while True:
                messages.append(await self.read())
        return messages

    def end(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, details: str = "the cable is out") -> None:
        """End the stream; by default as when the connection breaks."""
        if not self._status.done():
            self._status.set_result((code, details))

    async def wait(self) -> None:
        code, details = await self._status
        if code is not grpc.StatusCode.OK:
            await self._context.abort(code, details)


class HandServer:
    """Admits every client; what happens on their streams is for the test to do.

    Attributes:
        manifest: what Describe and Join return.
        joins: the requests so far.
    """

    def __init__(self, config_toml: str = "", schema: Schema = SCHEMA) -> None:
        self.manifest = pb.Manifest(run_id="run", config_toml=config_toml, model=schema_to_message(schema))
        self.joins: list[pb.JoinRequest] = []
        self.address = ""
        self._streams: asyncio.Queue[HandStream] = asyncio.Queue()
        self._joined: asyncio.Queue[pb.JoinRequest] = asyncio.Queue()
        self._open: list[HandStream] = []

    @property
    def nobody_has_opened_a_stream(self) -> bool:
        """Whether `stream` would wait."""
        return self._streams.empty()

    async def join(self) -> pb.JoinRequest:
        """The next Join."""
        return await self._joined.get()

    async def stream(self) -> HandStream:
        """The next stream that a client opens, after its Hello."""
        return await self._streams.get()

    async def _describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:
        return pb.DescribeResponse(manifest=self.manifest)

    async def _join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        self.joins.append(request)
        self._joined.put_nowait(request)
        return pb.JoinResponse(manifest=self.manifest, session_token="0" * 32)

    async def _participate(self, _: AsyncIterator[bytes], context: Context) -> None:
        message = await context.read()
        assert isinstance(message, bytes)
        stream = HandStream(context, pb.ParticipateRequest.FromString(message).hello)
        self._open.append(stream)
        self._streams.put_nowait(stream)
        await stream.wait()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HandServer]:
        server = grpc.aio.server(options=server_options())
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Describe": grpc.unary_unary_rpc_method_handler(
                self._describe, pb.DescribeRequest.FromString, pb.DescribeResponse.SerializeToString
            ),
            "Join": grpc.unary_unary_rpc_method_handler(self._join, pb.JoinRequest.FromString, pb.JoinResponse.SerializeToString),
            "Participate": grpc.stream_stream_rpc_method_handler(self._participate, None, None),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.address = f"{LOOPBACK}:{server.add_insecure_port(f'{LOOPBACK}:0')}"
        await server.start()
        try:
            yield self
        finally:
            for stream in self._open:
                stream.end(grpc.StatusCode.OK)
            await server.stop(0)


def exchange(round_number: int = 1, name: str = "local_train") -> ExchangeId:
    return ExchangeId("run", round_number, 0, name, 0)


def broadcast(tensors: Tensors, which: ExchangeId | None = None, *, offset: int = 0, chunk_bytes: int = 16) -> list[bytes]:
    """A Work message, and the chunks of its payload from byte `offset` on."""
    payload = Payload(tensors, chunk_bytes)
    return [work_message(which or exchange(), payload, evaluate=False, deadline_s=60.0), *payload.frames(offset)]


def chunk_offsets(messages: list[bytes]) -> list[int]:
    return [decode_chunk(message).offset for message in messages if is_chunk(message)]
