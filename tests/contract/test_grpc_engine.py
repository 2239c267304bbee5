"""What only a network has: clients that are away, come back, and come too late; byte for byte.

The clients are `HandClient`s, so that a test decides every message; the server is a real one.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import (
    RUN_ID,
    HandClient,
    OnePass,
    Server,
    answer_frames,
    exchange_of,
    filled,
    mean_of,
    serving,
    small_config,
    until,
)
from torch import Tensor

from feddkd.aggregator.rule import Reduction, Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import ConfigError, RunError
from feddkd.exchange import Cause, Closing, ExampleCounts, Exchange, Missing, Outcome
from feddkd.scheduler.engine import ClientStates, OpenExchange
from feddkd.tensors import Schema, Segment, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.frames import Chunk, decode_chunk, is_chunk
from feddkd.transport.messages import (
    Holding,
    Verdict,
    failure_message,
    hello_message,
    id_from_message,
    id_to_message,
    receipt_message,
    resend_message,
    work_message,
)
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.server import FederationServer
from feddkd.transport.sessions import Session

CHUNK = 1024
FLOATS = Schema([TensorSpec("w", torch.float32, (1200,))])
"""Five chunks, the last one shorter."""
PAYLOAD, MINE, OTHER = (filled(FLOATS, seed) for seed in range(3))
MEAN = mean_of({"hand": MINE, "other": OTHER}, {"hand": 1.0, "other": 1.0})
GRACE = Closing(60.0, reconnect_grace_s=60.0)
ONE_IS_ENOUGH = Closing(60.0, enough=1, grace_after_enough_s=0.0)


class WatchedEngine(GrpcEngine):
    """Tells how many chunks of each client have been dealt with."""

    def __init__(self) -> None:
        super().__init__(small_config(f"transport.chunk_bytes={CHUNK}"), RUN_ID, FLOATS)
        self.chunks: Counter[str] = Counter()

    async def received(self, session: Session, chunk: Chunk) -> None:
        await super().received(session, chunk)
        self.chunks[session.client_id] += 1


class Scene:
    """A server, and clients that come and go."""

    def __init__(self, server: Server, engine: WatchedEngine) -> None:
        self.server = server
        self.engine = engine
        self._clients: list[HandClient] = []

    def client(self, name: str = "hand", holding: Holding | None = None) -> HandClient:
        """Join, and open a stream."""
        client = HandClient(self.server.address, name)
        self._clients.append(client)
        client.open_with(hello_message(client.join().session_token, holding))
        until(lambda: name in self.engine.clients())
        return client

    def lose(self, client: HandClient) -> None:
        """Break a client's connection; return when the server has noticed."""
        client.hang_up()
        until(lambda: client.client_id not in self.engine.clients())

    def close(self) -> None:
        for client in self._clients:
            client.hang_up()


@pytest.fixture
def scene() -> Iterator[Scene]:
    engine = WatchedEngine()
    with serving(engine=engine) as server:
        scene = Scene(server, engine)
        yield scene
        scene.close()


def numbered(
    step: int,
    *clients: str,
    closing: Closing = GRACE,
    rule: WeightedMean | None = None,
) -> Exchange:
    exchange = exchange_of(
        list(clients) or ["hand"],
        PAYLOAD,
        reply_schema=FLOATS,
        closing=closing,
        rule=rule or WeightedMean(),
    )
    return replace(exchange, id=replace(exchange.id, step=step))


def holding(work: pb.Work, size_bytes: int = FLOATS.size_bytes) -> Holding:
    return Holding(id_from_message(work.id), work.payload.digest, size_bytes)


def answer_again(work: pb.Work, contribution: Tensors, offset: int) -> list[bytes]:
    """The header of an answer that goes on, and its chunks from byte `offset` on."""
    payload = Payload(contribution, CHUNK)
    answer = pb.Answer(id=work.id, payload=payload.header)
    answer.payload.content_sha256 = payload.content_sha256
    return [pb.ParticipateRequest(answer=answer).SerializeToString(), *payload.frames(offset)]


def size(*messages: bytes) -> int:
    return sum(map(len, messages))


def broadcast_of(exchange: Exchange) -> list[bytes]:
    """The messages of a broadcast."""
    payload = Payload(exchange.payload, CHUNK)
    deadline_s = exchange.closing.deadline_s
    work = work_message(exchange.id, payload, evaluate=False, deadline_s=deadline_s)
    return [work, *payload.frames()]


def good_receipt(exchange: Exchange) -> bytes:
    return receipt_message(exchange.id, Verdict.VERDICT_OK)


def undisturbed(exchange: Exchange, work: pb.Work, *contributions: Tensors) -> Traffic:
    """What an exchange moves for clients that reply at once, on the wire."""
    up = [frame for contribution in contributions for frame in answer_frames(work, contribution)]
    down = [*broadcast_of(exchange), good_receipt(exchange)] * len(contributions)
    return Traffic(wire_bytes_down=size(*down), wire_bytes_up=size(*up))


def acknowledged(begun: OpenExchange) -> Outcome:
    """The outcome of an exchange; its clients have been told."""
    outcome = begun.outcome()
    begun.acknowledge()
    return outcome


# Away between two exchanges.


def test_a_client_that_is_away_between_two_exchanges_is_in_the_next_one(scene: Scene) -> None:
    hand, other = scene.client(), scene.client("other")
    for step in range(2):
        begun = scene.engine.begin(numbered(step, "hand", "other"))
        if step == 1:
            hand = scene.client()
        for client, contribution in ((hand, MINE), (other, OTHER)):
            client.send(*answer_frames(client.work()[0], contribution))
        outcome = begun.outcome()
        assert (list(outcome.replies), outcome.missing) == (["hand", "other"], {})
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == MEAN.sha256()
        begun.acknowledge()
        scene.lose(hand)


def test_a_client_that_does_not_come_back_within_the_grace_is_missing(scene: Scene) -> None:
    hand, other = scene.client(), scene.client("other")
    scene.lose(hand)
    no_grace = Closing(60.0, reconnect_grace_s=0.0)
    begun = scene.engine.begin(numbered(0, "hand", "other", closing=no_grace))
    other.send(*answer_frames(other.work()[0], OTHER))
    outcome = begun.outcome()
    assert outcome.missing == {"hand": Missing(Cause.DISCONNECTED, "not connected")}
    # It was never sent anything, not even a receipt.
    exchange = numbered(0, closing=no_grace)
    assert outcome.traffic.wire_bytes_down == size(*broadcast_of(exchange), good_receipt(exchange))


# Back in the middle of one.


def test_a_client_that_holds_the_broadcast_is_not_sent_it_again(scene: Scene) -> None:
    exchange = numbered(0)
    begun = scene.engine.begin(exchange)
    hand = scene.client()
    work, _ = hand.work()
    scene.lose(hand)
    hand = scene.client(holding=holding(work))
    assert hand.response().work == work
    frames = answer_frames(work, MINE)
    hand.send(*frames)
    outcome = acknowledged(begun)
    traffic = outcome.traffic
    assert outcome.useful == undisturbed(exchange, work, MINE)
    assert not is_chunk(message := hand.receive())  # the next thing that it hears
    assert pb.ParticipateResponse.FromString(message).receipt.verdict == Verdict.VERDICT_OK
    message, *chunks = broadcast_of(exchange)
    assert traffic.wire_bytes_down == size(message, *chunks, message, good_receipt(exchange))
    assert traffic.wire_bytes_up == size(*frames)
    assert traffic.payload_bytes_down == traffic.payload_bytes_up == FLOATS.size_bytes


ELSEWHERE = replace(numbered(0).id, round=7)
HELD: dict[str, tuple[Callable[[Holding], Holding | None], int]] = {
    "nothing": (lambda _: None, 0),
    "no byte": (lambda held: replace(held, size_bytes=0), 0),
    "two chunks": (lambda held: replace(held, size_bytes=2 * CHUNK), 2 * CHUNK),
    "part of a chunk": (lambda held: replace(held, size_bytes=CHUNK + 1), 0),
    "more than there is": (lambda held: replace(held, size_bytes=1 << 40), 0),
    "another content": (lambda held: replace(held, digest=bytes(32)), 0),
    "another exchange's": (lambda held: replace(held, exchange=ELSEWHERE), 0),
}


@pytest.mark.parametrize(("change", "offset"), HELD.values(), ids=HELD)
def test_a_client_is_sent_what_it_lacks(
    change: Callable[[Holding], Holding | None],
    offset: int,
    scene: Scene,
) -> None:
    exchange = numbered(0)
    begun = scene.engine.begin(exchange)
    hand = scene.client()
    work, _ = hand.work()
    scene.lose(hand)
    hand = scene.client(holding=change(holding(work)))
    assert hand.response().work == work
    chunks = [decode_chunk(hand.receive()) for _ in range(5 - offset // CHUNK)]
    assert [chunk.offset for chunk in chunks] == list(range(offset, FLOATS.size_bytes, CHUNK))
    hand.send(*answer_frames(work, MINE))
    traffic = acknowledged(begun).traffic
    assert hand.receipt().verdict == Verdict.VERDICT_OK
    assert traffic.payload_bytes_down == FLOATS.size_bytes


@pytest.mark.parametrize("arrived", range(6))
def test_an_upload_that_broke_goes_on_where_it_broke(arrived: int, scene: Scene) -> None:
    exchange = numbered(0, "hand", "other")
    begun = scene.engine.begin(exchange)
    hand, other = scene.client(), scene.client("other")
    work, _ = hand.work()
    first = answer_frames(work, MINE)[: 1 + arrived]
    hand.send(*first)
    until(lambda: has_begun(scene))
    until(lambda: scene.engine.chunks["hand"] == arrived)
    scene.lose(hand)
    hand = scene.client(holding=holding(work))
    offset = min(arrived * CHUNK, FLOATS.size_bytes)
    rest = []
    if arrived < 5:
        response = hand.response()
        assert response.resend == pb.Resend(id=work.id, offset=offset)
        rest = answer_again(work, MINE, offset)
        hand.send(*rest)
    frames = answer_frames(other.work()[0], OTHER)
    other.send(*frames)
    outcome = acknowledged(begun)
    assert hand.receipt() == pb.Receipt(id=work.id, verdict=Verdict.VERDICT_OK)
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == MEAN.sha256()
    assert outcome.traffic.wire_bytes_up == size(*first, *rest, *frames)
    assert outcome.useful == undisturbed(exchange, work, MINE, OTHER)
    asked_again = [resend_message(exchange.id, offset)] if rest else []
    to_each = [*broadcast_of(exchange), good_receipt(exchange)]
    assert outcome.traffic.wire_bytes_down == size(*to_each, *asked_again, *to_each)
    assert outcome.traffic.payload_bytes_down == 2 * FLOATS.size_bytes
    assert outcome.traffic.payload_bytes_up == 2 * FLOATS.size_bytes


def has_begun(scene: Scene) -> bool:
    (begun,) = scene.engine._open
    return begun._collection.contributions["hand"].has_begun


def test_a_client_that_comes_back_without_the_broadcast_starts_over(scene: Scene) -> None:
    exchange = numbered(0)
    begun = scene.engine.begin(exchange)
    hand = scene.client()
    work, _ = hand.work()
    first = answer_frames(work, OTHER)[:3]
    hand.send(*first)
    until(lambda: scene.engine.chunks["hand"] == 2)
    scene.lose(hand)
    hand = scene.client()  # another process: it may compute something else
    again = answer_frames(hand.work()[0], MINE)
    hand.send(*again)
    outcome = acknowledged(begun)
    assert hand.receipt().verdict == Verdict.VERDICT_OK
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == MINE.sha256()
    assert outcome.traffic.wire_bytes_up == size(*first, *again)
    assert outcome.useful == undisturbed(exchange, work, MINE)
    assert outcome.traffic.payload_bytes_down == FLOATS.size_bytes
    assert outcome.traffic.payload_bytes_up == FLOATS.size_bytes


@pytest.mark.parametrize("refused", [False, True])
def test_a_client_that_failed_and_comes_back_is_told_why_it_is_left_out(
    refused: bool,
    scene: Scene,
) -> None:
    begun = scene.engine.begin(numbered(0, "hand", "other"))
    hand, other = scene.client(), scene.client("other")
    work, _ = hand.work()
    if refused:
        hand.send(*answer_frames(work, MINE, loss=math.nan)[:1])
        assert hand.receipt().verdict == Verdict.VERDICT_INVALID_ARGUMENT
    else:
        hand.send(failure_message(id_from_message(work.id), "the disk is full"))
        until(lambda: scene.engine.states().working == 1)
    scene.lose(hand)
    hand = scene.client(holding=holding(work))
    reason = "refused: the loss is nan" if refused else "the disk is full"
    told = pb.Receipt(id=work.id, verdict=Verdict.VERDICT_DEADLINE_EXCEEDED, reason=reason)
    assert hand.receipt() == told
    other.send(*answer_frames(other.work()[0], OTHER))
    assert list(begun.outcome().replies) == ["other"]


def test_a_reply_that_names_its_content_is_as_useful_as_one_that_does_not(scene: Scene) -> None:
    """A client that has sent it to an earlier process of the server names it."""
    exchange = numbered(0)
    begun = scene.engine.begin(exchange)
    hand = scene.client()
    work, _ = hand.work()
    again = answer_again(work, MINE, 0)
    hand.send(*again)
    outcome = begun.outcome()
    assert outcome.useful == undisturbed(exchange, work, MINE)
    assert outcome.traffic.wire_bytes_up == size(*again) > outcome.useful.wire_bytes_up


# Before the outcome is kept.


@pytest.mark.parametrize("question", ["hello", "answer", "failure"])
@pytest.mark.parametrize("counted", [True, False])
def test_nobody_is_told_anything_between_outcome_and_acknowledgement(question: str, counted: bool, scene: Scene) -> None:
    hand, other = scene.client(), scene.client("other")
    begun = scene.engine.begin(numbered(0, "hand", "other", closing=GRACE if counted else ONE_IS_ENOUGH))
    work, _ = hand.work()
    answer = answer_frames(work, MINE)
    if counted:
        hand.send(*answer)
        until(lambda: scene.engine.chunks["hand"] == 5)
    other.send(*answer_frames(other.work()[0], OTHER))
    outcome = begun.outcome()
    before = scene.engine.other_traffic().wire_bytes_up
    if question == "hello":
        scene.lose(hand)
        hand = scene.client(holding=holding(work))
    else:
        messages = answer if question == "answer" else [failure_message(id_from_message(work.id), "too late")]
        hand.send(*messages)
        until(lambda: scene.engine.other_traffic().wire_bytes_up == before + size(*messages))
    told = scene.engine.other_traffic().wire_bytes_down
    begun.acknowledge()
    receipt = hand.receipt()
    assert receipt.verdict == (Verdict.VERDICT_OK if counted else Verdict.VERDICT_DEADLINE_EXCEEDED)
    assert scene.engine.other_traffic().wire_bytes_down == told  # it was counted when the exchange closed
    assert list(outcome.replies) == (["hand", "other"] if counted else ["other"])
    hand.send(failure_message(ELSEWHERE, "what else?"))
    assert hand.receipt().id == id_to_message(ELSEWHERE)  # nothing came between


def test_no_receipt_leaves_where_the_run_ends_before_the_outcome_is_kept(scene: Scene) -> None:
    hand = scene.client()
    begun = scene.engine.begin(numbered(0))
    work, _ = hand.work()
    hand.send(*answer_frames(work, MINE))
    begun.outcome()
    finishing = scene.server.background(lambda: scene.engine.finish(False, "the disk is full"))
    assert hand.response().farewell.reason == "the disk is full"
    hand.hang_up()
    finishing.result()


# Too late.


def test_a_late_reply_hears_what_was_said_when_the_exchange_closed(scene: Scene) -> None:
    hand, other = scene.client(), scene.client("other")
    begun = scene.engine.begin(numbered(0, "hand", "other", closing=ONE_IS_ENOUGH))
    work, _ = hand.work()
    other.send(*answer_frames(other.work()[0], OTHER))
    outcome = acknowledged(begun)
    missing = Missing(Cause.CLOSED, "the exchange closed after 1 replies")
    assert outcome.missing == {"hand": missing}
    told = pb.Receipt(id=work.id, verdict=Verdict.VERDICT_DEADLINE_EXCEEDED, reason=missing.reason)
    assert hand.receipt() == told
    hand.send(*answer_frames(work, MINE))
    assert hand.receipt() == told
    hand.send(failure_message(id_from_message(work.id), "too late"))
    assert hand.receipt() == told
    following = scene.engine.begin(numbered(1))
    hand.work()
    hand.send(*answer_frames(work, MINE))
    told.current.CopyFrom(id_to_message(numbered(1).id))
    assert hand.receipt() == told
    unknown = pb.Work(id=id_to_message(ELSEWHERE), payload=work.payload)
    hand.send(*answer_frames(unknown, MINE))
    receipt = hand.receipt()
    assert (receipt.verdict, receipt.reason) == (
        Verdict.VERDICT_FAILED_PRECONDITION,
        "round 7 local_train is closed",
    )
    hand.send(failure_message(numbered(1).id, "never mind"))
    assert following.outcome().missing == {"hand": Missing(Cause.FAILED, "never mind")}


@pytest.mark.parametrize("counted", [True, False])
def test_a_client_that_was_away_when_its_exchange_closed_is_told_when_it_is_back(
    counted: bool,
    scene: Scene,
) -> None:
    hand, other = scene.client(), scene.client("other")
    closing = replace(GRACE, enough=1, grace_after_enough_s=0.0) if not counted else GRACE
    begun = scene.engine.begin(numbered(0, "hand", "other", closing=closing))
    work, _ = hand.work()
    if counted:
        hand.send(*answer_frames(work, MINE))
        until(lambda: scene.engine.chunks["hand"] == 5)
    scene.lose(hand)
    answer = answer_frames(other.work()[0], OTHER)
    other.send(*answer)
    outcome = acknowledged(begun)
    assert list(outcome.replies) == (["hand", "other"] if counted else ["other"])
    # The receipt of a reply that counts belongs to its exchange, whenever it is sent.
    num_receipts = 2 if counted else 1
    assert outcome.traffic.wire_bytes_down == size(*broadcast_of(numbered(0)) * 2, *[good_receipt(numbered(0))] * num_receipts)
    scene.lose(scene.client())  # to see what a connection costs
    before = scene.engine.other_traffic().wire_bytes_down
    scene.lose(scene.client())
    connection = scene.engine.other_traffic().wire_bytes_down - before
    hand = scene.client(holding=holding(work))
    receipt = hand.receipt()
    assert receipt.id == work.id
    assert receipt.verdict == (Verdict.VERDICT_OK if counted else Verdict.VERDICT_DEADLINE_EXCEEDED)
    total = scene.engine.other_traffic().wire_bytes_down - before - connection
    assert total == connection + (0 if counted else pb.ParticipateResponse(receipt=receipt).ByteSize())


@pytest.mark.parametrize("next_is_open", [False, True])
def test_bytes_of_a_straggler_belong_to_no_exchange(next_is_open: bool, scene: Scene) -> None:
    hand, other = scene.client(), scene.client("other")
    first = scene.engine.begin(numbered(0, "hand", "other", closing=ONE_IS_ENOUGH))
    work, _ = hand.work()
    header, *chunks = answer_frames(work, OTHER)
    hand.send(header, chunks[0])
    until(lambda: scene.engine.chunks["hand"] == 1)
    frames = answer_frames(other.work()[0], OTHER)
    other.send(*frames)
    outcome = acknowledged(first)
    assert list(outcome.missing) == ["hand"]
    assert outcome.traffic.wire_bytes_up == size(header, chunks[0], *frames)
    assert outcome.useful == undisturbed(numbered(0), work, OTHER)
    before = scene.engine.other_traffic().wire_bytes_up
    second = scene.engine.begin(numbered(1)) if next_is_open else None
    hand.send(*chunks[1:])
    until(lambda: scene.engine.chunks["hand"] == 5)
    assert scene.engine.other_traffic().wire_bytes_up - before == size(*chunks[1:])
    if second is not None:
        frames = answer_frames(hand.work()[0], MINE)
        hand.send(*frames)
        outcome = second.outcome()
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == MINE.sha256()
        assert outcome.traffic.wire_bytes_up == size(*frames)


# A reduction in the middle of uploads.


class Poisoned(OnePass, WeightedMean):
    """Reduces to nothing of use where two clients are in it."""

    def __init__(self) -> None:
        object.__setattr__(self, "passes", 1)
        object.__setattr__(self, "reduced", threading.Event())

    def start(self, clients: Sequence[str] = ()) -> Reduction:
        return self

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        elements = [elements.clone() for elements, _ in rows]
        out.copy_(elements[0] if len(elements) == 1 else torch.full_like(out, math.nan))
        self.reduced.set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("lost", [False, True])
def test_a_fault_waits_for_the_replies_that_are_arriving(lost: bool, scene: Scene) -> None:
    rule = Poisoned()
    begun = scene.engine.begin(numbered(0, "hand", "other", rule=rule))
    hand, other = scene.client(), scene.client("other")
    other.send(*answer_frames(other.work()[0], OTHER))
    work, _ = hand.work()
    header, *chunks = answer_frames(work, MINE)
    hand.send(header, chunks[0])
    rule.reduced.wait()  # type: ignore[attr-defined]
    if lost:
        hand.send(failure_message(id_from_message(work.id), "the disk is full"))
    else:
        hand.send(*chunks[1:])
    outcome = begun.outcome()
    if lost:
        assert outcome.fault == ""
        assert outcome.missing == {"hand": Missing(Cause.FAILED, "the disk is full")}
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == OTHER.sha256()
    else:
        assert "an element is NaN or infinite; largest: " in outcome.fault
        assert (list(outcome.replies), outcome.missing) == (["hand", "other"], {})


# Aborts.


def test_an_abort_ends_an_exchange_in_the_middle_of_an_upload(scene: Scene) -> None:
    hand = scene.client()
    waiting = scene.server.begin(numbered(0))
    work, _ = hand.work()
    hand.send(*answer_frames(work, MINE)[:3])
    until(lambda: scene.engine.chunks["hand"] == 2)
    scene.engine.abort("the operator stopped it")
    with pytest.raises(RunError, match=r"^the operator stopped it$"):
        waiting.result()
    finishing = scene.server.background(lambda: scene.engine.finish(False, "stopped", paused=True))
    assert hand.response().farewell == pb.Farewell(completed=False, reason="stopped", paused=True)
    hand.hang_up()
    finishing.result()


@pytest.mark.parametrize("first", ["begin", "abort"])
def test_an_abort_that_meets_the_beginning_of_an_exchange_ends_it(
    first: str,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both wait for the server's loop at once, in either order."""
    queued = threading.Semaphore(0)
    held, go = threading.Event(), threading.Event()
    call = FederationServer.call

    def counting(
        server: FederationServer,
        coroutine: Coroutine[Any, Any, object],
    ) -> Future[object]:
        future = call(server, coroutine)
        queued.release()
        return future

    async def hold() -> None:
        held.set()
        go.wait()

    def abort() -> None:
        scene.engine.abort("the operator stopped it")
        queued.acquire()

    scene.client()
    call(scene.engine._server, hold())
    held.wait()
    monkeypatch.setattr(FederationServer, "call", counting)
    if first == "abort":
        # It has passed the first look at the abort, as if that had come a moment later.
        monkeypatch.setattr(scene.engine, "check_aborted", once_blind(scene.engine.check_aborted))
        abort()
    waiting = scene.server.background(lambda: scene.engine.carry_out(numbered(0)))
    queued.acquire()
    if first == "begin":
        abort()
    go.set()
    with pytest.raises(RunError, match=r"^the operator stopped it$"):
        waiting.result()
    until(lambda: scene.engine.states() == ClientStates(connected=1))  # nobody works any more


def once_blind(check: Callable[[], None]) -> Callable[[], None]:
    """A check that does nothing the first time."""
    calls: list[None] = []

    def blind() -> None:
        calls.append(None)
        if len(calls) > 1:
            check()

    return blind


# Who is there.


def test_clients_are_waited_for_and_counted_by_what_they_do(scene: Scene) -> None:
    assert scene.engine.states() == ClientStates()
    assert not scene.engine.wait_for_clients(1, 0.0)
    waiting = scene.server.background(lambda: scene.engine.wait_for_clients(2, None))
    hand, other = scene.client(), scene.client("other")
    assert waiting.result()
    assert scene.engine.states() == ClientStates(connected=2)
    begun = scene.engine.begin(numbered(0))
    assert scene.engine.states() == ClientStates(connected=1, working=1)
    work, _ = hand.work()
    scene.lose(other)
    assert scene.engine.states() == ClientStates(working=1, lost=1)
    scene.lose(hand)
    assert scene.engine.states() == ClientStates(lost=2)
    hand = scene.client(holding=holding(work))
    assert scene.engine.states() == ClientStates(working=1, lost=1)
    hand.send(*answer_frames(work, MINE))
    acknowledged(begun)
    assert scene.engine.states() == ClientStates(connected=1, lost=1)
    assert scene.engine.clients() == {"hand": ExampleCounts(1)}
    hand.hang_up()
    scene.engine.finish(completed=True, reason="done")
    assert scene.engine.states() == ClientStates()


def test_a_server_that_cannot_hold_its_clients_connections_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.transport.options.max_connections", lambda: 2)
    engine = GrpcEngine(small_config("scheduler.clients=3"), RUN_ID, FLOATS)
    with pytest.raises(ConfigError, match=r"^scheduler\.clients: 3 clients are waited for.* 2 connections"):
        engine.start("127.0.0.1", 0)
