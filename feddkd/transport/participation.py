"""Serves a Participate stream: hello, messages both ways, end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

import grpc
import grpc.aio

from feddkd.certs.certificate import Certificate
from feddkd.errors import ProtocolError
from feddkd.transport.batches import messages_of
from feddkd.transport.calls import Context, refuse
from feddkd.transport.client_events import ClientEvents
from feddkd.transport.incoming import Hello, Inbox, Incoming, read_hello
from feddkd.transport.peer import Peer
from feddkd.transport.refusals import NotAdmittedError, RefusalLog
from feddkd.transport.server_security import OPEN, ServerSecurity
from feddkd.transport.sessions import Session, Sessions
from feddkd.transport.stream import End, Stream

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0
"""Seconds a new stream has to say whose it is."""

MAX_STREAMS_BEFORE_HELLO = 1_000
MAX_STREAMS_OF_A_CLIENT = 8
"""Streams of one client that have not ended yet. gRPC keeps the last message and the status of a
stream whose client does not read."""

_CUT_OFF = End(grpc.StatusCode.UNAVAILABLE, "the connection is gone, or the server has stopped")
"""How a stream ended whose handler gRPC has cancelled."""


class Participation:
    """Moves the messages of all clients.

    Attributes:
        security: what a client has to show when it opens a stream, and where it is recorded how that ends.
        refusals: says who was refused.
        events: says who came and went.
    """

    def __init__(
        self,
        sessions: Sessions,
        inbox: Inbox,
        *,
        max_message_bytes: int,
        write_stall_s: float,
        run_id: str = "",
    ) -> None:
        """Args:
        max_message_bytes: bounds a client's messages that are no chunks.
        write_stall_s: seconds one message may wait for a client that does not read.
        run_id: for the log.
        """
        self._run_id = run_id
        self.use(OPEN)
        self._sessions = sessions
        self._inbox = inbox
        self._max_message_bytes = max_message_bytes
        self._write_stall_s = write_stall_s
        self._before_hello: dict[asyncio.Timeout, None] = {}
        self._streams_of: Counter[str] = Counter()

    def use(self, security: ServerSecurity) -> None:
        """Take how clients come in; before the first one."""
        self.security = security
        self.refusals = RefusalLog(security.audit, self._run_id)
        self.events = ClientEvents(security.audit, self._run_id)

    def refuse(self, error: NotAdmittedError, peer: Peer, client_id: str, *, is_expected: bool = False) -> None:
        """Say that a call was refused; `is_expected` says whether the run waits for a client of this id."""
        is_known = is_expected or self._sessions.holder(client_id) is not None
        self.refusals.take(error, peer, client_id, asyncio.get_running_loop().time(), is_known=is_known)

    def problem(self, session: Session, certificates: Sequence[Certificate]) -> str | None:
        """Return why a client that has joined may go on no more; None if it may."""
        if (found := self.security.policy.problem(certificates)) is not None:
            return found[1]
        tokens = self.security.tokens
        if tokens is not None and not tokens.still_admit(session.client_id, session.owner.instance):
            return f"the join token of client id {session.client_id!r} was removed or replaced"
        return None

    async def take_part(self, context: Context) -> None:
        """Move one client's messages until its stream ends."""
        peer, client_id = Peer.of(context), ""
        try:
            session, hello = await self._identify(context)
            client_id = session.client_id
            self._check(session, peer)
        except NotAdmittedError as error:
            self.refuse(error, peer, client_id)
            await refuse(context, error.code, str(error))
        self._streams_of[client_id] += 1
        try:
            await self._serve(session, hello, peer, context)
        finally:
            self._streams_of[client_id] -= 1
            if not self._streams_of[client_id]:
                del self._streams_of[client_id]

    def supersede(self, session: Session, event: str) -> None:
        """End the stream of a client that comes again: its old connection may be dead unnoticed.

        Args:
            event: what the client did, for the status.
        """
        if (stream := session.stream) is not None:
            stream.finish(grpc.StatusCode.ABORTED, f"{session.client_id!r} {event}")
            self._detach(session, stream)

    async def _identify(self, context: Context) -> tuple[Session, Hello]:
        """Return the session that the stream's first message names, and that message. Raises NotAdmittedError."""
        message = await self._first_message(context)
        try:
            hello = read_hello(message)
        except ProtocolError as error:
            raise NotAdmittedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        session = self._sessions.of_token(hello.token)
        if session is None or session.leaves:
            reason = "the first message of the stream names no session; join first"
            raise NotAdmittedError(grpc.StatusCode.UNAUTHENTICATED, reason, kind="session")
        return session, hello

    def _check(self, session: Session, peer: Peer) -> None:
        """Check a client that opens a stream as at its join. Raises NotAdmittedError."""
        self.security.policy.check(peer, session.client_id)
        if (problem := self.problem(session, peer.certificates)) is not None:
            raise NotAdmittedError(grpc.StatusCode.PERMISSION_DENIED, problem, kind="token")
        if self._streams_of[session.client_id] >= MAX_STREAMS_OF_A_CLIENT:
            earlier = f"{MAX_STREAMS_OF_A_CLIENT} earlier streams of {session.client_id!r}"
            reason = f"{earlier} have not ended: their client does not read"
            raise NotAdmittedError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, kind="full")

    async def _first_message(self, context: Context) -> object:
        """Read a stream's first message. A stream that says nothing makes room for newer ones. Raises NotAdmittedError."""
        self._make_room()
        message: object = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S) as wait:
                self._before_hello[wait] = None
                try:
                    message = await context.read()
                    # By itself: gRPC cannot end a call whose first write, with this, is cut off.
                    await context.send_initial_metadata(())
                finally:
                    self._before_hello.pop(wait, None)
        except TimeoutError:
            full = f"sooner while {MAX_STREAMS_BEFORE_HELLO} streams wait for theirs"
            reason = f"no message within {HELLO_TIMEOUT_S:g} s of opening the stream ({full})"
            raise NotAdmittedError(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from None
        except grpc.aio.BaseError:  # the client is gone; nobody is left to be told
            raise asyncio.CancelledError from None
        if isinstance(message, bytes):
            self._inbox.other.up(len(message))
        return message

    def _make_room(self) -> None:
        """Let the stream that has waited longest for its first message wait no longer."""
        if len(self._before_hello) >= MAX_STREAMS_BEFORE_HELLO:
            oldest = next(iter(self._before_hello))
            del self._before_hello[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())

    async def _serve(self, session: Session, hello: Hello, peer: Peer, context: Context) -> None:
        """Read and write until the stream ends, and tell the inbox of its begin and its end."""
        self.supersede(session, "opened a newer stream")
        stream = Stream(asyncio.get_running_loop().time(), takes_batches=hello.takes_batches, certificates=peer.certificates)
        self._sessions.connect(session, stream)
        try:
            session.lacks_constants = hello.lacks_constants
            self._inbox.connected(session, hello.holding)
            end = await self._move(session, stream, context)
        finally:
            self._detach(session, stream)
            # Here: gRPC cancels the handler of a client that is gone, in any wait.
            self.events.ended(session, peer, stream.end or _CUT_OFF, asyncio.get_running_loop().time())
        if end.code is not grpc.StatusCode.OK:
            await refuse(context, end.code, end.reason)

    async def _move(self, session: Session, stream: Stream, context: Context) -> End:
        """Read and write until the stream ends, and return how it ended."""
        reader = _start(stream, self._read(session, stream, context))
        writer = _start(stream, stream.write(context, self._inbox.other))
        watcher = _start(stream, stream.watch(self._write_stall_s))
        try:
            return await stream.ended()
        finally:
            watcher.cancel()
            reader.cancel()  # from here on it hands over nothing
            # Before any wait: gRPC may cancel this handler there, and nobody would be told.
            self._detach(session, stream)
            stream.outbox.clear()
            stream.outbox.close()
            await _stopped(reader, writer, stream.end)

    def _detach(self, session: Session, stream: Stream) -> None:
        """Take the stream away from its session, once."""
        if session.stream is stream:
            self._sessions.disconnect(session, asyncio.get_running_loop().time())
            self._inbox.disconnected(session)

    async def _read(self, session: Session, stream: Stream, context: Context) -> None:
        """Hand every message to the inbox until the stream ends. Raises ProtocolError."""
        incoming = Incoming(session, stream, self._inbox, self._max_message_bytes)
        while (message := await stream.read(context)) is not None:
            messages = iter(self._messages_of(message))
            try:
                for each in messages:
                    if stream.end is None and not session.leaves:
                        await incoming.take(each)
                    else:
                        self._inbox.other.up(len(each))
            finally:
                self._inbox.other.up(sum(map(len, messages)))
            if stream.end is not None:
                return

    def _messages_of(self, message: bytes) -> Sequence[bytes]:
        """Take a batch apart. Raises ProtocolError, after it has counted one that is refused."""
        try:
            return messages_of(message)
        except ProtocolError:
            self._inbox.other.up(len(message))
            raise


def _start(stream: Stream, moving: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(_guard(stream, moving))


async def _stopped(
    reader: asyncio.Task[None],
    writer: asyncio.Task[None],
    end: End | None,
) -> None:
    """Wait until nothing is read and written any more.

    Where the status will be OK, the message under way is written first: gRPC logs an error if the
    connection breaks while that status waits behind a message.
    """
    try:
        if end is None or end.code is not grpc.StatusCode.OK:
            writer.cancel()
        await asyncio.wait((reader, writer))
    finally:
        writer.cancel()


async def _guard(stream: Stream, moving: Coroutine[Any, Any, None]) -> None:
    """Read or write; whatever goes wrong ends the stream."""
    try:
        await moving
    except ProtocolError as error:
        stream.finish(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except grpc.aio.BaseError as error:
        stream.finish(grpc.StatusCode.UNAVAILABLE, f"the connection is gone ({error})")
    except Exception:
        logger.exception("a stream failed")
        stream.finish(grpc.StatusCode.INTERNAL, "the server failed; see its log")
