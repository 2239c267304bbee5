"""The gRPC server: admits clients and moves messages. The inbox interprets them.

One asyncio loop in its own thread serves all clients. The sessions, and everything the inbox does,
live on that loop; other threads reach it through `call`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import grpc
import grpc.aio

from feddkd.errors import AddressInUseError
from feddkd.transport.admission import Admission
from feddkd.transport.calls import Context, refuse
from feddkd.transport.class_contract import ClassContract
from feddkd.transport.closed_poller import ignore_closed_poller
from feddkd.transport.frames import SERVICE
from feddkd.transport.health import HealthService
from feddkd.transport.incoming import Inbox
from feddkd.transport.joining import Joining
from feddkd.transport.options import server_options
from feddkd.transport.participation import Participation
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.peer import Peer
from feddkd.transport.refusals import NotAdmittedError
from feddkd.transport.server_security import OPEN, ServerSecurity
from feddkd.transport.sessions import Owner, Session, Sessions
from feddkd.transport.stream import WRITE_STALL_S

logger = logging.getLogger(__name__)

__all__ = ["Admission", "Context", "FederationServer", "Inbox"]

STREAM_END_TIMEOUT_S = 5.0
"""Seconds that cancelled streams have to come to their end when the server stops."""

CERTIFICATE_CHECK_S = 2.0
"""Seconds between two looks at the certificates of clients that are connected."""

_T = TypeVar("_T")


class FederationServer:
    """Serves feddkd.v1.FederationService on one port."""

    def __init__(
        self,
        manifest: pb.Manifest,
        inbox: Inbox,
        *,
        admission: Admission,
        write_stall_s: float = WRITE_STALL_S,
        owners: Mapping[str, Owner] | None = None,
    ) -> None:
        """Args:
        write_stall_s: seconds one message may wait for a client that does not read.
        owners: who owned which client id in an earlier process of the run's server.
        """
        self._inbox = inbox
        self._sessions = Sessions()
        self._reserved = owners or {}
        self._participation = Participation(
            self._sessions,
            inbox,
            # An answer holds a schema like the model's, perhaps with more vectors, and its numbers.
            max_message_bytes=(256 << 10) + 16 * manifest.model.ByteSize(),
            write_stall_s=write_stall_s,
            run_id=manifest.run_id,
        )
        self._joining = Joining(manifest, admission, self._sessions, self._participation)
        self._use(OPEN)
        self._streams: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        ignore_closed_poller(self._loop)
        self._thread = threading.Thread(
            target=self._loop.run_forever,
            name="feddkd-server",
            daemon=True,
        )
        self._server: grpc.aio.Server | None = None
        self._health = HealthService()

    def describe(self, manifest: pb.Manifest) -> None:
        """Take what clients are told of the run; before `start`."""
        self._joining.describe(manifest)

    @property
    def classes(self) -> ClassContract:
        """What the clients said of their classes."""
        return self._joining.classes

    def _use(self, security: ServerSecurity) -> None:
        self._security = security
        self._participation.use(security)

    def start(self, host: str, port: int, security: ServerSecurity = OPEN) -> int:
        """Listen, and return the port: the one asked for, or a free one for port 0.

        Raises:
            AddressInUseError: the address is taken, or is not one of this machine's.
        """
        self._use(security)
        self._thread.start()
        try:
            return self.call(self._start(host, port)).result()
        except AddressInUseError:
            self.stop()
            raise

    def call(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a coroutine on the server's loop, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def take_no_more(self) -> None:
        """Tell probes that clients can join no more. On the loop only."""
        self._health.end()

    def stop(self, grace_s: float = 0.0) -> None:
        """Let streams end for `grace_s` seconds, then cut them off and stop the loop."""
        if self._server is not None:
            self._loop.call_soon_threadsafe(self._health.end)  # a probe that watches must not hold the server up
            self.call(self._server.stop(grace_s)).result()
            self.call(_ended(self._streams)).result()
            self._server = None
        if self._thread.is_alive():
            self.call(_cancel_others()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def answers(self, timeout_s: float) -> bool:
        """Return whether the loop does something within `timeout_s` seconds. From any other thread."""
        turned = threading.Event()
        try:
            self._loop.call_soon_threadsafe(turned.set)
        except RuntimeError:  # it is closed
            return False
        return turned.wait(timeout_s)

    def session(self, client_id: str) -> Session | None:
        """Return the session of a client that has joined. On the loop only."""
        return self._sessions.find(client_id)

    def sessions(self) -> list[Session]:
        """Return all sessions in client order, a sort of all of them. From any thread."""
        return self._sessions.all()

    def connected(self) -> list[Session]:
        """Return the sessions that have a stream in client order. From any thread."""
        return self._sessions.connected()

    def present(self, grace_s: float) -> list[Session]:
        """Return the sessions that have a stream, or lost it less than `grace_s` seconds ago.

        In client order. On the loop only.
        """
        return self._sessions.present(self._loop.time() - grace_s)

    def owners(self) -> dict[str, Owner]:
        """Return who owns which client id, in client order. From any thread."""
        return self._sessions.owners()

    def last_heard(self) -> dict[str, float]:
        """Return how many seconds ago each client was heard, in client order. From any thread."""
        now = self._loop.time()
        return {session.client_id: session.silent_s(now) for session in self.sessions()}

    def refused(self) -> Mapping[str, int]:
        """Return how many calls were refused, by the kind of reason. From any thread."""
        return dict(self._participation.refusals.counts)

    async def check_certificates(self) -> None:
        """End the streams of clients whose certificate holds no more, or whose token was removed. On the loop only.

        A client may come again at once, with what its files hold by then: only its next join refuses it for good.
        """
        self._security.policy.refresh()
        for session in self._sessions.connected():
            stream = session.stream
            if stream is not None and (problem := self._participation.problem(session, stream.certificates)) is not None:
                stream.finish(grpc.StatusCode.UNAVAILABLE, problem)

    async def _watch_certificates(self) -> None:
        """Look every few seconds. Whatever goes wrong in one look, the next one comes."""
        said = ""
        while True:
            await asyncio.sleep(CERTIFICATE_CHECK_S)
            try:
                await self.check_certificates()
            except Exception as error:
                if repr(error) != said:
                    said = repr(error)
                    logger.exception("the certificates of connected clients could not be checked")

    async def _start(self, host: str, port: int) -> int:
        server = grpc.aio.server(options=server_options())
        server.add_generic_rpc_handlers((self._handlers(),))
        self._health.add_to(server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = _add_port(server, address, self._security.credentials)
        except RuntimeError as error:
            why = "the port is taken or the address is not this machine's"
            raise AddressInUseError(f"cannot listen on {address}: {why}") from error
        self._sessions.reserve(self._reserved, self._loop.time())
        await server.start()
        self._server = server
        if self._security.tls is not None or self._security.tokens is not None:
            self._watcher = asyncio.create_task(self._watch_certificates())  # a loop holds its tasks only weakly
        self._health.serve()
        return bound

    def _handlers(self) -> grpc.GenericRpcHandler:
        """Handlers of raw bytes: chunks are framed without copies, and sizes checked first.

        On the wire a stream of one response is a unary response. As a stream its handler learns
        whether the client reads it.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Describe": grpc.unary_stream_rpc_method_handler(self._describe, None, None),
                "Join": grpc.unary_stream_rpc_method_handler(self._join, None, None),
                "Participate": grpc.stream_stream_rpc_method_handler(self._participate, None, None),
            },
        )

    async def _describe(self, message: bytes, context: Context) -> None:
        self._inbox.other.up(len(message))
        await self._respond(context, lambda: self._joining.description(message, Peer.of(context)))

    async def _join(self, message: bytes, context: Context) -> None:
        self._inbox.other.up(len(message))
        await self._respond(context, lambda: self._joining.join(message, Peer.of(context)))

    async def _respond(self, context: Context, make: Callable[[], Awaitable[bytes]]) -> None:
        """Write a response and count it, or end the call with the status of a refusal."""

        async def counted() -> bytes:
            response = await make()
            self._inbox.other.down(len(response))
            return response

        try:
            await self._joining.responses.write(context, counted)
        except NotAdmittedError as error:
            await refuse(context, error.code, str(error))

    async def _participate(self, _: AsyncIterator[bytes], context: Context) -> None:
        if (this := asyncio.current_task()) is not None:
            self._streams.add(this)
            this.add_done_callback(self._streams.discard)
        await self._participation.take_part(context)


def _add_port(
    server: grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None,
) -> int:
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)


async def _ended(streams: set[asyncio.Task[Any]]) -> None:
    """Let streams that gRPC has just cancelled end: cancelled again they would be logged."""
    if streams:
        await asyncio.wait(set(streams), timeout=STREAM_END_TIMEOUT_S)


async def _cancel_others() -> None:
    """End what still runs on the loop, for instance a wait for clients."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
