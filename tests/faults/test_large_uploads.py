"""Large uploads, with clients that are lost, wrong or slow in the middle of theirs."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pytest
import torch
from harness import (
    RUN_ID,
    HandClient,
    Server,
    answer_frames,
    answering,
    exchange_of,
    filled,
    mean_of,
    reasons,
    serving,
    small_config,
)
from watching import Clock, WatchedEngine, WatchedMean

from feddkd.aggregator.rule import Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.exchange import Closing, Outcome
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, decode_chunk, encode_chunk
from feddkd.transport.messages import Holding, Verdict, hello_message, id_from_message
from feddkd.transport.pb import federation_pb2 as pb

LARGE = Schema(
    [
        TensorSpec("first", torch.float32, (700, 1000)),
        TensorSpec("steps", torch.int64, (999,), trainable=False),
        TensorSpec("second", torch.float32, (300_001,)),
        TensorSpec("half", torch.bfloat16, (12_345,)),
        TensorSpec("mask", torch.bool, (5_001,), trainable=False),
    ]
)
"""4 MB, in segments that no chunk size divides."""

CHUNK_BYTES = 16_384
CHUNKS = len(LARGE.chunks(CHUNK_BYTES))
STAGING_BYTES = 1 << 20

MODEL = Tensors(LARGE)
NAMES = ["a", "b", "hand", "hand-2", "hand-3"]
CONTRIBUTIONS = {name: filled(LARGE, seed) for seed, name in enumerate(NAMES)}
WEIGHTS = {"a": 3.0, "b": 1.0, "hand": 2.0, "hand-2": 5.0, "hand-3": 4.0}
LASTING = Closing(1000.0, reconnect_grace_s=1000.0, stall_timeout_s=1000.0)
"""Waits for everyone, however long they take."""


def expected(*clients: str) -> str:
    """The SHA-256 of the mean of these clients' contributions."""
    return mean_of({client: CONTRIBUTIONS[client] for client in clients}, WEIGHTS).sha256()


def sha256(outcome: Outcome) -> str:
    assert outcome.reduced is not None
    return outcome.reduced.sha256()


class Scene:
    """A server, its honest clients a and b, and clients by hand."""

    def __init__(self, server: Server, engine: WatchedEngine) -> None:
        self.server = server
        self.engine = engine

    def start_agents(self) -> None:
        for client in ("a", "b"):
            self.server.agent(client, answering(CONTRIBUTIONS[client]))
        self.server.wait_for("a", "b")

    def hand(self, client_id: str = "hand") -> HandClient:
        return HandClient(self.server.address, client_id)

    def begin(
        self,
        *clients: str,
        closing: Closing = Closing(60.0),  # noqa: B008
        rule: Rule = WeightedMean(),  # noqa: B008
        round_number: int = 1,
    ) -> Future[Outcome]:
        weights = {client: WEIGHTS[client] for client in clients}
        exchange = exchange_of(
            weights,
            MODEL,
            reply_schema=LARGE,
            closing=closing,
            rule=rule,
            round_number=round_number,
        )
        return self.server.begin(exchange)


@contextmanager
def scene_with(*overrides: str) -> Iterator[Scene]:
    config = small_config(
        f"transport.chunk_bytes={CHUNK_BYTES}",
        f"transport.staging_bytes={STAGING_BYTES}",
        *overrides,
    )
    engine = WatchedEngine(config, RUN_ID, LARGE)
    with serving(engine=engine) as server:
        yield Scene(server, engine)


@pytest.fixture
def scene() -> Iterator[Scene]:
    with scene_with() as scene:
        yield scene


def test_large_contributions_are_reduced_as_they_arrive_to_the_exact_mean(scene: Scene) -> None:
    scene.start_agents()
    outcome = scene.begin("a", "b").result()
    assert sha256(outcome) == expected("a", "b")
    assert outcome.traffic.payload_bytes_up == 2 * LARGE.size_bytes
    assert outcome.traffic.payload_bytes_down == 2 * LARGE.size_bytes
    assert 1.0 < outcome.traffic.wire_bytes_up / (2 * LARGE.size_bytes) < 1.02


def test_a_client_that_is_lost_in_mid_upload_costs_the_others_nothing(scene: Scene) -> None:
    scene.start_agents()
    rule = WatchedMean.free()
    with scene.hand().connect() as hand:
        scene.server.wait_for("a", "b", "hand")
        result = scene.begin("a", "b", "hand", rule=rule)
        work, _ = hand.work()
        frames = answer_frames(work, CONTRIBUTIONS["hand"])
        hand.send(*frames[: len(frames) // 2])
        rule.begun.wait()  # so something of it was used
        hand.hang_up()
        outcome = result.result()
    assert reasons(outcome) == {"hand": "not connected"}
    assert sha256(outcome) == expected("a", "b")
    assert outcome.traffic.payload_bytes_up == 2 * LARGE.size_bytes
    assert (scene.engine.chunks["a"], scene.engine.chunks["b"]) == (CHUNKS, CHUNKS)


@pytest.mark.parametrize("ends", ["hang_up", "half_close", "refused"])
def test_clients_that_end_just_before_their_last_chunk_cost_the_others_nothing(
    scene: Scene,
    ends: str,
) -> None:
    """One after another, each when the one before it is gone."""
    scene.start_agents()
    hands = [scene.hand(name).connect() for name in NAMES[2:]]
    scene.server.wait_for(*NAMES)
    result = scene.begin(*NAMES)
    for hand in hands:
        work, _ = hand.work()
        frames = answer_frames(work, CONTRIBUTIONS[hand.client_id])
        hand.send(*frames[:-1])
        if ends == "refused":
            hand.send(frames[1])
            assert hand.receipt().verdict == Verdict.VERDICT_INVALID_ARGUMENT
        else:
            getattr(hand, ends)()
            scene.engine.losses.acquire()
    outcome = result.result()
    for hand in hands:
        hand.hang_up()
    assert list(outcome.missing) == NAMES[2:]
    assert sha256(outcome) == expected("a", "b")
    assert (scene.engine.chunks["a"], scene.engine.chunks["b"]) == (CHUNKS, CHUNKS)


def test_a_client_that_is_gone_after_its_last_chunk_counts(scene: Scene) -> None:
    scene.start_agents()
    with scene.hand().connect() as complete, scene.hand("hand-2").connect() as partial:
        scene.server.wait_for("a", "b", "hand", "hand-2")
        result = scene.begin("a", "b", "hand", "hand-2", closing=Closing(1000.0))
        work, _ = complete.work()
        partial.work()
        complete.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
        partial.send(*answer_frames(work, CONTRIBUTIONS["hand-2"])[:-1])
        complete.half_close()
        scene.engine.losses.acquire()  # so everything before it was read
        partial.hang_up()
        outcome = result.result()
    assert reasons(outcome) == {"hand-2": "not connected"}
    assert sha256(outcome) == expected("a", "b", "hand")


def test_when_a_chunk_is_damaged_in_mid_upload_its_client_is_refused_and_the_others_count(
    scene: Scene,
) -> None:
    scene.start_agents()
    with scene.hand().connect() as hand:
        scene.server.wait_for("a", "b", "hand")
        result = scene.begin("a", "b", "hand")
        work, _ = hand.work()
        frames = answer_frames(work, CONTRIBUTIONS["hand"])
        middle = len(frames) // 2
        chunk = decode_chunk(frames[middle])
        frames[middle] = encode_chunk(chunk._replace(crc32c=chunk.crc32c ^ 1))
        hand.send(*frames)
        receipt = hand.receipt()
        outcome = result.result()
    assert receipt.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert list(outcome.missing) == ["hand"]
    assert sha256(outcome) == expected("a", "b")


def test_when_an_upload_stalls_the_others_do_not_wait_for_it_for_ever(
    scene: Scene,
    clock: Clock,
) -> None:
    scene.start_agents()
    with scene.hand().connect() as hand:
        scene.server.wait_for("a", "b", "hand")
        closing = dataclasses.replace(LASTING, stall_timeout_s=600.0)
        result = scene.begin("a", "b", "hand", closing=closing)
        work, _ = hand.work()
        hand.send(*answer_frames(work, CONTRIBUTIONS["hand"])[:-1])
        scene.engine.wait_for_chunks(a=CHUNKS, b=CHUNKS, hand=CHUNKS - 1)
        clock.advance(scene.engine, 600.0)
        outcome = result.result()
    assert reasons(outcome) == {"hand": "its reply stalled for 600 s"}
    assert sha256(outcome) == expected("a", "b")


def test_the_bytes_of_a_straggler_are_not_those_of_the_exchange_that_is_open_now(
    scene: Scene,
) -> None:
    with scene.hand().connect() as straggler, scene.hand("hand-2").connect() as punctual:
        scene.server.wait_for("hand", "hand-2")
        first = scene.begin("hand")
        old_work, _ = straggler.work()
        header, chunk, *rest = answer_frames(old_work, CONTRIBUTIONS["hand"])
        straggler.send(header, chunk, chunk)
        assert straggler.receipt().verdict == Verdict.VERDICT_INVALID_ARGUMENT
        assert list(first.result().missing) == ["hand"]
        second = scene.begin("hand-2", round_number=2)
        work, _ = punctual.work()
        straggler.send(*rest, header)
        while straggler.receipt().verdict != Verdict.VERDICT_FAILED_PRECONDITION:
            pass  # then all of it has been read
        frames = answer_frames(work, CONTRIBUTIONS["hand-2"])
        punctual.send(*frames)
        outcome = second.result()
    assert outcome.traffic.wire_bytes_up == sum(map(len, frames))
    assert scene.server.engine.other_traffic().wire_bytes_up > sum(map(len, rest))


# An upload that is interrupted


def test_an_upload_goes_on_at_the_chunk_where_its_connection_broke(scene: Scene) -> None:
    with scene.hand() as first, scene.hand() as second:
        first.connect()
        scene.server.wait_for("hand")
        result = scene.begin("hand", closing=LASTING)
        work, _ = first.work()
        frames = answer_frames(work, CONTRIBUTIONS["hand"])
        first.send(*frames[:10])
        first.half_close()
        scene.engine.losses.acquire()
        resend = come_back(second, work)
        assert resend.id == work.id
        assert resend.offset == decode_chunk(frames[10]).offset
        second.send(frames[0], *frames[10:])
        assert second.receipt().verdict == Verdict.VERDICT_OK
        outcome = result.result()
    assert sha256(outcome) == expected("hand")
    assert scene.engine.chunks["hand"] == CHUNKS
    assert outcome.traffic.wire_bytes_up == sum(map(len, frames)) + len(frames[0])
    assert outcome.traffic.payload_bytes_down == LARGE.size_bytes


def test_an_upload_that_goes_on_must_have_the_same_content(scene: Scene) -> None:
    with scene.hand() as first, scene.hand() as second:
        first.connect()
        scene.server.wait_for("hand")
        result = scene.begin("hand", closing=LASTING)
        work, _ = first.work()
        first.send(*answer_frames(work, CONTRIBUTIONS["hand"])[:10])
        first.half_close()
        scene.engine.losses.acquire()
        come_back(second, work)
        other = answer_frames(work, CONTRIBUTIONS["a"])
        second.send(other[0], *other[10:])
        assert "the rest of the reply has other content" in second.receipt().reason
        outcome = result.result()
    assert outcome.reduced is None
    assert list(outcome.missing) == ["hand"]


def come_back(hand: HandClient, work: pb.Work) -> pb.Resend:
    """Connect as one who still has the broadcast; returns what the server asks for."""
    token = hand.join().session_token
    held = Holding(id_from_message(work.id), work.payload.digest, work.payload.size_bytes)
    hand.open_with(hello_message(token, held))
    while (response := hand.response()).WhichOneof("message") != "resend":
        pass
    return response.resend


def test_a_client_that_comes_back_with_nothing_sends_its_reply_from_the_start(
    scene: Scene,
) -> None:
    with (
        scene.hand() as first,
        scene.hand() as second,
        scene.hand("hand-2").connect() as other,
    ):
        first.connect()
        scene.server.wait_for("hand", "hand-2")
        result = scene.begin("hand", "hand-2", closing=LASTING)
        other.work()
        work, _ = first.work()
        first.send(*answer_frames(work, CONTRIBUTIONS["hand"])[:10])
        first.hang_up()
        scene.engine.losses.acquire()
        second.connect()
        work, _ = second.work()
        second.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
        other.send(*answer_frames(work, CONTRIBUTIONS["hand-2"]))
        outcome = result.result()
    assert outcome.missing == {}
    assert sha256(outcome) == expected("hand", "hand-2")


def test_a_dead_connection_that_is_noticed_late_does_not_harm_the_one_that_replaced_it(
    scene: Scene,
) -> None:
    with scene.hand() as old, scene.hand() as new:
        old.connect()
        scene.server.wait_for("hand")
        result = scene.begin("hand", closing=LASTING)
        assert old.response().WhichOneof("message") == "work"
        # It reads no further: the server is stuck in its chunks.
        new.connect()
        work, _ = new.work()
        frames = answer_frames(work, CONTRIBUTIONS["hand"])
        new.send(*frames[:10])
        old.hang_up()
        scene.engine.losses.acquire()
        new.send(*frames[10:])
        outcome = result.result()
    assert outcome.missing == {}
    assert sha256(outcome) == expected("hand")


# Chunks


@pytest.mark.parametrize("chunk_bytes", [10_000, 1 << 20])
def test_an_honest_upload_has_the_same_mean_in_chunks_of_any_size(chunk_bytes: int) -> None:
    with scene_with(f"transport.chunk_bytes={chunk_bytes}") as scene:
        scene.start_agents()
        assert sha256(scene.begin("a", "b").result()) == expected("a", "b")


def test_chunks_are_not_confused_by_an_all_zero_payload(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand")
        result = scene.begin("hand")
        work, _ = hand.work()
        frames = answer_frames(work, MODEL)
        assert decode_chunk(frames[1])[:1] == (0,)
        assert encode_chunk(Chunk(*decode_chunk(frames[1]))) == frames[1]
        hand.send(*frames)
        outcome = result.result()
    assert sha256(outcome) == MODEL.sha256()
