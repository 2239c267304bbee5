"""Connections that break at any moment of an exchange: nothing is computed or sent twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import torch
from cable import Cable, Direction
from harness import (
    RUN_ID,
    FakeWorker,
    Server,
    exchange_of,
    filled,
    mean_of,
    serving,
    small_config,
    start_agent,
    until,
)
from watching import WatchedEngine

from feddkd.client import backoff
from feddkd.client.agent import Agent, Farewell
from feddkd.client.work import Work
from feddkd.exchange import Closing, Exchange, Outcome, Reply, Task
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.messages import Verdict, receipt_message, work_message
from feddkd.transport.payload import Payload

LARGE = Schema([TensorSpec("w", torch.float32, (1 << 18,))])
"""1 MiB."""

CHUNK_BYTES = 16_384
CHUNKS = LARGE.size_bytes // CHUNK_BYTES
MODEL, OURS, OTHERS = (filled(LARGE, seed) for seed in range(3))
MEAN = mean_of({"other": OTHERS, "site": OURS}, {"other": 1.0, "site": 1.0}).sha256()


class GatedWorker(FakeWorker):
    """Replies when it may.

    Attributes:
        begun: released when a computation begins.
        ended: released when one ends.
        gate: set this to let it end.
        computations: how many there were.
    """

    def __init__(self, contribution: Tensors) -> None:
        super().__init__(self._compute, LARGE)
        self.begun = threading.Semaphore(0)
        self.ended = threading.Semaphore(0)
        self.gate = threading.Event()
        self.computations = 0
        self._contribution = contribution

    def _compute(self, task: Task) -> Reply:
        self.computations += 1
        self.begun.release()
        self.gate.wait()
        task.check_cancelled()
        self.ended.release()
        return Reply(self._contribution)


class Scene:
    """A server, a client "site" at the end of a cable, and a client "other" beside it."""

    def __init__(self, server: Server, engine: WatchedEngine, cable: Cable) -> None:
        self.server = server
        self.engine = engine
        self.cable = cable
        self.site = GatedWorker(OURS)
        self.other = GatedWorker(OTHERS)
        server.agent("other", self.other)
        agent = Agent(cable.address, "site", self.site, server._threads, retry_for_s=60)
        self.farewell: Future[Farewell] = start_agent(agent)
        server.wait_for("other", "site")

    def begin(self) -> Future[Outcome]:
        return self.server.begin(exchange())

    def wait_for_return(self, times: int = 1) -> None:
        """Return once the site has come back so many times."""
        until(lambda: self.connections == 1 + times)

    @property
    def connections(self) -> int:
        """How often the site has connected."""
        return sum(client == "site" for client, _ in self.engine.holdings)

    def finish(self) -> None:
        """End the run; both clients have heard everything then."""
        if not self.farewell.done():
            self.server.wait_for("other", "site")
            self.engine.finish(completed=True, reason="the test is over")
        assert self.farewell.result().completed

    def release(self) -> None:
        self.site.gate.set()
        self.other.gate.set()

    def check(self, outcome: Outcome) -> None:
        """The reply counts, and was computed and uploaded once."""
        assert outcome.missing == {}
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == MEAN
        assert self.site.computations == 1
        assert self.engine.chunks["site"] == CHUNKS


def exchange() -> Exchange:
    closing = Closing(1000.0, reconnect_grace_s=1000.0, stall_timeout_s=1000.0)
    return exchange_of(["other", "site"], MODEL, reply_schema=LARGE, closing=closing)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    config = small_config(f"transport.chunk_bytes={CHUNK_BYTES}")
    engine = WatchedEngine(config, RUN_ID, LARGE)
    with serving(engine=engine) as server, Cable(server.address) as cable:
        scene = Scene(server, engine, cable)
        try:
            yield scene
            scene.finish()
        finally:
            scene.release()


def broadcast_bytes(first_byte: int = 0) -> int:
    """What a client is sent of the broadcast, from this byte of it on."""
    payload = Payload(MODEL, CHUNK_BYTES)
    work = work_message(exchange().id, payload, evaluate=False, deadline_s=1000.0)
    return len(work) + sum(map(len, payload.frames(first_byte)))


RECEIPT_BYTES = len(receipt_message(exchange().id, Verdict.VERDICT_OK))


def at_chunk_of_broadcast(
    scene: Scene,
    count: int,
    then: Callable[[], object],
) -> Callable[..., None]:
    """A `Work.receive` that calls `then` once the site has received so many chunks."""
    receive, received = Work.receive, 0

    def receive_and_count(work: Work, message: bytes) -> None:
        nonlocal received
        receive(work, message)
        if work._worker is scene.site:
            received += 1
            if received == count:
                then()

    return receive_and_count


def test_a_break_while_receiving_costs_only_the_rest_of_the_broadcast(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 3 * CHUNKS // 4
    monkeypatch.setattr(Work, "receive", at_chunk_of_broadcast(scene, most, scene.cable.cut))
    scene.release()
    outcome = scene.begin().result()
    scene.check(outcome)
    _, holding = scene.engine.holdings[-1]
    assert holding is not None
    assert holding.size_bytes >= most * CHUNK_BYTES
    limit = 2 * broadcast_bytes() + broadcast_bytes(holding.size_bytes) + 2 * RECEIPT_BYTES
    assert 2 * broadcast_bytes() < outcome.traffic.wire_bytes_down <= limit


def test_breaks_while_computing_cost_neither_computation_nor_broadcast(scene: Scene) -> None:
    result = scene.begin()
    scene.site.begun.acquire()
    for times in range(1, 4):
        scene.cable.cut()
        scene.wait_for_return(times)
    scene.release()
    outcome = result.result()
    scene.check(outcome)
    again = 3 * broadcast_bytes(LARGE.size_bytes)
    expected = 2 * broadcast_bytes() + again + 2 * RECEIPT_BYTES
    assert outcome.traffic.wire_bytes_down == expected
    assert outcome.traffic.payload_bytes_down == 2 * LARGE.size_bytes


def test_a_reply_that_is_ready_while_the_client_is_away_is_sent_once(scene: Scene) -> None:
    result = scene.begin()
    scene.site.begun.acquire()
    scene.cable.unplug()
    scene.engine.losses.acquire()
    scene.release()
    scene.site.ended.acquire()
    scene.cable.plug_in()
    scene.check(result.result())


def test_a_break_while_waiting_for_the_receipt_costs_nothing(
    scene: Scene,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene.site.gate.set()
    result = scene.begin()
    scene.engine.wait_for_chunks(site=CHUNKS)
    scene.cable.cut()
    scene.wait_for_return()
    scene.release()
    outcome = result.result()
    scene.check(outcome)
    assert outcome.traffic.wire_bytes_down == 2 * broadcast_bytes() + 2 * RECEIPT_BYTES
    scene.finish()
    assert not any("not counted" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("part", [0.0, 1e-5, 0.1, 0.5, 0.9, 0.999])
def test_a_break_at_any_byte_costs_no_computation_and_no_chunk(
    scene: Scene,
    direction: Direction,
    part: float,
) -> None:
    scene.cable.cut_at(direction, int(part * LARGE.size_bytes))
    scene.release()
    scene.check(scene.begin().result())
    assert scene.cable.cuts == 1
    assert scene.connections == 2


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_line_that_breaks_again_and_again_gets_there(scene: Scene, direction: Direction) -> None:
    scene.cable.cut_at(direction, LARGE.size_bytes // 4, again=True)
    scene.release()
    outcome = scene.begin().result()
    scene.cable.cut_at(direction, 1 << 40)
    scene.check(outcome)
    assert scene.cable.cuts >= 4
