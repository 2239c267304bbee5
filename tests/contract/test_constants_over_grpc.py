"""A client that lacks the network's constants is sent them once, wherever its connection breaks; byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from harness import RUN_ID, HandClient, answer_frames, exchange_of, filled, serving, small_config, until

from feddkd.client.constants import HeldConstants
from feddkd.client.held import Held
from feddkd.client.incoming_broadcast import IncomingBroadcast
from feddkd.compression.constants import CONSTANT, Constants
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import CorruptionError, ProtocolError
from feddkd.exchange import Closing, Exchange
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import decode_chunk, is_chunk
from feddkd.transport.messages import Holding, Verdict, hello_message, id_from_message, work_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK = 1024
FLOATS = Schema([TensorSpec("w", torch.float32, (600,))])
FROZEN = Schema([TensorSpec("base", torch.float32, (700,), trainable=False)])
MODEL, UPDATE = filled(FLOATS, 1), filled(FLOATS, 2)
CONSTANTS, OTHERS = (Constants.of(filled(FROZEN, seed)) for seed in (3, 4))
COMPLETE = MODEL.beside(**{CONSTANT: CONSTANTS.tensors})
COMPLETE_DIGEST = Payload(COMPLETE, CHUNK).header.digest
STARTS = [piece.start for piece in Payload(COMPLETE, CHUNK).encoding.pieces]
GRACE = Closing(60.0, reconnect_grace_s=60.0)

Connect = Callable[..., HandClient]


def numbered(step: int) -> Exchange:
    exchange = exchange_of(["hand"], MODEL, reply_schema=FLOATS, closing=GRACE)
    return replace(exchange, id=replace(exchange.id, step=step), constants=CONSTANTS)


@pytest.fixture
def engine() -> GrpcEngine:
    engine = GrpcEngine(small_config(f"transport.chunk_bytes={CHUNK}"), RUN_ID, FLOATS)
    engine.announce(CONSTANTS)
    return engine


@pytest.fixture
def connect(engine: GrpcEngine) -> Iterator[Connect]:
    """Joins, and opens a stream."""
    with serving(engine=engine) as server, ExitStack() as stack:

        def connected(holding: Holding | None = None, *, lacks: bool) -> HandClient:
            client = HandClient(server.address, "hand")
            stack.callback(client.hang_up)
            joined = client.join()
            assert joined.manifest.constants_sha256 == CONSTANTS.version
            client.open_with(hello_message(joined.session_token, holding, lacks_constants=lacks))
            until(lambda: "hand" in engine.clients())
            return client

        yield connected


def lose(engine: GrpcEngine, client: HandClient) -> None:
    client.hang_up()
    until(lambda: "hand" not in engine.clients())


def chunks_of(client: HandClient, count: int) -> list[int]:
    """The offsets of the next chunks."""
    return [decode_chunk(client.receive()).offset for _ in range(count)]


def test_constants_come_beside_the_first_broadcast_alone(engine: GrpcEngine, connect: Connect) -> None:
    hand = connect(lacks=True)
    for step, tensors in enumerate((COMPLETE, MODEL, MODEL)):
        begun = engine.begin(numbered(step))
        work = hand.response().work
        assert work.has_constants == (step == 0)
        assert work.constants_sha256 == CONSTANTS.version
        size = tensors.schema.size_bytes
        assert work.payload.size_bytes == size
        chunks_of(hand, len(Payload(tensors, CHUNK).encoding.pieces))  # all counts once it is here
        hand.send(*answer_frames(work, UPDATE))
        outcome = begun.outcome()
        begun.acknowledge()
        assert outcome.traffic.payload_bytes_down == outcome.traffic.dense_bytes_down == size
        assert outcome.lost.wire_bytes == 0
        assert hand.receipt().verdict == Verdict.VERDICT_OK


@pytest.mark.parametrize("held", range(len(STARTS)))
def test_a_broadcast_with_constants_goes_on_where_it_broke(held: int, engine: GrpcEngine, connect: Connect) -> None:
    begun = engine.begin(numbered(0))
    hand = connect(lacks=True)
    work = hand.response().work
    chunks_of(hand, len(STARTS))
    lose(engine, hand)
    hand = connect(Holding(id_from_message(work.id), work.payload.digest, STARTS[held]), lacks=True)
    assert hand.response().work == work
    assert chunks_of(hand, len(STARTS) - held) == STARTS[held:]
    hand.send(*answer_frames(work, UPDATE))
    outcome = begun.outcome()
    begun.acknowledge()
    assert hand.receipt().verdict == Verdict.VERDICT_OK
    assert outcome.traffic.payload_bytes_down == COMPLETE.schema.size_bytes


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_client_that_computes_at_a_broadcast_with_constants_goes_on(engine: GrpcEngine, connect: Connect, *, is_restarted: bool) -> None:
    begun = engine.begin(numbered(0))
    if not is_restarted:  # else the server's process is another one, and knows nothing of the first broadcast
        first = connect(lacks=True)
        first.response()
        chunks_of(first, len(STARTS))
        lose(engine, first)
    hand = connect(Holding(numbered(0).id, COMPLETE_DIGEST, COMPLETE.schema.size_bytes), lacks=False)
    work = hand.response().work
    assert work.payload.digest == COMPLETE_DIGEST
    hand.send(*answer_frames(work, UPDATE))
    begun.outcome()
    begun.acknowledge()
    assert not is_chunk(message := hand.receive())
    assert pb.ParticipateResponse.FromString(message).receipt.verdict == Verdict.VERDICT_OK


def test_a_client_that_came_back_without_them_is_sent_them_again(engine: GrpcEngine, connect: Connect) -> None:
    begun = engine.begin(numbered(0))
    hand = connect(lacks=False)
    assert not hand.response().work.has_constants
    lose(engine, hand)
    hand = connect(lacks=True)
    work = hand.response().work
    assert work.has_constants
    hand.send(*answer_frames(work, UPDATE))
    begun.outcome()


# At the client.


def announced(constants: Constants, *, has_constants: bool) -> tuple[pb.Work, Payload]:
    payload = Payload(MODEL.beside(**{CONSTANT: constants.tensors}) if has_constants else MODEL, CHUNK)
    message = work_message(numbered(0).id, payload, evaluate=False, deadline_s=1.0, constants=CONSTANTS, has_constants=has_constants)
    return pb.ParticipateResponse.FromString(message).work, payload


def received(held: HeldConstants, constants: Constants, *, has_constants: bool) -> Tensors:
    work, payload = announced(constants, has_constants=has_constants)
    incoming = IncomingBroadcast(work, FLOATS, Held(), held)
    for frame in payload.frames():
        incoming.add(decode_chunk(frame))
    return incoming.take()


def test_a_client_keeps_what_it_receives_and_computes_with_what_is_named() -> None:
    held = HeldConstants(OTHERS)
    assert received(held, CONSTANTS, has_constants=True).sha256() == MODEL.sha256()
    assert held.current.tensors.sha256() == CONSTANTS.tensors.sha256()
    held.use(OTHERS.version)
    assert received(held, CONSTANTS, has_constants=False).sha256() == MODEL.sha256()
    assert held.current.version == CONSTANTS.version


def test_constants_that_are_not_those_named_are_refused() -> None:
    held = HeldConstants(OTHERS)
    with pytest.raises(CorruptionError, match="not those that the server names"):
        received(held, OTHERS, has_constants=True)
    assert not held.has(CONSTANTS.version)


def test_a_broadcast_that_needs_constants_which_are_not_here_is_refused() -> None:
    with pytest.raises(ProtocolError, match="needs constant tensors that this client does not hold"):
        received(HeldConstants(OTHERS), CONSTANTS, has_constants=False)
