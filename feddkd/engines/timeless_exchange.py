"""An exchange whose clients are all at hand: no time passes, so that none of them is late."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from feddkd.engines.collection import Arrival, Collection, Judgement
from feddkd.engines.fold import Fold
from feddkd.engines.forms import Forms
from feddkd.engines.useful import useful_traffic
from feddkd.exchange import Outcome
from feddkd.failpoints import failpoint
from feddkd.tensors import Tensors
from feddkd.traffic import Meter
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import lacking_message, receipt_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

NOW = 0.0
"""What the collection is told of the time: it does not pass."""


class Sent(NamedTuple):
    """A broadcast as a client gets it: a message, then the payload."""

    message: bytes
    payload: Payload


class TimelessExchange:
    """What is sent, collected and counted in one exchange, as the messages that gRPC would have moved.

    Attributes:
        exchange: what is carried out.
        collection: of its replies.
        fold: reduces them; None where replies are only numbers.
    """

    def __init__(self, collection: Collection, chunk_bytes: int) -> None:
        """Encode nothing yet."""
        self.exchange = collection.exchange
        self.collection = collection
        schema = self.exchange.reply_schema
        self.fold = Fold(collection, schema, chunk_bytes) if schema is not None else None
        self._forms = Forms(self.exchange, chunk_bytes)
        self._meter = Meter()
        self._started = time.monotonic()

    def send(self, client: str, *, has_constants: bool) -> Sent:
        """Count a broadcast to a client, in the form that it can use as far as that is known; returns what is sent."""
        if not has_constants:
            self._forms.include_constants(client)
        payload = self._forms.payload(client)
        self._meter.payload_down(payload.size_bytes, dense_bytes=self._forms.dense_bytes(client), snapshot=self._forms.is_snapshot(client))
        return self._sent(client)

    def send_whole(self, client: str) -> Sent:
        """Count that a client lacks what a step leads from, and a whole model to it; returns what is sent."""
        self._meter.up(len(lacking_message(self.exchange.id)))
        assert self._forms.lacks(client), "a whole model builds on nothing"
        return self._sent(client)

    def _sent(self, client: str) -> Sent:
        message, payload = self._forms.message(client), self._forms.payload(client)
        self._meter.down(len(message) + payload.frames_bytes)
        return Sent(message, payload)

    def taking(self, client: str, messages: Iterable[bytes | memoryview]) -> Iterator[None]:
        """Collect a client's messages, one for each value that this yields. Raises StateError if they cannot be kept."""
        frames = iter(messages)
        header = next(frames)
        self._meter.up(len(header))
        request = pb.ParticipateRequest.FromString(bytes(header))
        if request.HasField("failure"):
            self.collection.fail(client, request.failure.reason)
            return
        if (judgement := self.collection.reply(client, request.answer, NOW)) is not None:
            self._tell(judgement)
            return
        for frame in frames:
            yield
            self._meter.up(len(frame))
            match self.collection.accept(client, decode_chunk(frame)):
                case Arrival() as arrival:
                    arrival.write()
                    # Never refused: only an upload that was interrupted is looked at again.
                    self.collection.store(arrival, NOW)
                    failpoint("engine.reply.after_chunk")
                case Judgement() as judgement:
                    self._tell(judgement)
                    return

    def give_up_absent(self) -> None:
        """Give up the clients that are not here: all others have replied, and nobody else will."""
        while not self.collection.settled:
            self.collection.expire(self.collection.next_expiry())

    def close(self, here: Iterable[str]) -> Outcome:
        """Count what the clients that are here are told, and return the outcome; everything is reduced."""
        reduced, fault = self._reduced()
        failpoint("engine.exchange.before_outcome")
        told = set(here)
        for client, judgement in self.collection.judgements():
            if client in told:
                self._tell(judgement)
        replies, fold = self.collection.replies(), self.fold
        if fold is not None:
            self._meter.payload_up(len(replies) * fold.code_bytes, dense_bytes=len(replies) * fold.dense_bytes)
        seconds = time.monotonic() - self._started
        useful = useful_traffic(self.collection, self._forms)
        decode_s = fold.decode_s if fold is not None else 0.0
        ratios = fold.ratios if fold is not None else {}
        return Outcome(reduced, replies, self.collection.missing(), self._meter.close(), seconds, fault, decode_s, useful, ratios)

    def _reduced(self) -> tuple[Tensors | None, str]:
        """What all contributions reduce to, and why that is nothing of use, if it is."""
        return (self.fold.result, self.fold.fault) if self.fold is not None else (None, "")

    def _tell(self, judgement: Judgement) -> None:
        """Count what would be said to a client."""
        self._meter.down(len(receipt_message(self.exchange.id, judgement.verdict, judgement.reason)))
