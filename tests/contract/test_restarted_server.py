"""A server that was started again, and clients that know of exchanges of the process before."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from harness import RUN_ID, FakeWorker, HandClient, Server, answer_frames, exchange_of, filled, serving, small_config, start_agent, until

from feddkd.client import backoff
from feddkd.client.agent import Agent
from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codecs import find
from feddkd.engines.forms import Forms
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import LOOPBACK
from feddkd.engines.traffic_mark import Marked, TrafficMark
from feddkd.errors import RunError, StateError
from feddkd.exchange import Exchange, ExchangeId, Reply, Task
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.frames import is_chunk
from feddkd.transport.messages import Holding, Verdict, failure_message, hello_message, id_from_message, id_to_message, receipt_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK = 1024
FLOATS = Schema([TensorSpec("w", torch.float32, (1200,))])
PAYLOAD, MINE, NEXT = (filled(FLOATS, seed) for seed in range(3))


def numbered(step: int, *clients: str) -> Exchange:
    exchange = exchange_of(list(clients) or ["hand"], PAYLOAD, reply_schema=FLOATS)
    return replace(exchange, id=replace(exchange.id, step=step))


def holding(exchange: Exchange) -> Holding:
    """What a client says that has the whole broadcast."""
    return Holding(exchange.id, Payload(exchange.payload, CHUNK).header.digest, FLOATS.size_bytes)


class Scene:
    """A server that has begun nothing yet, and clients that join it by hand."""

    def __init__(self, server: Server, engine: GrpcEngine) -> None:
        self.server = server
        self.engine = engine
        self._clients: list[HandClient] = []

    def client(self, name: str = "hand", holding: Holding | None = None) -> HandClient:
        client = HandClient(self.server.address, name)
        self._clients.append(client)
        client.open_with(hello_message(client.join().session_token, holding))
        until(lambda: name in self.engine.clients())
        return client

    def close(self) -> None:
        for client in self._clients:
            client.hang_up()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    config = small_config(f"transport.chunk_bytes={CHUNK}")
    engine = GrpcEngine(config, RUN_ID, FLOATS, mark=tmp_path / "mark", incarnation=3)
    with serving(engine=engine) as server:
        scene = Scene(server, engine)
        yield scene
        scene.close()


def undisturbed(exchange: Exchange, work: pb.Work) -> Traffic:
    """What the exchange moves on the wire for one client where nothing breaks."""
    forms = Forms(exchange, CHUNK)
    receipt = receipt_message(exchange.id, Verdict.VERDICT_OK)
    down = len(forms.message("hand")) + forms.payload("hand").frames_bytes + len(receipt)
    return Traffic(wire_bytes_down=down, wire_bytes_up=sum(map(len, answer_frames(work, MINE))))


# An exchange that was open.


@pytest.mark.parametrize("question", ["", "answer", "failure"])
def test_who_holds_the_broadcast_of_the_exchange_that_opens_again_is_sent_none_of_it(question: str, scene: Scene) -> None:
    exchange = numbered(3)
    hand = scene.client(holding=holding(exchange))
    work = pb.Work(id=id_to_message(exchange.id), payload=Payload(PAYLOAD, CHUNK).header)
    frames = answer_frames(work, MINE)
    asked = {"": [], "answer": frames, "failure": [failure_message(exchange.id, "the disk is full")]}[question]
    before = scene.engine.other_traffic().wire_bytes_up
    hand.send(*asked)
    until(lambda: scene.engine.other_traffic().wire_bytes_up == before + sum(map(len, asked)))
    begun = scene.engine.begin(exchange)
    assert hand.response().WhichOneof("message") == "work"  # nobody was told that it is closed
    hand.send(*frames)
    outcome = begun.outcome()
    begun.acknowledge()
    assert not is_chunk(message := hand.receive())
    assert pb.ParticipateResponse.FromString(message).receipt.verdict == Verdict.VERDICT_OK
    assert list(outcome.replies) == ["hand"]
    assert outcome.traffic.payload_bytes_down == FLOATS.size_bytes
    assert outcome.useful == undisturbed(exchange, work)


def test_who_holds_a_part_of_it_is_sent_the_rest(scene: Scene) -> None:
    exchange = numbered(3)
    hand = scene.client(holding=replace(holding(exchange), size_bytes=3 * CHUNK))
    begun = scene.engine.begin(exchange)
    work = hand.response().work
    assert sum(len(hand.receive()) > CHUNK // 2 for _ in range(2)) == 2  # two chunks are left of five
    hand.send(*answer_frames(work, MINE))
    assert begun.outcome().traffic.payload_bytes_down == FLOATS.size_bytes


def test_who_was_sent_the_model_in_place_of_a_step_is_not_sent_either_again(scene: Scene) -> None:
    """Its payload counts as was planned; the model itself is on the wire of the process before, and lost."""
    server = Broadcaster(CHUNK, 3)
    codec = find("int8", unbiased=False)
    sent, broadcast = server.broadcast(codec, PAYLOAD, ["hand"])
    server.received(broadcast, sent, ["hand"])
    sent, broadcast = server.broadcast(codec, NEXT, ["hand"])
    assert broadcast.step is not None
    exchange = replace(numbered(3), payload=sent, broadcast=broadcast)
    whole = Payload.of(broadcast.whole)
    hand = scene.client(holding=Holding(exchange.id, whole.header.digest, whole.size_bytes))
    begun = scene.engine.begin(exchange)
    work = hand.response().work
    assert (work.replica.base_sha256, work.payload.digest) == (b"", whole.header.digest)
    hand.send(*answer_frames(work, MINE))
    traffic = begun.outcome().traffic
    assert traffic.payload_bytes_down == broadcast.step.size_bytes
    assert traffic.snapshot_bytes_down == 0


def test_clients_do_not_compute_again_for_a_server_that_died_before_it_kept_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All had replied; the bytes of the first process are the useful ones."""
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    computed: list[str] = []

    def worker(name: str, contribution: Tensors) -> FakeWorker:
        def respond(_: Task) -> Reply:
            computed.append(name)
            return Reply(contribution)

        return FakeWorker(respond, FLOATS)

    config, exchange = small_config(f"transport.chunk_bytes={CHUNK}"), numbered(3, "a", "b")
    with serving(engine=GrpcEngine(config, RUN_ID, FLOATS, mark=tmp_path / "mark")) as first:
        agents = [start_agent(Agent(first.address, name, worker(name, part), first._threads)) for name, part in (("a", MINE), ("b", NEXT))]
        first.wait_for("a", "b")
        lost = first.engine.begin(exchange).outcome()
        first.engine._server.stop()  # without a farewell, as when the process dies
        found = TrafficMark.read(tmp_path / "mark")
        second = GrpcEngine(config, RUN_ID, FLOATS, incarnation=2, owners=first.engine.owners())
        second.start(LOOPBACK, int(first.address.rpartition(":")[2]))
        assert second.wait_for(["a", "b"], 1000.0)
        outcome = second.carry_out(exchange)
        second.finish(True, "done")
        assert [agent.result().reason for agent in agents] == ["done", "done"]
        first.engine._finished = True
    assert sorted(computed) == ["a", "b"]
    assert outcome.reduced is not None
    assert lost.reduced is not None
    assert outcome.reduced.sha256() == lost.reduced.sha256()
    assert outcome.useful == lost.useful
    assert outcome.traffic.payload_bytes_down == lost.traffic.payload_bytes_down
    # So what the second process has moved is what the crash has cost: no broadcast, but every reply once more.
    assert found == Marked(exchange.id, lost.useful, first.engine.other_traffic())
    assert outcome.traffic.wire_bytes_down < FLOATS.size_bytes
    assert 2 * FLOATS.size_bytes < outcome.traffic.wire_bytes_up < 3 * FLOATS.size_bytes


# Exchanges that were over.


@pytest.mark.parametrize("remembered_first", [True, False])
def test_who_was_not_told_that_its_reply_counted_is_told_now(remembered_first: bool, scene: Scene) -> None:
    last = numbered(2)
    if remembered_first:
        scene.engine.remember({"hand": last.id})
    hand = scene.client(holding=holding(last))
    if not remembered_first:
        scene.engine.remember({"hand": last.id})
    assert hand.receipt() == pb.Receipt(id=id_to_message(last.id), verdict=Verdict.VERDICT_OK)
    work = pb.Work(id=id_to_message(last.id), payload=Payload(PAYLOAD, CHUNK).header)
    hand.send(*answer_frames(work, MINE))
    assert hand.receipt() == pb.Receipt(id=id_to_message(last.id), verdict=Verdict.VERDICT_OK)
    begun = scene.engine.begin(numbered(3))
    work, _ = hand.work()
    hand.send(*answer_frames(work, MINE))
    assert begun.outcome().missing == {}


def test_who_was_left_out_before_is_told_when_the_run_has_gone_on(scene: Scene) -> None:
    old = numbered(1)
    scene.engine.remember({"hand": numbered(0).id})
    hand, other = scene.client(holding=holding(old)), scene.client("other")
    begun = scene.engine.begin(numbered(2, "other"))
    work, _ = other.work()
    other.send(*answer_frames(work, MINE))
    begun.acknowledge()
    receipt = hand.receipt()
    assert (id_from_message(receipt.id), receipt.verdict) == (old.id, Verdict.VERDICT_FAILED_PRECONDITION)
    assert not receipt.HasField("current")


def test_who_asked_and_has_gone_is_not_answered(scene: Scene) -> None:
    hand = scene.client(holding=holding(numbered(3)))
    hand.hang_up()
    until(lambda: not scene.engine.clients())
    hand = scene.client()  # another process: it holds nothing
    begun = scene.engine.begin(numbered(3))
    work, received = hand.work()
    assert received.sha256() == PAYLOAD.sha256()
    hand.send(*answer_frames(work, MINE))
    assert begun.outcome().missing == {}


def test_a_reply_that_comes_after_an_abort_is_kept_for_the_next_process(scene: Scene) -> None:
    exchange = numbered(3)
    hand = scene.client()
    begun = scene.engine.begin(exchange)
    work, _ = hand.work()
    scene.engine.abort("stopped")
    with pytest.raises(RunError):
        begun.outcome()
    until(lambda: scene.engine.states().working == 0)
    before, frames = scene.engine.other_traffic().wire_bytes_up, answer_frames(work, MINE)
    hand.send(*frames)
    until(lambda: scene.engine.other_traffic().wire_bytes_up >= before + sum(map(len, frames)))
    scene.engine.finish(completed=False, reason="stopped", paused=True)
    assert hand.response().WhichOneof("message") == "farewell"  # nobody was told that the exchange is closed


def test_an_exchange_of_another_run_never_opens_again(scene: Scene) -> None:
    hand = scene.client(holding=replace(holding(numbered(3)), exchange=ExchangeId("another", 1, 0, "local_train", 3)))
    assert hand.receipt().verdict == Verdict.VERDICT_FAILED_PRECONDITION


# What the next process finds.


def test_the_manifest_says_which_process_it_is(scene: Scene) -> None:
    with HandClient(scene.server.address, "hand") as hand:
        assert hand.join().manifest.incarnation == 3


def test_the_mark_has_every_byte_on_the_wire(scene: Scene, tmp_path: Path) -> None:
    def marked() -> Marked | None:
        return TrafficMark.read(tmp_path / "mark")

    hand, other = scene.client(), scene.client("other")
    assert marked() == Marked(None, Traffic(), scene.engine.other_traffic(), incarnation=3)
    exchange = numbered(3, "hand", "other")
    begun = scene.engine.begin(exchange)
    for client in (hand, other):
        client.send(*answer_frames(client.work()[0], MINE))
    traffic = begun.outcome().traffic
    expected = Traffic(wire_bytes_down=traffic.wire_bytes_down, wire_bytes_up=traffic.wire_bytes_up)
    assert marked() == Marked(exchange.id, expected, scene.engine.other_traffic(), incarnation=3)
    begun.acknowledge()
    assert marked() == Marked(exchange.id, expected, scene.engine.other_traffic(), incarnation=3)  # until the next one begins
    several = [scene.engine.begin(numbered(step, client)) for step, client in ((4, "hand"), (5, "other"))]
    for client in (hand, other):
        client.send(failure_message(id_from_message(client.work()[0].id), "enough"))
    traffics = [each.outcome().traffic for each in several]
    found = marked()
    assert found is not None
    assert found.exchange == numbered(4).id
    assert found.open.wire_bytes == sum(traffic.wire_bytes for traffic in traffics)


def test_an_id_belongs_to_the_client_that_had_it_before(scene: Scene) -> None:
    scene.client().hang_up()
    owners = scene.engine.owners()
    assert list(owners) == ["hand"]
    engine = GrpcEngine(small_config(), RUN_ID, FLOATS, incarnation=4, owners=owners)
    with serving(engine=engine) as server, HandClient(server.address, "hand") as hand:
        assert engine.owners() == owners  # it may be killed before anybody has come back
        with pytest.raises(grpc.RpcError, match=r"the id is free in \d+ s"):
            hand.join(instance="an impostor")
        hand.connect()
        assert engine.wait_for(["hand"], 1000.0)
        assert engine.owners() == owners


def test_an_owner_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(StateError, match=r"^'nobody' does not name the owner of a client id$"):
        GrpcEngine(small_config(), RUN_ID, FLOATS, owners={"hand": "nobody"})


# Who is there.


def waiting(scene: Scene, *clients: str) -> Future[bool]:
    return scene.server.background(lambda: scene.engine.wait_for(clients, 1000.0))


def test_the_clients_of_an_exchange_are_waited_for_by_name(scene: Scene) -> None:
    assert scene.engine.wait_for([], 0.0)
    assert not scene.engine.wait_for(["hand"], 0.0)
    waited = waiting(scene, "hand", "other")
    scene.client("stranger")
    hand = scene.client()
    assert not scene.engine.wait_for(["hand", "other"], 0.0)
    hand.hang_up()
    until(lambda: "hand" not in scene.engine.clients())
    scene.client("other")
    assert not waited.done()
    scene.client()
    assert waited.result()


def test_an_abort_ends_a_wait_for_named_clients(scene: Scene) -> None:
    waited = waiting(scene, "hand")
    scene.engine.abort("the operator stopped it")
    with pytest.raises(RunError, match=r"^the operator stopped it$"):
        waited.result()


def test_a_status_says_who_was_heard_and_who_is_waited_for(scene: Scene) -> None:
    assert (scene.engine.last_heard(), scene.engine.waiting_for()) == ({}, [])
    hand, other = scene.client(), scene.client("other")
    assert list(scene.engine.last_heard()) == ["hand", "other"]
    begun = scene.engine.begin(numbered(0, "hand", "other", "stranger"))
    until(lambda: scene.engine.waiting_for() == ["hand", "other"])  # one that never joined is given up at once
    other.hang_up()
    until(lambda: scene.engine.waiting_for() == ["hand"])
    work, _ = hand.work()
    hand.send(*answer_frames(work, MINE))
    begun.outcome()
    assert scene.engine.waiting_for() == []
    assert list(scene.engine.last_heard()) == ["hand", "other"]
    assert all(0 <= seconds < 1000 for seconds in scene.engine.last_heard().values())
