"""Collects the replies to one exchange and decides when to stop waiting for them.

The one place where a client is given up, on every engine: its reply is refused, its upload stalls, its
connection does not come back, it is silent until the deadline, or enough others have replied. The blocks
that arrive go into the spool; `Fold` reduces them.

Knows no clock, no network and no thread: an engine says what happened and what time it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from feddkd.engines.contribution import Contribution, Progress
from feddkd.engines.norm_limit import NormLimit
from feddkd.engines.spool import Block, Spool
from feddkd.errors import DivergedError, ProtocolError
from feddkd.exchange import Cause, Exchange, Missing, Reply
from feddkd.log_events import about
from feddkd.text import printable
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import MAX_COUNT, MAX_REASON_CHARACTERS, Verdict, numbers_of
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a client is told about its reply."""

    verdict: pb.Verdict.ValueType
    reason: str = ""


class _Limit(IntEnum):
    """What a client is given up by; where two come at the same time, the first of these."""

    ENOUGH = 0
    GRACE = 1
    STALL = 2
    DEADLINE = 3


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chunk that was accepted, on its way into a block.

    Attributes:
        upload: which upload of its client it belongs to.
        quick: whether `write` is a matter of memory; else it may wait for a disk, and for blocks before it.
    """

    contribution: Contribution
    upload: int
    block: Block
    quick: bool

    def write(self) -> None:
        """Fill the block. From any thread; one client's arrivals in order. Raises StateError."""
        self.block.write()


def max_evaluated(num_labelled: int, holdout: float) -> int:
    """Return the most examples that a client can have held out, by how many it says that it trains on.

    Args:
        num_labelled: what is left of its labelled examples for training; their share was rounded to a whole number.
        holdout: `data.holdout`, the share of its examples that a client holds out.
    """
    return math.ceil((num_labelled + 0.5) * max(1.0, holdout / (1 - holdout)) + 0.5)


class Collection:
    """All replies to one exchange.

    Attributes:
        exchange: what is being carried out.
        contributions: one for each client, in client order.
        completed_at: when each reply was complete, on the engine's clock.
        revision: grows whenever a client is given up or has to send its reply again.
    """

    def __init__(
        self,
        exchange: Exchange,
        spool: Spool,
        *,
        chunk_bytes: int,
        now: float,
        max_evaluated: Mapping[str, int] | None = None,
        hashes_bytes: bool = False,
    ) -> None:
        """Begin to wait.

        Args:
            spool: keeps the blocks that arrive.
            chunk_bytes: size of the chunks that contributions come in.
            now: seconds on the engine's clock, as in all methods.
            max_evaluated: most examples that each client can have held out; by default any number.
            hashes_bytes: whether a contribution's digest is that of its bytes, or of their checksums.
        """
        self.exchange = exchange
        norm_limit = None
        if exchange.max_norm is not None and exchange.reply_schema is not None:
            norm_limit = NormLimit.of(exchange.max_norm, exchange.reply_schema)
        self.contributions = {
            client: Contribution(client, norm_limit, exchange.reply_coding(client), hashes_bytes=hashes_bytes)
            for client in exchange.clients
        }
        self.completed_at: dict[str, float] = {}
        self.revision = 0
        self._spool = spool
        self._chunk_bytes = chunk_bytes
        self._max_evaluated = max_evaluated or {}
        self._deadline = now + exchange.closing.deadline_s
        self._enough_since: float | None = None
        self._num_replied = 0
        self._waiting = dict(self.contributions)
        self._in_use = False
        self._closed = False
        self._unused: list[Block] = []

    # What clients do.

    def reply(self, client_id: str, answer: pb.Answer, now: float) -> Judgement | None:
        """Take in the header of a reply; returns what the client is to be told at once, if anything."""
        contribution = self.contributions.get(client_id)
        if contribution is None:
            return Judgement(Verdict.VERDICT_FAILED_PRECONDITION, "this client is not in the exchange's cohort")
        if contribution.missing is not None:
            return _left_out(contribution.missing)
        try:
            if contribution.progress is Progress.COMPLETE:
                return self._judge_again(contribution, answer)
            self._begin(contribution, answer, now)
        except ProtocolError as error:
            return self._refuse(contribution, error)
        return None

    def accept(self, client_id: str, chunk: Chunk) -> Arrival | Judgement | None:
        """Check a chunk and find a place for it.

        Returns:
            What to `write`, then `store`; what the client is to be told at once; or None where the chunk is no
            longer wanted.

        Raises:
            StateError: the spool cannot take it.
        """
        contribution = self.contributions[client_id]
        if contribution.progress is not Progress.ARRIVING:
            return None
        try:
            block = self._take(contribution, chunk)
        except ProtocolError as error:
            return self._refuse(contribution, error)
        arrival = Arrival(contribution, contribution.upload, block, quick=block.in_memory and not contribution.writing)
        contribution.writing += 1
        return arrival

    def _take(self, contribution: Contribution, chunk: Chunk) -> Block:
        """Check a chunk, in a block that holds its bytes. Raises ProtocolError, StateError."""
        piece, sent = contribution.accept(chunk)
        block = self._spool.reserve(len(sent))
        try:
            contribution.check(piece, block.take(sent))
        except ProtocolError:
            block.free()
            raise
        return block

    def store(self, arrival: Arrival, now: float) -> Judgement | None:
        """Append a block that was written, unless its upload was given up or begun again.

        Returns what the client is to be told at once, if anything. Raises StateError.
        """
        contribution = arrival.contribution
        contribution.writing -= 1
        if self._closed or contribution.progress is not Progress.ARRIVING or contribution.upload != arrival.upload:
            arrival.block.free()
            return None
        try:
            contribution.add(arrival.block, now)
        except ProtocolError as error:
            return self._refuse(contribution, error)
        self._note(contribution, now)
        return None

    def fail(self, client_id: str, reason: str) -> None:
        """Take in that a client cannot do its part; `reason` is its own text."""
        contribution = self._waiting.get(client_id)
        if contribution is not None:
            contribution.notified = True
            self._lose(contribution, Missing(Cause.FAILED, printable(reason, MAX_REASON_CHARACTERS)))

    def connect(self, client_id: str, now: float, *, holds_broadcast: bool) -> None:
        """Take in that a client is connected; one that does not hold the broadcast starts over."""
        contribution = self._waiting.get(client_id)
        if contribution is None:
            return
        contribution.away_since, contribution.last_arrival = None, now
        if not holds_broadcast and contribution.has_begun:
            self._discard(contribution.reset())
            self.revision += 1

    def disconnect(self, client_id: str, now: float) -> None:
        """Take in that a client's connection is lost, or was not there to begin with."""
        contribution = self._waiting.get(client_id)
        if contribution is not None:
            contribution.interrupt(now)

    # What an engine asks.

    def waits_for(self, client_id: str) -> bool:
        """Return whether the client's reply, or the rest of it, is still missing."""
        return client_id in self._waiting

    def is_arriving(self, client_id: str) -> bool:
        """Return whether the next chunk of a client belongs to its contribution."""
        return self.contributions[client_id].progress is Progress.ARRIVING

    @property
    def has_enough(self) -> bool:
        """Whether so many have replied that the exchange may close early."""
        return self._enough_since is not None

    @property
    def settled(self) -> bool:
        """Whether nothing more is expected of any client."""
        return not self._waiting

    def members(self) -> list[Contribution]:
        """Return the contributions that are not missing, in client order."""
        return [item for item in self.contributions.values() if item.missing is None]

    def replies(self) -> dict[str, Reply]:
        """Return the numbers of the clients that replied, in client order."""
        return {client: item.numbers for client, item in self.contributions.items() if item.progress is Progress.COMPLETE}

    def missing(self) -> dict[str, Missing]:
        """Return why each of the other clients did not reply, in client order."""
        return {client: item.missing for client, item in self.contributions.items() if item.missing is not None}

    def judgements(self) -> Iterator[tuple[str, Judgement]]:
        """Return what each client is to be told after the exchange has closed, except those told before."""
        for client, item in self.contributions.items():
            if item.missing is None:
                yield client, Judgement(Verdict.VERDICT_OK)
            elif not item.notified:
                yield client, _left_out(item.missing)

    def remind(self, client_id: str) -> Judgement | None:
        """Return what a reconnected client is told; None if its reply is awaited or may still count."""
        contribution = self.contributions[client_id]
        if contribution.missing is None:
            return None
        contribution.notified = True
        return _left_out(contribution.missing)

    # Time.

    def next_expiry(self) -> float:
        """Return the earliest time at which `expire` has something to do; infinity if never."""
        return min((self._expiry(item)[0] for item in self._waiting.values()), default=math.inf)

    def expire(self, now: float) -> None:
        """Give up the clients that have had their time."""
        for item in list(self._waiting.values()):
            when, limit = self._expiry(item)
            if when <= now:
                self._lose(item, self._missing_after(limit))

    def _expiry(self, item: Contribution) -> tuple[float, _Limit]:
        """When a client is given up as things stand, and by which limit."""
        closing = self.exchange.closing
        arriving = item.progress is Progress.ARRIVING
        # What is arriving when the deadline passes has as long again.
        expiry = self._deadline + (closing.deadline_s if arriving else 0.0), _Limit.DEADLINE
        if item.away_since is not None:
            expiry = min(expiry, (item.away_since + closing.reconnect_grace_s, _Limit.GRACE))
        elif arriving:
            expiry = min(expiry, (item.last_arrival + closing.stall_timeout_s, _Limit.STALL))
        if self._enough_since is not None and closing.grace_after_enough_s is not None:
            expiry = min(expiry, (self._enough_since + closing.grace_after_enough_s, _Limit.ENOUGH))
        return expiry

    def _missing_after(self, limit: _Limit) -> Missing:
        """Why a client is left out that is given up by a limit."""
        closing = self.exchange.closing
        match limit:
            case _Limit.DEADLINE:
                return Missing(Cause.SILENT, f"no reply within {closing.deadline_s:g} s")
            case _Limit.STALL:
                return Missing(Cause.SILENT, f"its reply stalled for {closing.stall_timeout_s:g} s")
            case _Limit.GRACE:
                return Missing(Cause.DISCONNECTED, "not connected")
            case _Limit.ENOUGH:
                return Missing(Cause.CLOSED, f"the exchange closed after {closing.enough} replies")

    # The blocks, while a reduction reads them.

    def hold_blocks(self) -> None:
        """Keep the blocks of clients that are given up until `let_blocks_go`: a reduction reads them."""
        self._in_use = True

    def let_blocks_go(self) -> None:
        """Free the blocks that are of no use any more."""
        self._in_use = False
        unused, self._unused = self._unused, []
        self._discard(unused)

    def close(self) -> None:
        """Free all blocks, those included that are being written: the exchange has ended."""
        self._closed = True
        for item in self.contributions.values():
            self._discard(item.take_blocks())

    def _discard(self, blocks: list[Block]) -> None:
        if self._in_use:
            self._unused.extend(blocks)
            return
        for block in blocks:
            block.free()

    def _begin(self, contribution: Contribution, answer: pb.Answer, now: float) -> None:
        """Start an upload, or go on with one that was interrupted. Raises ProtocolError."""
        schema = self.exchange.reply_schema
        if answer.HasField("payload") != (schema is not None):
            wrong = "tensors where numbers are expected" if schema is None else "no tensors"
            raise ProtocolError(f"the reply holds {wrong}")
        if schema is not None and answer.payload.chunk_bytes != self._chunk_bytes:
            raise ProtocolError(f"chunks of {answer.payload.chunk_bytes} bytes where the server's have {self._chunk_bytes}")
        if answer.HasField("evaluation") and not self.exchange.evaluate:
            raise ProtocolError("the reply holds an evaluation that was not asked for")
        numbers = numbers_of(answer, self._max_evaluated.get(contribution.client_id, MAX_COUNT), self.exchange.evaluation_form)
        if contribution.has_begun:
            contribution.resume(answer.payload, now)
            return
        contribution.begin(numbers, answer, schema, now)
        self._note(contribution, now)

    def _judge_again(self, contribution: Contribution, answer: pb.Answer) -> Judgement:
        """A reply that is here already comes again."""
        if self.exchange.reply_schema is None or contribution.is_same_content(answer.payload):
            return Judgement(Verdict.VERDICT_DUPLICATE)
        return Judgement(Verdict.VERDICT_ALREADY_EXISTS, "other content was received under this identity")

    def _note(self, contribution: Contribution, now: float) -> None:
        """Take in that a contribution may be complete."""
        if contribution.progress is not Progress.COMPLETE:
            return
        del self._waiting[contribution.client_id]
        self._num_replied += 1
        self.completed_at[contribution.client_id] = now
        if self._enough_since is None and self._num_replied >= self.exchange.closing.enough:
            self._enough_since = now

    def _refuse(self, contribution: Contribution, error: ProtocolError) -> Judgement:
        contribution.notified = True
        cause = Cause.DIVERGED if isinstance(error, DivergedError) else Cause.REFUSED
        self._lose(contribution, Missing(cause, printable(f"refused: {error}", MAX_REASON_CHARACTERS)))
        return Judgement(Verdict.VERDICT_INVALID_ARGUMENT, str(error))

    def _lose(self, contribution: Contribution, missing: Missing) -> None:
        exchange = self.exchange.id
        lost = about(
            "reply_missing",
            run_id=exchange.run_id,
            client=contribution.client_id,
            exchange=exchange.name,
            round=exchange.round,
            reason=missing.reason,
        )
        logger.info("%s: %s is left out: %s", exchange, contribution.client_id, missing.reason, extra=lost)
        del self._waiting[contribution.client_id]
        self._discard(contribution.lose(missing))
        self.revision += 1


def _left_out(missing: Missing) -> Judgement:
    return Judgement(Verdict.VERDICT_DEADLINE_EXCEEDED, missing.reason)
