"""Holds the exchange that a client works on: broadcast, computation, and the reply until its receipt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol

from feddkd.client.codings import reply_coding
from feddkd.client.constants import HeldConstants
from feddkd.client.held import Held
from feddkd.client.incoming_broadcast import IncomingBroadcast
from feddkd.client.kept_reply import KeptReply
from feddkd.client.reply_encoder import ReplyEncoder
from feddkd.errors import BadExamplesError, DataError, FedDKDError, StateError
from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.tensors import Schema
from feddkd.text import printable
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import Holding, answer_message, failure_message, id_from_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

logger = logging.getLogger(__name__)

MAX_SENDS_WITHOUT_PROGRESS = 20
"""How often a reply is sent from the same byte before the client gives it up."""


MEASURED_STEPS = 2
"""The error of a codec is measured in the first exchanges of a name, which are like the others of their round."""


class TaskRunner(Protocol):
    """The interface of a worker that an agent uses."""

    @property
    def counts(self) -> ExampleCounts:
        """How many examples the client trains on: the weight of its contributions."""

    @property
    def class_names(self) -> Sequence[str]:
        """The names of the classes, in the order of their numbers; empty where the data do not say them."""

    @property
    def model_schema(self) -> Schema:
        """The model this client computes with."""

    @property
    def constants(self) -> HeldConstants:
        """The network's other tensors, which do not travel in every round."""

    def broadcast_schema(self, exchange: str) -> Schema:
        """Return what the server may send in an exchange. Raises ClientError for an unknown one."""

    def carry_out(self, task: Task) -> Reply:
        """Compute the client's part of an exchange."""


class Work:
    """The exchange that a client works on; it outlives its connection.

    It receives the broadcast, then it is computed, once, then it has a reply. All methods but
    `compute` are called on the agent's loop.

    Attributes:
        exchange: which exchange.
        message: what the server asked for.
        cancelled: set once its reply is no longer wanted; long computations look at it.
        refusal: why the broadcast is not what this client can take, if it is not; one line.
    """

    def __init__(self, message: pb.Work, worker: TaskRunner, held: Held | None = None, reply: KeptReply | None = None) -> None:
        """Prepare to receive the broadcast that `message` announces.

        Args:
            held: what the client keeps between exchanges; by default nothing.
            reply: what an earlier process computed, which may have been sent already.

        Raises:
            ProtocolError: the exchange has no proper id.
        """
        self.exchange = id_from_message(message.id)
        self.cancelled = threading.Event()
        self.message = message
        self._worker = worker
        self._held = held or Held()
        self._broadcast: IncomingBroadcast | None = None
        self._decode_s = 0.0
        self._reply = reply
        self._sent_from = -1 if reply is None else 0
        self._sends_without_progress = 0
        self.refusal: str | None = None
        if reply is not None:
            return
        try:
            expected = worker.broadcast_schema(self.exchange.name)
            self._reply_coding = reply_coding(message)
            self._broadcast = IncomingBroadcast(message, expected, self._held, worker.constants)
        except FedDKDError as error:
            self._refuse(error)

    def _refuse(self, error: FedDKDError) -> None:
        self.refusal = printable(str(error))
        self.fail(self.refusal)

    @property
    def holding(self) -> Holding | None:
        """What the server need not send again."""
        if self.is_lacking:
            return None
        header = self.message.payload
        size_bytes = self._broadcast.received_bytes if self._broadcast is not None else header.size_bytes
        return Holding(self.exchange, header.digest, size_bytes)

    @property
    def is_lacking(self) -> bool:
        """Whether the broadcast has to be sent whole: this client does not hold what it is to be added to."""
        return self._broadcast is not None and self._broadcast.lacking

    @property
    def can_be_computed(self) -> bool:
        """Whether the broadcast is here, and the computation has not begun."""
        return self._broadcast is not None and self._broadcast.complete

    @property
    def has_reply(self) -> bool:
        """Whether there is something to send."""
        return self._reply is not None

    def is_same_as(self, message: pb.Work) -> bool:
        """Return whether the server asks for the current work again."""
        mine = self.message
        return mine.id == message.id and mine.payload.digest == message.payload.digest

    def receive(self, message: bytes | memoryview) -> None:
        """Add a chunk to the broadcast, or drop it if all of that is here; refuse it if it cannot be kept.

        Raises ProtocolError if it is damaged.
        """
        if self._broadcast is not None and not self._broadcast.complete:
            try:
                self._broadcast.add(decode_chunk(message))
            except StateError as error:  # constants that come beside a model are written down
                logger.warning("cannot take part in %s: %s", self.exchange, error)
                self._refuse(error)

    def start(self) -> Task:
        """Hand the broadcast over to the computation, which begins now."""
        assert self._broadcast is not None
        self._decode_s = self._broadcast.decode_s
        payload, self._broadcast = self._broadcast.take(), None
        deadline_s = self.message.deadline_s
        return Task(
            self.exchange,
            payload,
            self.message.evaluate,
            deadline_s=deadline_s if deadline_s > 0 else None,
            cancelled=self.cancelled,
        )

    def compute(self, task: Task) -> KeptReply:
        """Compute the reply, in another thread. The caller handles what the worker raises."""
        task.check_cancelled()
        reply = self._worker.carry_out(task)
        task.check_cancelled()
        if reply.contribution is None:
            self._held.settle(counted=False)  # the receipt for this reply must not settle one before it
            return KeptReply(answer_message(self.exchange, reply, None))
        self._held.enter(self.exchange)
        chunk_bytes, few = self.message.payload.chunk_bytes, self.exchange.step < MEASURED_STEPS
        encoder = ReplyEncoder(chunk_bytes, self._reply_coding, self._held, measures_error=few)
        reply, encoded = encoder.encode(self.exchange.name, reply, reply.contribution, decode_s=self._decode_s)
        payload = Payload.of(encoded)
        return KeptReply(answer_message(self.exchange, reply, payload), payload, self._held.unsettled)

    def failure(self, error: Exception) -> KeptReply:
        """Make the reply that says what the worker raised."""
        return KeptReply(failure_message(self.exchange, _reason_of(error), leaves=isinstance(error, BadExamplesError)))

    def keep(self, reply: KeptReply) -> None:
        """Keep the reply until the server has acknowledged it."""
        self._reply = reply

    def fail(self, reason: str) -> None:
        """Reply that the client cannot do this work."""
        self._broadcast = None
        self.keep(KeptReply(failure_message(self.exchange, reason)))

    def reply_from(self, offset: int) -> Iterable[bytes]:
        """Yield the messages of the reply, its payload from byte `offset` on.

        A server that asks for the same bytes again and again gets a failure instead.

        Raises:
            ProtocolError: no chunk begins at `offset`.
        """
        assert self._reply is not None
        again = self._sent_from >= 0
        if offset > self._sent_from:
            self._sent_from, self._sends_without_progress = offset, 0
        self._sends_without_progress += 1
        if self._sends_without_progress > MAX_SENDS_WITHOUT_PROGRESS:
            self.fail(f"the reply was sent {MAX_SENDS_WITHOUT_PROGRESS} times and is asked for again")
            offset = 0
        return self._reply.messages(offset, again=again)

    def cancel(self) -> None:
        """Let go of it: a computation stops at its next batch, and its reply goes nowhere."""
        self.cancelled.set()
        self._broadcast = None


def _reason_of(error: Exception) -> str:
    """The type of an error and what it says, if it says anything: its class may be the user's."""
    name = type(error).__name__
    if isinstance(error, DataError):
        return f"{name}: its data cannot be read; the client's own log says why"  # names of files can tell of patients
    try:
        text = str(error)
    except Exception:  # noqa: BLE001
        return name
    return f"{name}: {text}" if text else name
