"""Joins a server, holds the stream open, and returns a reply to each exchange.

Messages are read on the event loop while the worker computes in a thread, so that a closed exchange
is noticed at once. The exchange in hand outlives the connection: after a loss the client says what
it holds, and neither receives nor computes it again. With a state directory, a finished reply also
outlives the process.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from dataclasses import dataclass

from feddkd.client.backoff import Backoff
from feddkd.client.held import Held
from feddkd.client.kept_reply import KeptReply
from feddkd.client.membership import Membership
from feddkd.client.outbox import Outbox
from feddkd.client.server_check import ServerCheck
from feddkd.client.work import TaskRunner, Work
from feddkd.errors import BadExamplesError, HandshakeError, ProtocolError, UnreachableError
from feddkd.exchange import Task
from feddkd.failpoints import failpoint
from feddkd.log_events import about
from feddkd.text import printable
from feddkd.transport.client import ServerConnection, ServerStream, parse_response
from feddkd.transport.frames import is_chunk
from feddkd.transport.messages import MAX_REASON_CHARACTERS, Verdict, failure_message, id_from_message, lacking_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.tls import ClientTls

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a run ended for a client.

    Attributes:
        run_id: the run.
        completed: whether the run finished as planned.
        reason: one line of the server's, safe to print.
        paused: the run is not over, and its next server will ask for this client.
    """

    run_id: str
    completed: bool
    reason: str
    paused: bool = False


class Agent:
    """One client of a federation."""

    def __init__(
        self,
        address: str,
        client_id: str,
        worker: TaskRunner,
        executor: Executor,
        *,
        tls: ClientTls | None = None,
        retry_for_s: float | None = None,
        membership: Membership | None = None,
    ) -> None:
        """Prepare to take part; nothing is sent before `run`.

        Args:
            address: HOST:PORT of the server.
            client_id: names this client.
            worker: computes its part of every exchange.
            executor: runs the worker; several agents of a process may share one of a single thread.
            tls: None for plaintext.
            retry_for_s: seconds to keep trying a server that does not answer; None for ever.
            membership: by default that of a client that has no state directory.

        Raises:
            StateError: the state directory cannot be read.
        """
        self._address = address
        self._tls = tls
        self._client_id = client_id
        self._worker = worker
        self._executor = executor
        self._membership = membership or Membership()
        self._backoff = Backoff(client_id, retry_for_s)
        state, config = self._membership.state, self._membership.config
        self._check = ServerCheck(address, config, (worker.model_schema, worker.constants.schema), state)
        self._outbox = Outbox(state, self._membership.computes_with)
        self._run_id = ""
        self._stream: ServerStream | None = None
        self._work: Work | None = None
        self._held = Held()
        self._wanted_from: int | None = None
        self._computing: asyncio.Task[None] | None = None
        self._cannot_go_on: BadExamplesError | None = None

    async def run(self) -> Farewell:
        """Take part until the server says farewell.

        Raises:
            UnreachableError: the server did not answer for `retry_for_s` seconds.
            RefusedError: the server turned this client away, or trying again cannot help.
            BadExamplesError: too many of its examples cannot be used.
        """
        try:
            async with ServerConnection(self._address, self._tls) as server:
                while True:
                    try:
                        return await self._take_part(server)
                    except UnreachableError as error:
                        await self._backoff.wait(error)
                    except HandshakeError as error:
                        if not self._run_id:
                            raise
                        # It took part before: its certificate or the server's may be renewed, or a clock set right.
                        await self._backoff.wait(UnreachableError(str(error)))
        finally:
            self._let_go()

    async def _take_part(self, server: ServerConnection) -> Farewell:
        """Join and follow the stream until the farewell. Raises UnreachableError if it breaks."""
        membership = self._membership
        counts, instance_id = self._worker.counts, membership.instance_id
        joined = await server.join(self._client_id, counts, instance_id, membership.class_names, membership.join_token)
        self._check.check(joined.manifest)
        await self._enter(joined.manifest.run_id)
        self._membership.on_joined(self._run_id)
        failpoint("client.join.after")
        holding = self._work.holding if self._work is not None else None
        lacks = not self._worker.constants.has(joined.manifest.constants_sha256)
        batches = joined.takes_batches
        async with server.participate(joined.session_token, holding, lacks_constants=lacks, server_takes_batches=batches) as stream:
            self._stream, self._wanted_from = stream, None  # the server will say what it still needs
            self._membership.watch.connected(self._run_id, stream)
            try:
                async for message in stream.messages():
                    farewell = await self._handle(message)
                    if farewell is None or not farewell.paused:
                        self._backoff.reset()  # only now: a message that is refused is no success
                    if farewell is not None:
                        return self._part(farewell)
            except ProtocolError as error:
                raise UnreachableError(f"server {self._address}: {printable(str(error))}") from None
            finally:
                self._stream = None
                self._membership.watch.disconnected()
        if self._cannot_go_on is not None:  # the server knows now that this client failed
            raise self._cannot_go_on
        raise UnreachableError(f"server {self._address}: it ended the stream")

    def _part(self, farewell: Farewell) -> Farewell:
        """Return a farewell.

        Raises:
            BadExamplesError: too many examples could not be used in the exchange that the farewell ends.
            UnreachableError: the next server of the run is to be waited for.
        """
        if self._cannot_go_on is not None:
            raise self._cannot_go_on
        if farewell.paused and self._membership.outlives_pause:
            raise UnreachableError(f"server {self._address}: it has paused the run ({farewell.reason})")
        return farewell

    async def _enter(self, run_id: str) -> None:
        """Take up what an earlier process left in this run. What is left of another run must not reach it."""
        if run_id == self._run_id:
            return
        self._let_go()
        self._run_id = run_id
        stored = await asyncio.to_thread(self._outbox.restore, run_id)
        state = self._membership.state
        self._held = await asyncio.to_thread(Held.of_run, state, run_id)
        if stored is not None:
            if stored.reply.leftover is not None:
                self._held.resume(stored.exchange, stored.reply.leftover)
            self._work = Work(stored.work, self._worker, self._held, reply=stored.reply)

    async def _handle(self, message: bytes) -> Farewell | None:
        """Take in one message; return the farewell, if it is that. Raises ProtocolError."""
        if is_chunk(message):
            self._receive(message)
            return None
        response = parse_response(message)
        match response.WhichOneof("message"):
            case "work":
                await self._begin(response.work)
            case "receipt":
                self._settle(response.receipt)
            case "resend":
                self._send_again(response.resend)
            case "farewell":
                reason = printable(response.farewell.reason, MAX_REASON_CHARACTERS)
                return Farewell(self._run_id, response.farewell.completed, reason, response.farewell.paused)
        return None

    async def _begin(self, message: pb.Work) -> None:
        """Go on with the exchange in hand if it is the same, else begin this one instead."""
        if self._work is None or not self._work.is_same_as(message):
            self._give_up()
            if self._membership.in_memory is not None or message.HasField("replica"):
                # It may read and write whole models: the heartbeats of all clients of the process would wait.
                self._work = await asyncio.to_thread(self._taken_up, message)
            else:
                self._work = self._taken_up(message)
            if self._work.refusal is not None:
                logger.warning(
                    "%s: cannot take part in %s: %s",
                    self._client_id,
                    self._work.exchange,
                    self._work.refusal,
                    extra=self._about("task_refused"),
                )
        self._wanted_from = 0
        self._advance()

    def _taken_up(self, message: pb.Work) -> Work:
        """Begin to receive; clients that take part in nothing make room."""
        self._membership.take_out(self._client_id, self._held)
        return Work(message, self._worker, self._held)

    def _receive(self, message: bytes) -> None:
        """Add a chunk to the broadcast of the exchange in hand."""
        if self._work is None:
            return
        try:
            self._work.receive(message)
        except ProtocolError:
            self._let_go()  # damaged on the way: the next connection begins the broadcast again
            raise
        failpoint("client.broadcast.after_chunk")
        self._advance()

    def _send_again(self, resend: pb.Resend) -> None:
        """Send the rest of a reply whose upload was interrupted, when there is a reply."""
        exchange = id_from_message(resend.id)
        if self._work is not None and self._work.exchange == exchange:
            if resend.offset and not self._work.has_reply:
                raise ProtocolError(f"the server has {resend.offset} bytes of a reply that was never sent")
            self._wanted_from = resend.offset
            self._advance()
        elif self._work is None and self._stream is not None:
            self._stream.send([failure_message(exchange, "the reply is no longer at hand")])

    def _settle(self, receipt: pb.Receipt) -> None:
        """Learn what became of the reply; it need not be kept any longer."""
        exchange = id_from_message(receipt.id)
        if self._work is None or self._work.exchange != exchange:
            return
        failpoint("client.receipt.before_settle")
        counted = receipt.verdict in (Verdict.VERDICT_OK, Verdict.VERDICT_DUPLICATE)
        self._held.settle(counted=counted)
        self._outbox.settle(exchange, self._held.leftovers, counted=counted)
        failpoint("client.receipt.after_settle")
        if not counted:
            reason = printable(receipt.reason, MAX_REASON_CHARACTERS)
            logger.warning("%s: not counted in %s: %s", self._client_id, exchange, reason, extra=self._about("reply_refused", reason))
        self._let_go()

    def _advance(self) -> None:
        """Do what comes next: compute, or send what the server wants of the reply."""
        work, stream = self._work, self._stream
        if work is None:
            return
        if work.is_lacking and stream is not None:
            self._let_go()
            stream.send([lacking_message(work.exchange)])
            return
        if work.can_be_computed and self._computing is None:
            self._computing = asyncio.create_task(self._compute(work, work.start()))
        if work.has_reply and stream is not None and self._wanted_from is not None:
            offset, self._wanted_from = self._wanted_from, None
            stream.send(map(_about_to_send, work.reply_from(offset)))

    async def _compute(self, work: Work, task: Task) -> None:
        """Compute one reply. Another exchange waits until this has ended, also if it was cancelled."""
        loop = asyncio.get_running_loop()
        try:
            reply = await loop.run_in_executor(self._executor, self._reply_to, work, task)
        finally:
            self._computing = None
        if reply is not None:
            work.keep(reply)
        if work.cancelled.is_set():  # while the reply was written
            self._outbox.discard(work.exchange)
        self._advance()

    def _reply_to(self, work: Work, task: Task) -> KeptReply | None:
        """Compute in the executor's thread; return None if the reply is no longer wanted.

        Nothing is raised: some exceptions, StopIteration for one, do not pass through a future.
        """
        try:
            failpoint("client.task.before_compute")
            reply = work.compute(task)
            self._outbox.keep(work.message, reply)
            return reply
        except Exception as error:  # models and data are the user's, and may raise anything
            if work.cancelled.is_set():
                logger.info("%s: %s was closed by the server", self._client_id, work.exchange)
                return None
            if isinstance(error, BadExamplesError):
                self._cannot_go_on = BadExamplesError(f"{self._client_id}: {error}")
            else:
                logger.exception("%s: %s failed", self._client_id, work.exchange, extra=self._about("task_failed"))
            return work.failure(error)

    def _about(self, event: str, reason: str | None = None) -> dict[str, object]:
        """Name an event of the exchange in hand, for the log."""
        exchange = self._work.exchange if self._work is not None else None
        name, round_number = (exchange.name, exchange.round) if exchange is not None else (None, None)
        return about(event, client=self._client_id, run_id=self._run_id, exchange=name, round=round_number, reason=reason)

    def _give_up(self) -> None:
        """Let go of an exchange that is closed, and of its reply."""
        if self._work is not None:
            self._outbox.discard(self._work.exchange)
        self._let_go()

    def _let_go(self) -> None:
        """Stop working on the exchange in hand, and stop sending its reply; its file stays."""
        if self._work is not None:
            self._work.cancel()
            self._work = None
        self._wanted_from = None
        if self._stream is not None:
            self._stream.send(())


def _about_to_send(message: bytes) -> bytes:
    """Pass a message of a reply on."""
    failpoint("client.reply.before_send")
    return message
