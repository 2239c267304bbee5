"""Connections that break and clients that restart while payloads are encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cable import Cable, Direction
from gated import Moment, StartClient
from harness import (
    RUN_ID,
    SCHEMA,
    EngineProxy,
    FakeWorker,
    HandClient,
    Recorder,
    Server,
    answer_frames,
    exchange_of,
    filled,
    run_in_process,
    serving,
    small_config,
    start_agent,
    until,
)
from watching import WatchedEngine

from feddkd import algorithms
from feddkd.client import backoff
from feddkd.client.agent import Agent, Farewell
from feddkd.client.work import Work
from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Encoding
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, Exchange, Outcome, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine, Keep
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.payload import Payload

LARGE = Schema([TensorSpec("w", torch.float32, (1 << 20,)), TensorSpec("mean", torch.float32, (1 << 10,), trainable=False)])
"""4 MiB: codes of a byte an element are more than a connection's buffers hold."""

CHUNK_BYTES = 65_536
INT8 = find("int8", unbiased=True)
MODEL, OTHER, UPDATE = (filled(LARGE, seed) for seed in range(3))
CLOSING = Closing(1000.0, reconnect_grace_s=1000.0, stall_timeout_s=1000.0)


class Worker(FakeWorker):
    """Keeps the hash of what it is sent."""

    def __init__(self) -> None:
        super().__init__(self._compute, LARGE)
        self.seen: list[str] = []

    def _compute(self, task: Task) -> Reply:
        self.seen.append(task.payload.sha256())
        return Reply(UPDATE)


class Scene:
    """A server, and a client "site" at the end of a cable."""

    def __init__(self, server: Server, engine: WatchedEngine, cable: Cable) -> None:
        self.server, self.engine, self.cable = server, engine, cable
        self.worker = Worker()
        self.broadcaster = Broadcaster(CHUNK_BYTES, 3)
        self.round = 0
        agent = Agent(cable.address, "site", self.worker, server._threads, retry_for_s=60)
        self.farewell: Future[Farewell] = start_agent(agent)
        server.wait_for("site")

    def describe(self, seed: int) -> Exchange:
        """An exchange that is encoded both ways."""
        sent, broadcast = self.broadcaster.broadcast(INT8, filled(LARGE, seed), ["site"])
        self.broadcaster.received(broadcast, sent, ["site"])
        self.round += 1
        exchange = exchange_of(["site"], sent, reply_schema=LARGE, round_number=self.round, closing=CLOSING)
        return replace(exchange, broadcast=broadcast, reply_codec=INT8)

    def check(self, exchange: Exchange, outcome: Outcome) -> None:
        """The reply counts once, with the right bits, and no whole model was sent for it."""
        assert outcome.missing == {}
        assert outcome.reduced is not None
        decoded = Encoding(LARGE, CHUNK_BYTES, exchange.reply_coding("site")).encode(UPDATE).decode()
        assert outcome.reduced["w"].equal(decoded["w"])
        assert outcome.traffic.snapshot_bytes_down == 0
        assert self.worker.seen[-1] == exchange.payload.sha256()

    def finish(self) -> None:
        self.server.wait_for("site")
        self.engine.finish(completed=True, reason="the test is over")
        assert self.farewell.result().completed


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    engine = WatchedEngine(small_config(f"transport.chunk_bytes={CHUNK_BYTES}"), RUN_ID, LARGE)
    with serving(engine=engine) as server, Cable(server.address) as cable:
        scene = Scene(server, engine, cable)
        yield scene
        scene.finish()


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("part", [1e-5, 0.3, 0.6, 0.9])
def test_a_break_at_any_byte_of_a_code_costs_no_computation_and_no_chunk(scene: Scene, direction: Direction, part: float) -> None:
    first = scene.describe(0)
    assert scene.engine.carry_out(first).missing == {}
    chunks = scene.engine.chunks["site"]
    second = scene.describe(1)
    assert second.broadcast is not None
    assert second.broadcast.step is not None
    size = second.broadcast.step.size_bytes if direction == "down" else Encoding(LARGE, CHUNK_BYTES, second.reply_coding("site")).size_bytes
    assert size > 1 << 20
    scene.cable.cut_at(direction, int(part * size))
    scene.check(second, scene.engine.carry_out(second))
    assert scene.cable.cuts == 1
    assert len(scene.engine.holdings) == 2
    assert len(scene.worker.seen) == 2
    assert scene.engine.chunks["site"] - chunks == Payload(UPDATE, CHUNK_BYTES).num_frames


def test_a_break_while_receiving_a_code_costs_only_the_rest_of_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.engine.carry_out(scene.describe(0))
    second = scene.describe(1)
    assert second.broadcast is not None
    assert second.broadcast.step is not None
    payload = Payload.of(second.broadcast.step)
    most = 3 * payload.num_frames // 4
    receive, received = Work.receive, 0

    def receive_and_cut(work: Work, message: bytes) -> None:
        nonlocal received
        receive(work, message)
        received += 1
        if received == most:
            scene.cable.cut()

    monkeypatch.setattr(Work, "receive", receive_and_cut)
    outcome = scene.engine.carry_out(second)
    scene.check(second, outcome)
    _, holding = scene.engine.holdings[-1]
    assert holding is not None
    assert holding.size_bytes >= payload.encoding.pieces[most - 1].stop
    rest = sum(map(len, payload.frames(holding.size_bytes)))
    assert outcome.traffic.wire_bytes_down < payload.frames_bytes + rest + 3000  # headers, and a receipt
    assert outcome.traffic.payload_bytes_down <= 2 * payload.size_bytes


def test_a_line_that_breaks_again_and_again_gets_there(scene: Scene) -> None:
    scene.engine.carry_out(scene.describe(0))
    second = scene.describe(1)
    scene.cable.cut_at("down", 400_000, again=True)
    outcome = scene.engine.carry_out(second)
    scene.cable.cut_at("down", 1 << 40)
    scene.check(second, outcome)
    assert scene.cable.cuts >= 2
    assert len(scene.worker.seen) == 2


# Clients that restart.

NAMES = ["client-0", "client-1", "client-2"]
CODECS = ("communication.up=eden2", "communication.down=int8")
FEDERATION = ("rounds=2", "partition.clients=3", "partition.labels=4", "scheduler.wait_for_clients=3", "data.test_set=false")


class Interrupted(EngineProxy):
    """Calls a function before one exchange."""

    def __init__(self, engine: Engine, moment: Moment, act: Callable[[], None]) -> None:
        super().__init__(engine)
        self._moment = moment
        self._act = act

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        if (exchange.id.name, exchange.id.round, exchange.id.step) == (self._moment.exchange, self._moment.round, self._moment.step):
            self._act()
        return super().carry_out(exchange, keep)


@pytest.mark.parametrize("start", ["average", "previous"])
@pytest.mark.parametrize(("exchange", "step"), [("local_train", 0), ("dkd_step", 1)])
def test_a_client_that_restarts_between_exchanges_asks_for_the_model_and_goes_on(
    start: str, exchange: str, step: int, tmp_path: Path, start_client: StartClient
) -> None:
    """Its replica is gone, its teacher is not: the outcome is as if it had not restarted."""
    config = small_config(*FEDERATION, *CODECS, f"dkd.start={start}", "scheduler.reconnect_grace_s=60")
    expected = run_in_process(config, tmp_path / "reference").model.sha256()
    (tmp_path / "config.toml").write_text(config.to_toml())
    model, recorder, moment = build_initial(config).model, Recorder(), Moment("client-1", exchange, 2, step)
    with serving(engine=GrpcEngine(config, RUN_ID, model.schema)) as server:
        start_client(server.address, [0, 2])
        running = [start_client(server.address, [1])]

        def restart() -> None:
            running.pop().kill()
            running.append(start_client(server.address, [1]))
            server.wait_for(*NAMES)

        engine = Interrupted(server.engine, moment, restart)
        scheduler = Scheduler(config, algorithms.build(config), engine, run_id=RUN_ID, observers=[recorder])
        record = server.background(lambda: scheduler.run(model)).result()
    check_run(recorder, moment, model.schema)
    assert record.model.sha256() == expected
    assert record.not_delivered == {}


def check_run(recorder: Recorder, moment: Moment, schema: Schema) -> None:
    """Nobody was missing, and one whole model was sent and lost, to the client that had lost its own."""
    assert recorder.failures == []
    for record in recorder.exchanges:
        assert record.clients_missing == {}
        if record.id.round == 1 and record.id.name == "local_train":
            assert record.traffic.snapshot_bytes_down == 3 * schema.size_bytes
        else:
            here = (record.id.name, record.id.round, record.id.step) == (moment.exchange, moment.round, moment.step)
            assert record.traffic.snapshot_bytes_down == 0  # no such client was to be expected
            assert (record.lost.wire_bytes_down > schema.size_bytes) == here, record.id


@pytest.mark.usefixtures("importable_tests")
def test_a_client_that_is_killed_in_the_middle_of_an_exchange_asks_for_the_model_and_computes_again(
    tmp_path: Path, start_client: StartClient
) -> None:
    config = small_config(*FEDERATION, *CODECS, "dkd.start=average", "scheduler.reconnect_grace_s=60", "algorithm.name=gated:GatedFedDKD")
    expected = run_in_process(config, tmp_path / "reference").model.sha256()
    (tmp_path / "config.toml").write_text(config.to_toml())
    model, recorder, moment = build_initial(config).model, Recorder(), Moment("client-1", "dkd_step", 2, 1)
    with serving(engine=GrpcEngine(config, RUN_ID, model.schema)) as server:
        start_client(server.address, [0, 2])
        doomed = start_client(server.address, [1], [moment])
        scheduler = Scheduler(config, algorithms.build(config), server.engine, run_id=RUN_ID, observers=[recorder])
        running = server.background(lambda: scheduler.run(model))
        doomed.wait_at(moment)
        doomed.kill()
        start_client(server.address, [1])
        record = running.result()
    check_run(recorder, moment, model.schema)
    assert record.model.sha256() == expected


def test_a_client_that_restarts_while_it_replies_to_a_broadcast_without_bytes_starts_over() -> None:
    """It has the broadcast of zero bytes only if it says so: a new process has neither that nor the reply."""
    broadcaster, model = Broadcaster(1024, 3), filled(SCHEMA, 1)
    sent, broadcast = broadcaster.broadcast(INT8, model, ["hand"])
    broadcaster.received(broadcast, sent, ["hand"])
    sent, broadcast = broadcaster.broadcast(INT8, model, ["hand"])
    exchange = replace(exchange_of(["hand"], sent, closing=CLOSING), broadcast=broadcast)
    with serving(small_config("transport.chunk_bytes=1024")) as server:
        with HandClient(server.address) as before:
            before.connect()
            server.wait_for("hand")
            begun = server.begin(exchange)
            work = before.response().work
            assert work.payload.size_bytes == 0
            header, first, *_ = answer_frames(work, filled(SCHEMA, 2))
            before.send(header, first)
            until(lambda: server.engine.of_client["hand"]._collection.contributions["hand"].received_bytes > 0)
        with HandClient(server.address) as after:
            after.connect()
            response = after.response()
            assert response.WhichOneof("message") == "work"
            after.send(*answer_frames(response.work, filled(SCHEMA, 3)))
            outcome = begun.result()
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == filled(SCHEMA, 3).sha256()
