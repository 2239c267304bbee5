"""One open exchange over gRPC: what its clients send and are sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain

from feddkd.engines.collection import Arrival, Collection, Judgement
from feddkd.engines.fold import Fold
from feddkd.engines.forms import Forms
from feddkd.engines.receipts import Receipt
from feddkd.engines.spool import Spool
from feddkd.engines.useful import useful_traffic
from feddkd.errors import ProtocolError, StateError
from feddkd.exchange import Exchange, Outcome
from feddkd.failpoints import failpoint
from feddkd.tensors import Tensors
from feddkd.traffic import Meter
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import Holding, Verdict, receipt_message, resend_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Outgoing, Session


@dataclass(frozen=True, slots=True)
class Reduced:
    """The result of the reduction, or why it failed."""

    tensors: Tensors | None
    fault: str = ""


class GrpcExchange:
    """An exchange from its broadcast until it is acknowledged; lives on the server's loop.

    Attributes:
        exchange: what is carried out.
        meter: counts its messages.
        task: completes it; cancelled by an abort.
        receipts: what its clients are to be told, once it has closed and until it is acknowledged.
    """

    def __init__(
        self,
        exchange: Exchange,
        meter: Meter,
        spool: Spool,
        executor: Executor,
        chunk_bytes: int,
        max_evaluated: Mapping[str, int],
    ) -> None:
        """Encode the broadcast and begin to wait.

        Args:
            executor: one thread that writes and reduces blocks, while the loop goes on reading.
            max_evaluated: most examples that each client can have held out.
        """
        self.exchange = exchange
        self.meter = meter
        self.task: asyncio.Task[Outcome] | None = None
        self.receipts: list[Receipt] = []
        self._executor = executor
        self._chunk_bytes = chunk_bytes
        self._started = self._now()
        self._collection = Collection(exchange, spool, chunk_bytes=chunk_bytes, now=self._started, max_evaluated=max_evaluated)
        self._forms = Forms(exchange, chunk_bytes, shared=True)
        self._sending: set[str] = set()
        schema = exchange.reply_schema
        self._fold = Fold(self._collection, schema, chunk_bytes) if schema is not None else None
        self._changed = asyncio.Event()
        self._error: StateError | None = None
        self._repeated: set[str] = set()
        self._counted: set[str] = set()
        self._messages: dict[Judgement, bytes] = {}
        self._had_enough = False
        self._closed = False

    @staticmethod
    def _now() -> float:
        return time.monotonic()

    def waits_for(self, client: str) -> bool:
        """Return whether the client's reply, or the rest of it, is still missing. From any thread."""
        return self._collection.waits_for(client)

    def is_sending(self, client: str) -> bool:
        """Return whether a client's chunks belong to its reply here, not to an earlier exchange."""
        return client in self._sending and self._collection.is_arriving(client)

    # What happens to clients.

    def connected(self, session: Session, holding: Holding | None) -> None:
        """Send a client what it needs to take part: all, the rest of the broadcast, or where its upload goes on."""
        client = session.client_id
        if session.lacks_constants:
            self._forms.include_constants(client)
        payload = self._payload(client, holding)
        held_bytes = self._held_bytes(payload, holding)
        self._sending.discard(client)
        self._collection.connect(client, self._now(), holds_broadcast=held_bytes == payload.size_bytes)
        contribution = self._collection.contributions[client]
        if contribution.has_begun:
            message = resend_message(self.exchange.id, contribution.received_bytes)
            session.send(Outgoing((message,), self.meter))
            return
        snapshot = self._forms.is_snapshot(client)
        outgoing = Outgoing(
            chain((self._forms.message(client),), payload.frames(held_bytes or 0)),
            self.meter,
            still_needed=lambda: self.waits_for(client),
            on_last=lambda: self._sent(session, payload, snapshot=snapshot),
        )
        session.send_work(outgoing)

    def _sent(self, session: Session, payload: Payload, *, snapshot: bool) -> None:
        """Take in that a broadcast is on its way; a stream that breaks now says anew what its client lacks."""
        session.lacks_constants = False
        self._count_payload(session.client_id, payload, snapshot=snapshot)

    def _payload(self, client: str, holding: Holding | None) -> Payload:
        """What a client is to have: the whole model if it was sent that by an earlier process of the server."""
        payload = self._forms.payload(client)
        if holding is None or holding.exchange != self.exchange.id or holding.digest == payload.header.digest:
            return payload
        if self._forms.is_complete(holding.digest):
            self._forms.include_constants(client)
        elif self._forms.is_whole(client, holding.digest):
            self._count_payload(client, payload, snapshot=False)  # the step that it could not use
            self._forms.lacks(client)
        return self._forms.payload(client)

    def _count_payload(self, client: str, payload: Payload, *, snapshot: bool) -> None:
        """Count what a client is sent: once, however often its connection breaks, and whether or not it can use it."""
        if client not in self._counted:
            self._counted.add(client)
            self.meter.payload_down(payload.size_bytes, dense_bytes=self._forms.dense_bytes(client), snapshot=snapshot)

    def lacking(self, session: Session) -> None:
        """Send the whole model, once, to a client that cannot use the step."""
        client = session.client_id
        if self.waits_for(client) and not self._collection.contributions[client].has_begun and self._forms.lacks(client):
            self.connected(session, None)

    def reconnected(self, session: Session) -> None:
        """Tell a reconnected client that is not waited for that it is left out."""
        if self._closed:
            return  # its receipt comes when the outcome is kept
        judgement = self._collection.remind(session.client_id)
        if judgement is not None:
            self.tell(session, judgement)

    def _held_bytes(self, payload: Payload, holding: Holding | None) -> int | None:
        """How much of the broadcast a client has from before its connection broke; None if it knows nothing of it."""
        if holding is None or holding.exchange != self.exchange.id or holding.digest != payload.header.digest:
            return None
        try:
            payload.frames(holding.size_bytes)
        except ProtocolError:
            return None
        return holding.size_bytes

    def disconnected(self, client: str) -> None:
        """Note that a client's connection is lost, or was never there."""
        self._sending.discard(client)
        self._collection.disconnect(client, self._now())
        self._changed.set()

    def replied(self, session: Session, answer: pb.Answer) -> None:
        """Begin to receive a reply."""
        if self._closed:
            return  # its receipt comes when the outcome is kept
        try:
            judgement = self._collection.reply(session.client_id, answer, self._now())
        except StateError as error:
            self._fail(error)
            return
        if judgement is not None and judgement.verdict == Verdict.VERDICT_DUPLICATE:
            self._repeated.add(session.client_id)  # told at the end: until the outcome is kept, it may be lost
            return
        self._sending.add(session.client_id)
        self._settle(session, judgement)

    async def received(self, session: Session, chunk: Chunk) -> None:
        """Check and keep a chunk; not returning holds the client back."""
        if not self.is_sending(session.client_id):
            return
        try:
            accepted = self._collection.accept(session.client_id, chunk)
        except StateError as error:
            self._fail(error)
            return
        match accepted:
            case Judgement() as judgement:
                self._settle(session, judgement)
            case Arrival(quick=True) as arrival:
                arrival.write()
                self._store(session, arrival)
            case Arrival() as arrival:
                # To its end even if the stream breaks meanwhile: the client goes on after this chunk.
                await asyncio.shield(self._write(session, arrival))

    async def _write(self, session: Session, arrival: Arrival) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, arrival.write)
        except StateError as error:
            self._fail(error)
            return
        self._store(session, arrival)

    def _store(self, session: Session, arrival: Arrival) -> None:
        failpoint("engine.reply.after_chunk")
        try:
            self._settle(session, self._collection.store(arrival, self._now()))
        except StateError as error:
            self._fail(error)

    def _settle(self, session: Session, judgement: Judgement | None) -> None:
        """Tell a client what it has to know at once, if anything."""
        if judgement is not None:
            self.tell(session, judgement)
        # Not at every message: what is then looked at grows with the number of clients.
        has_enough = self._collection.has_enough
        if self._collection.settled or has_enough != self._had_enough or (self._fold is not None and self._fold.may_advance):
            self._changed.set()
        self._had_enough = has_enough

    def failed(self, client: str, reason: str) -> None:
        """Note that a client cannot compute its reply."""
        self._collection.fail(client, reason)
        self._changed.set()

    def tell(self, session: Session, judgement: Judgement) -> None:
        """Send a receipt while the exchange is open: a refusal."""
        session.send(Outgoing((self._message(judgement),), self.meter))

    def _message(self, judgement: Judgement) -> bytes:
        """Build a receipt, once for all clients that are told the same."""
        if judgement not in self._messages:
            self._messages[judgement] = receipt_message(self.exchange.id, judgement.verdict, judgement.reason)
        return self._messages[judgement]

    def _fail(self, error: StateError) -> None:
        self._error = error
        self._changed.set()

    # The outcome.

    async def run(self) -> Reduced:
        """Wait for the replies and reduce them as they arrive.

        Raises:
            StateError: contributions cannot be kept.
        """
        fold = self._fold
        while not (self._collection.settled and (fold is None or fold.finished)):
            self._changed.clear()
            if self._error is not None:
                raise self._error
            step = fold.next_step() if fold is not None else None
            if fold is None or step is None:
                await self._wait()
                continue
            await self._run_step(fold, step)
        return Reduced(fold.result, fold.fault) if fold is not None else Reduced(None)

    async def _run_step(self, fold: Fold, step: Callable[[], None]) -> None:
        """Reduce a block in the executor; an abort leaves it running, and its blocks alone until it has run."""
        running = asyncio.get_running_loop().run_in_executor(self._executor, step)
        try:
            await asyncio.shield(running)
        finally:
            if running.done():
                fold.step_done()
            else:
                running.add_done_callback(lambda _: fold.step_done())

    async def _wait(self) -> None:
        """Return when something has happened, or when a client has had its time."""
        # An upload that begins or goes on meanwhile can stall: nobody says so.
        until_s = min(self._collection.next_expiry() - self._now(), self.exchange.closing.stall_timeout_s)
        try:
            async with asyncio.timeout(max(0.0, until_s)):
                await self._changed.wait()
        except TimeoutError:
            self._collection.expire(self._now())

    def reply_seconds(self) -> dict[str, float]:
        """Return the seconds from the broadcast until each client's reply was complete."""
        return {client: when - self._started for client, when in self._collection.completed_at.items()}

    def close(self, reduced: Reduced, connected: Container[str]) -> Outcome:
        """Put the outcome together; messages that cross from now on belong to no exchange, but for the receipts.

        Args:
            connected: the clients that can be told what became of their replies.
        """
        self._closed = True
        replies = self._collection.replies()
        self.receipts = [self._receipt(*told, connected) for told in self._collection.judgements()]
        if self._fold is not None:
            self.meter.payload_up(len(replies) * self._fold.code_bytes, dense_bytes=len(replies) * self._fold.dense_bytes)
        return Outcome(
            reduced=reduced.tensors,
            replies=replies,
            missing=self._collection.missing(),
            traffic=self.meter.close(),
            seconds=self._now() - self._started,
            fault=reduced.fault,
            decode_s=self._fold.decode_s if self._fold is not None else 0.0,
            useful=useful_traffic(self._collection, self._forms),
            ratios=self._fold.ratios if self._fold is not None else {},
        )

    def _receipt(self, client: str, judgement: Judgement, connected: Container[str]) -> Receipt:
        """Build a receipt, and count it: of a client that replied also if it is away, for it will ask."""
        counts = judgement.verdict == Verdict.VERDICT_OK
        if client in self._repeated and counts:
            judgement = Judgement(Verdict.VERDICT_DUPLICATE)
        message, counted = self._message(judgement), counts or client in connected
        if counted:
            self.meter.down(len(message))
        return Receipt(client, self.exchange.id, judgement, message, counted)

    def release(self) -> None:
        """Give back what the exchange holds, however it ended."""
        self.meter.close()
        self._collection.close()
