"""Uploads that are larger than the server's window, with clients that are lost, wrong or slow in the middle of them."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from harness import RUN_ID, HandClient, Server, answer_frames, answering, exchange_of, filled, mean_of, serving, small_config
from torch import Tensor

from feddkd.aggregator.weighted_mean import Reduction, WeightedMean
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.scheduler.engine import Outcome
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, decode_chunk, encode_chunk
from feddkd.transport.messages import Verdict
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Session

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

STAGING_BYTES = 1 << 20

MODEL = Tensors(LARGE)
CONTRIBUTIONS = {name: filled(LARGE, seed) for seed, name in enumerate(["a", "b", "hand", "hand-2"])}
WEIGHTS = {"a": 3.0, "b": 1.0, "hand": 2.0, "hand-2": 5.0}


def expected(*clients: str) -> str:
    return mean_of({client: CONTRIBUTIONS[client] for client in clients}, WEIGHTS).sha256()


class Milestones:
    """Says when the first contribution has been used, and when connections are lost."""

    def __init__(self) -> None:
        self.reduction_begun = threading.Event()
        self.disconnected = threading.Semaphore(0)

    def rule(self, dtype: torch.dtype, numel: int) -> Reduction:
        return _Watched(dtype, numel, self)


class _Watched(WeightedMean):
    def __init__(self, dtype: torch.dtype, numel: int, milestones: Milestones) -> None:
        super().__init__(dtype, numel)
        self._milestones = milestones

    def add(self, elements: Tensor, weight: float) -> None:
        super().add(elements, weight)
        self._milestones.reduction_begun.set()


class WatchedEngine(GrpcEngine):
    milestones: Milestones

    def disconnected(self, session: Session) -> None:
        super().disconnected(session)
        self.milestones.disconnected.release()


class Scene:
    def __init__(self, server: Server, milestones: Milestones) -> None:
        self.server = server
        self.milestones = milestones

    def hand(self, client_id: str = "hand") -> HandClient:
        return HandClient(self.server.address, client_id)

    def begin(self, *clients: str, deadline_s: float = 60) -> Future[Outcome]:
        weights = {client: WEIGHTS[client] for client in clients}
        return self.server.begin(exchange_of(weights, MODEL, reply_schema=LARGE, deadline_s=deadline_s))


def large_config(*overrides: str) -> Config:
    return small_config("transport.chunk_bytes=4096", f"transport.staging_bytes={STAGING_BYTES}", *overrides)


def engine_of(config: Config, milestones: Milestones) -> GrpcEngine:
    engine = WatchedEngine(config, RUN_ID, LARGE, milestones.rule)
    engine.milestones = milestones
    return engine


@pytest.fixture
def scene() -> Iterator[Scene]:
    milestones = Milestones()
    with serving(engine=engine_of(large_config(), milestones)) as server:
        yield Scene(server, milestones)


def start_agents(server: Server) -> None:
    for client in ("a", "b"):
        server.agent(client, answering(CONTRIBUTIONS[client]))
    server.wait_for("a", "b")


def test_large_contributions_are_reduced_in_lockstep_to_the_exact_mean(scene: Scene) -> None:
    start_agents(scene.server)
    outcome = scene.begin("a", "b").result()
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")
    assert outcome.traffic.payload_bytes_up == outcome.traffic.payload_bytes_down == 2 * LARGE.size_bytes
    assert 1.0 < outcome.traffic.wire_bytes_up / (2 * LARGE.size_bytes) < 1.02


def test_when_a_client_is_lost_in_mid_upload_the_others_send_theirs_again(scene: Scene) -> None:
    start_agents(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("a", "b", "hand")
        result = scene.begin("a", "b", "hand")
        work, _ = hand.work()
        frames = answer_frames(work, CONTRIBUTIONS["hand"])
        hand.send(*frames[: len(frames) // 2])
        scene.milestones.reduction_begun.wait()
        hand.hang_up()
        outcome = result.result()
    assert outcome.missing == {"hand": "disconnected in the middle of its answer"}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")
    assert outcome.traffic.payload_bytes_up == 2 * LARGE.size_bytes
    # When the reduction began the windows of all three were full; then a and b sent everything from the start.
    assert outcome.traffic.wire_bytes_up > 2 * LARGE.size_bytes + STAGING_BYTES


def test_when_a_chunk_is_damaged_in_mid_upload_its_client_is_refused_and_the_others_count(scene: Scene) -> None:
    start_agents(scene.server)
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
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")


def test_when_an_upload_stalls_the_others_do_not_wait_for_it_for_ever() -> None:
    milestones = Milestones()
    with serving(engine=engine_of(large_config("scheduler.stall_timeout_s=1"), milestones)) as server:
        scene = Scene(server, milestones)
        start_agents(server)
        with scene.hand().connect() as hand:
            server.wait_for("a", "b", "hand")
            result = scene.begin("a", "b", "hand")
            work, _ = hand.work()
            frames = answer_frames(work, CONTRIBUTIONS["hand"])
            hand.send(*frames[:-1])
            outcome = result.result()
    assert outcome.missing == {"hand": "its answer stalled for 1 s"}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")


def test_the_bytes_of_a_straggler_are_not_those_of_the_exchange_that_is_open_now(scene: Scene) -> None:
    with scene.hand().connect() as straggler, scene.hand("hand-2").connect() as punctual:
        scene.server.wait_for("hand", "hand-2")
        first = scene.begin("hand")
        old_work, _ = straggler.work()
        header, chunk, *rest = answer_frames(old_work, CONTRIBUTIONS["hand"])
        straggler.send(header, chunk, chunk)
        assert straggler.receipt().verdict == Verdict.VERDICT_INVALID_ARGUMENT
        assert list(first.result().missing) == ["hand"]
        second = scene.server.begin(exchange_of({"hand-2": 1.0}, MODEL, reply_schema=LARGE, round_number=2))
        work, _ = punctual.work()
        straggler.send(*rest, header)
        while straggler.receipt().verdict != Verdict.VERDICT_FAILED_PRECONDITION:  # so all of it has been read
            pass
        frames = answer_frames(work, CONTRIBUTIONS["hand-2"])
        punctual.send(*frames)
        outcome = second.result()
    assert outcome.traffic.wire_bytes_up == sum(map(len, frames))
    assert scene.server.engine.other_traffic().wire_bytes_up > sum(map(len, rest))


def resent(hand: HandClient, contribution: Tensors, work: pb.Work) -> None:
    """Wait until the server asks for the answer again, and send this."""
    while (response := hand.response()).WhichOneof("message") != "resend":
        pass
    assert response.resend.id == work.id
    hand.send(*answer_frames(work, contribution))


def test_an_answer_that_is_asked_for_again_counts_once(scene: Scene) -> None:
    with scene.hand().connect() as hand, scene.hand("hand-2").connect() as lost:
        scene.server.wait_for("hand", "hand-2")
        result = scene.begin("hand", "hand-2")
        work, _ = hand.work()
        lost.work()
        hand.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
        lost.send(*answer_frames(work, CONTRIBUTIONS["hand-2"])[:-1])
        scene.milestones.reduction_begun.wait()
        lost.hang_up()
        resent(hand, CONTRIBUTIONS["hand"], work)
        assert hand.receipt().verdict == Verdict.VERDICT_OK
        outcome = result.result()
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("hand")


def test_an_answer_that_is_asked_for_again_must_be_the_same(scene: Scene) -> None:
    with scene.hand().connect() as hand, scene.hand("hand-2").connect() as lost:
        scene.server.wait_for("hand", "hand-2")
        result = scene.begin("hand", "hand-2")
        work, _ = hand.work()
        lost.work()
        hand.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
        lost.send(*answer_frames(work, CONTRIBUTIONS["hand-2"])[:-1])
        scene.milestones.reduction_begun.wait()
        lost.hang_up()
        resent(hand, CONTRIBUTIONS["a"], work)
        assert "sent again with other content" in hand.receipt().reason
        outcome = result.result()
    assert outcome.reduced is None
    assert outcome.replies == {}


def test_clients_that_vanish_one_after_sending_everything_do_not_hold_up_the_exchange(scene: Scene) -> None:
    """The complete answer would have to come again, and there is nobody left to send it."""
    start_agents(scene.server)
    with scene.hand().connect() as complete, scene.hand("hand-2").connect() as partial:
        scene.server.wait_for("a", "b", "hand", "hand-2")
        result = scene.begin("a", "b", "hand", "hand-2", deadline_s=1000)
        work, _ = complete.work()
        partial.work()
        complete.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
        partial.send(*answer_frames(work, CONTRIBUTIONS["hand-2"])[:-1])
        complete.half_close()
        scene.milestones.disconnected.acquire()  # so everything before it was read
        partial.hang_up()
        outcome = result.result()
    assert outcome.missing == {"hand": "disconnected", "hand-2": "disconnected in the middle of its answer"}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")


def test_a_dead_connection_that_is_noticed_late_does_not_harm_the_one_that_replaced_it() -> None:
    milestones = Milestones()
    with serving(engine=engine_of(large_config("scheduler.reconnect_grace_s=1000"), milestones)) as server:
        scene = Scene(server, milestones)
        with scene.hand() as old, scene.hand() as new:
            old.connect()
            server.wait_for("hand")
            result = scene.begin("hand", deadline_s=1000)
            assert old.response().WhichOneof("message") == "work"  # and reads no further: the server is stuck in its chunks
            new.connect()
            work, _ = new.work()
            frames = answer_frames(work, CONTRIBUTIONS["hand"])
            new.send(*frames[:10])
            old.hang_up()
            milestones.disconnected.acquire()
            new.send(*frames[10:])
            outcome = result.result()
    assert outcome.missing == {}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("hand")


def test_a_client_that_comes_back_in_mid_upload_sends_its_answer_from_the_start() -> None:
    milestones = Milestones()
    with serving(engine=engine_of(large_config("scheduler.reconnect_grace_s=1000"), milestones)) as server:
        scene = Scene(server, milestones)
        with scene.hand() as first, scene.hand() as second, scene.hand("hand-2").connect() as other:
            first.connect()
            server.wait_for("hand", "hand-2")
            result = scene.begin("hand", "hand-2")
            other.work()
            work, _ = first.work()
            first.send(*answer_frames(work, CONTRIBUTIONS["hand"])[:10])
            first.hang_up()
            milestones.disconnected.acquire()
            second.connect()
            work, _ = second.work()
            second.send(*answer_frames(work, CONTRIBUTIONS["hand"]))
            other.send(*answer_frames(work, CONTRIBUTIONS["hand-2"]))
            outcome = result.result()
    assert outcome.missing == {}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("hand", "hand-2")


@pytest.mark.parametrize("chunk_bytes", [10_000, 1 << 20])
def test_an_honest_upload_has_the_same_mean_in_chunks_of_any_size(chunk_bytes: int) -> None:
    config = small_config(f"transport.chunk_bytes={chunk_bytes}")
    with serving(engine=GrpcEngine(config, RUN_ID, LARGE)) as server:
        start_agents(server)
        outcome = server.engine.carry_out(exchange_of({"a": 3.0, "b": 1.0}, MODEL, reply_schema=LARGE))
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == expected("a", "b")


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
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == MODEL.sha256()
