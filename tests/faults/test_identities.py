"""Who a client is: frozen and restarted processes, impostors, and names that are made up."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest
from either_engine import scheduler_on
from harness import (
    RUN_ID,
    HandClient,
    Recorder,
    Server,
    answer_frames,
    answering,
    exchange_of,
    reasons,
    run_in_process,
    serving,
    small_config,
    until,
)
from live import HONEST, MODEL, OURS, Scene, status_of
from watching import WatchedEngine

from feddkd.client.simulated import simulated_workers
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, ExampleCounts, Outcome
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import ExchangeRecord
from feddkd.transport import sessions, stream
from feddkd.transport.messages import CLIENT_HEARTBEAT

LASTING = Closing(1000.0, reconnect_grace_s=1000.0, stall_timeout_s=1000.0)
STATES = ["idle", "computing", "uploading"]
CHUNKS = len(MODEL.schema.chunks(small_config().transport.chunk_bytes))


def begin(server: Server, *clients: str, closing: Closing = LASTING) -> Future[Outcome]:
    return server.begin(exchange_of(clients, MODEL, closing=closing))


class Frozen:
    """A client "hand" whose process says nothing more; its connection stays.

    Attributes:
        result: the exchange that it takes part in, if it has begun.
    """

    def __init__(self, server: Server, engine: WatchedEngine, hand: HandClient, state: str) -> None:
        """Bring it into one of STATES."""
        self.result: Future[Outcome] | None = None
        self._server = server
        hand.connect()
        server.wait_for("hand", "honest")
        if state == "idle":
            return
        self.result = begin(server, "hand", "honest")
        work, _ = hand.work()
        if state == "uploading":
            frames = answer_frames(work, OURS)
            hand.send(*frames[:-1])
            engine.wait_for_chunks(hand=CHUNKS - 1)

    def check(self, new: HandClient) -> None:
        """The process that has taken over takes part."""
        result = self.result or begin(self._server, "hand", "honest")
        work, _ = new.work()
        new.send(*answer_frames(work, OURS))
        assert result.result().missing == {}


@pytest.mark.parametrize("state", STATES)
def test_a_restarted_process_takes_the_id_of_the_frozen_one_over_at_once(state: str) -> None:
    engine = WatchedEngine(small_config(), RUN_ID, MODEL.schema)
    with serving(engine=engine) as server, HandClient(server.address) as old:
        server.agent("honest", answering(HONEST))
        frozen = Frozen(server, engine, old, state)
        with HandClient(server.address) as new:
            new.connect()
            frozen.check(new)
        assert old.status() is grpc.StatusCode.ABORTED
        assert engine.chunks["honest"] == CHUNKS  # it had to send them once


@pytest.mark.parametrize("state", STATES)
def test_a_process_that_does_not_know_the_secret_gets_the_id_only_after_the_hold(
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = WatchedEngine(small_config(), RUN_ID, MODEL.schema)
    with serving(engine=engine) as server, HandClient(server.address) as old:
        server.agent("honest", answering(HONEST))
        frozen = Frozen(server, engine, old, state)
        with HandClient(server.address) as new:
            code, details = status_of(lambda: new.join(instance="another"))
            assert code is grpc.StatusCode.ALREADY_EXISTS
            assert "'hand'" in details
            monkeypatch.setattr(sessions, "ID_HOLD_S", 0.0)
            new.open(new.join(instance="another").session_token)
            frozen.check(new)
        assert old.status() is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("state", ["computing", "uploading"])
def test_a_frozen_process_is_noticed_by_its_silence(
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = WatchedEngine(small_config(), RUN_ID, MODEL.schema)
    with serving(engine=engine) as server, HandClient(server.address) as hand:
        hand.connect()
        server.wait_for("hand")
        result = begin(server, "hand", closing=Closing(1000.0, stall_timeout_s=1000.0))
        work, _ = hand.work()
        monkeypatch.setattr(stream, "SILENCE_LIMIT_S", 0.05)  # after its next message
        if state == "uploading":
            hand.send(*answer_frames(work, OURS)[:-1])
        else:
            hand.send(CLIENT_HEARTBEAT)
        outcome = result.result()
        assert hand.status() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no message of the client" in hand.details()
    assert reasons(outcome) == {"hand": "not connected"}


# Impostors


@pytest.mark.parametrize("instance", ["impostor", ""])
@pytest.mark.parametrize("examples", [1, 1000])
def test_nobody_gets_the_id_of_a_client_that_has_joined_and_not_yet_connected(
    scene: Scene,
    instance: str,
    examples: int,
) -> None:
    with scene.hand() as owner, scene.hand() as impostor:
        token = owner.join().session_token
        code, _ = status_of(lambda: impostor.join(examples=examples, instance=instance))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        owner.open(token)
        scene.server.wait_for("hand", "honest")
        assert scene.server.engine.clients() == {"hand": ExampleCounts(1), "honest": ExampleCounts(1)}
        assert_counts(scene, owner)


@pytest.mark.parametrize("instance", ["impostor", ""])
def test_nobody_gets_the_id_of_a_client_that_is_away(scene: Scene, instance: str) -> None:
    with scene.hand() as first, scene.hand() as owner, scene.hand() as impostor:
        first.connect()
        scene.server.wait_for("hand", "honest")
        result = begin(scene.server, "hand", "honest")
        first.work()
        first.hang_up()
        scene.server.wait_for("honest")
        code, details = status_of(lambda: impostor.join(instance=instance))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert "is away" in details
        owner.connect()
        work, _ = owner.work()
        owner.send(*answer_frames(work, OURS))
        outcome = result.result()
    assert outcome.missing == {}


def test_the_token_of_an_earlier_session_opens_nothing(scene: Scene) -> None:
    with scene.hand() as first, scene.hand() as owner, scene.hand() as thief:
        stolen = first.join().session_token
        owner.connect()
        scene.server.wait_for("hand", "honest")
        assert thief.open(stolen).status() is grpc.StatusCode.UNAUTHENTICATED
        assert_counts(scene, owner)


def assert_counts(scene: Scene, hand: HandClient) -> None:
    """The client is asked, and its reply is counted."""
    result = scene.begin("hand", "honest")
    work, _ = hand.work()
    hand.send(*answer_frames(work, OURS))
    assert result.result().missing == {}


# Names that are made up


def join_as(hand: HandClient, name: str) -> None:
    hand.client_id = name
    hand.join(instance=name)


def admit(scene: Scene, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let at most so many clients join, as `scheduler.max_clients` does."""
    server = scene.server.engine._server
    monkeypatch.setattr(server._joining, "_admission", dataclasses.replace(server._joining._admission, max_clients=limit))


def test_names_that_are_made_up_make_room_for_honest_clients(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 30
    admit(scene, limit, monkeypatch)
    with scene.hand() as flood, scene.hand() as hand:
        for number in range(limit - 1):
            join_as(flood, f"made-up-{number}")
        code, details = status_of(hand.join)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{limit} clients" in details
        monkeypatch.setattr(sessions, "CONNECT_TIMEOUT_S", 0.0)  # as if it had passed
        hand.connect()
        scene.server.wait_for("hand", "honest")
        assert_counts(scene, hand)


def test_clients_that_took_part_keep_their_ids_while_names_are_made_up(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 30
    admit(scene, limit, monkeypatch)
    monkeypatch.setattr(sessions, "CONNECT_TIMEOUT_S", 0.0)
    with scene.hand() as first, scene.hand() as again, scene.hand() as flood:
        token = first.join().session_token
        first.open(token)
        scene.server.wait_for("hand", "honest")
        first.hang_up()
        scene.server.wait_for("honest")
        for number in range(3 * limit):
            join_as(flood, f"made-up-{number}")
        again.schema = MODEL.schema
        again.open(token)  # its session is still there
        scene.server.wait_for("hand", "honest")
        assert_counts(scene, again)


def test_clients_above_the_limit_are_refused_and_those_within_it_complete_their_exchanges(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admit(scene, 2, monkeypatch)
    with scene.hand() as hand, scene.hand("late") as late:
        hand.connect()
        scene.server.wait_for("hand", "honest")
        for _ in range(2):
            code, details = status_of(late.join)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert details == "2 clients have joined, as many as the server's scheduler.max_clients admits"
            assert_counts(scene, hand)
    assert set(scene.server.engine.last_heard()) == {"hand", "honest"}


class Flood(Recorder):
    """Joins under made-up names, beside a run that does not overtake it.

    Attributes:
        joined: how many names there are so far.
    """

    NAMES = 1000
    EXCHANGES = 6
    """By then all names have joined."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.joined = 0
        self._thread = threading.Thread(target=self._join_all, args=[address])
        self._thread.start()

    def exchange_done(self, record: ExchangeRecord) -> None:
        super().exchange_done(record)
        share = min(len(self.exchanges), self.EXCHANGES) / self.EXCHANGES
        until(lambda: self.joined >= share * self.NAMES)

    def _join_all(self, address: str) -> None:
        with HandClient(address) as hand:
            for number in range(self.NAMES):
                join_as(hand, f"made-up-{number}")
                self.joined += 1


def test_an_honest_run_is_not_disturbed_by_a_thousand_made_up_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "CONNECT_TIMEOUT_S", 1e9)  # all of them stay
    config = small_config("scheduler.wait_for_clients=4", "scheduler.min_clients=4")
    engine = GrpcEngine(config, RUN_ID, build_initial(config).model.schema)
    with serving(engine=engine) as server:
        flood = Flood(server.address)
        workers = simulated_workers(config, tmp_path / "clients")
        for client, worker in workers.items():
            server.agent(client, worker)
        record = scheduler_on(engine, config, [flood]).run(build_initial(config).model)
        assert engine.num_joined == Flood.NAMES + len(workers)
    assert record.rounds_missed == {}
    assert record.model.sha256() == run_in_process(config, tmp_path / "reference").model.sha256()
