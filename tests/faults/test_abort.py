"""An abort ends a run at once, at every point of it, on both engines, without another try."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

import pytest
from either_engine import ENGINES, Zeros, engine_with, scheduler_on
from harness import (
    RUN_ID,
    FakeWorker,
    HandClient,
    Recorder,
    answer_frames,
    exchange_of,
    filled,
    serving,
    small_config,
)
from watching import WatchedEngine, WatchedMean

from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import RunError
from feddkd.exchange import DELIVER, Closing, Evaluation, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Evaluator, Extensions
from feddkd.tensors import Tensors

REASON = "the server was stopped"
NAMES = ["a", "b"]
CONFIG = small_config(
    "algorithm.name=fedavg",
    "scheduler.min_clients=2",
    "scheduler.pause_timeout_s=1000",
)


@cache
def zeros() -> Zeros:
    return Zeros(CONFIG)


def run(
    engine: Engine,
    recorder: Recorder | None = None,
    *,
    evaluator: Evaluator | None = None,
    extensions: Extensions | None = None,
) -> RunRecord:
    """A run of the connected clients."""
    scheduler = scheduler_on(
        engine,
        CONFIG,
        [recorder or Recorder()],
        evaluator=evaluator,
        extensions=extensions,
    )
    return scheduler.run(build_initial(CONFIG).model)


def in_background(work: Callable[[], RunRecord]) -> Future[RunRecord]:
    """Run in a thread; what it raises is in the future."""
    future: Future[RunRecord] = Future()

    def go() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # it belongs to the test
            future.set_exception(error)

    threading.Thread(target=go, daemon=True).start()
    return future


def assert_aborted(work: Callable[[], object]) -> None:
    with pytest.raises(RunError) as stopped:
        work()
    assert type(stopped.value) is RunError
    assert str(stopped.value) == REASON


class Clients:
    """Honest clients that take part in a run.

    Attributes:
        tasks: all that they were asked, in the order in which they began.
    """

    def __init__(self, respond: Callable[[str, Task], Reply] | None = None) -> None:
        self.tasks: list[Task] = []
        self._then = respond or (lambda _, task: zeros().reply(task))

    def workers(self) -> dict[str, FakeWorker]:
        return {name: FakeWorker(self._responding(name), zeros().schema) for name in NAMES}

    def _responding(self, name: str) -> Callable[[Task], Reply]:
        def respond(task: Task) -> Reply:
            self.tasks.append(task)
            return self._then(name, task)

        return respond


class Calling(Recorder):
    """Calls a function at one event of a run, the first time that it comes."""

    def __init__(self, event: str) -> None:
        super().__init__()
        self.then: Callable[[], object] = lambda: None
        self.come = False
        told = getattr(self, event)

        def called(*args: Any) -> None:
            told(*args)
            if not self.come:
                self.come = True
                self.then()

        setattr(self, event, called)


# Between exchanges


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize(
    "event",
    [
        "engine_ready",
        "run_started",
        "round_started",
        "exchange_done",
        "round_finished",
        "round_evaluated",
        "round_done",
    ],
)
def test_an_abort_between_two_steps_of_a_run_ends_it_before_the_next(
    engine_name: str,
    event: str,
) -> None:
    clients, recorder = Clients(), Calling(event)
    with engine_with(engine_name, CONFIG, clients.workers()) as engine:
        evaluated: list[Tensors] = []
        done: list[tuple[int, int]] = []

        def evaluate(model: Tensors, _: Callable[[], None]) -> Evaluation:
            evaluated.append(model)
            return Evaluation(10, 5, 1.0)

        def abort() -> None:
            engine.abort(REASON)
            done.append((len(clients.tasks), len(evaluated)))

        recorder.then = abort
        assert_aborted(lambda: run(engine, recorder, evaluator=evaluate))
        assert done == [(len(clients.tasks), len(evaluated))]
    assert recorder.failures == []
    assert recorder.run is None


@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_abort_of_a_run_whose_round_failed_is_the_reason_that_it_gives(
    engine_name: str,
) -> None:
    def fail(name: str, task: Task) -> Reply:
        raise RuntimeError("no data")

    clients, recorder = Clients(fail), Calling("round_failed")
    with engine_with(engine_name, CONFIG, clients.workers()) as engine:
        recorder.then = lambda: engine.abort(REASON)
        assert_aborted(lambda: run(engine, recorder))
    assert recorder.come


# Within an exchange


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("exchange", ["local_train", DELIVER])
def test_an_abort_while_a_client_computes_ends_the_run_though_the_client_replies(
    engine_name: str,
    client: str,
    exchange: str,
) -> None:
    def respond(name: str, task: Task) -> Reply:
        if (name, task.id.name) == (client, exchange):
            engine.abort(REASON)
        return zeros().reply(task)

    clients, recorder = Clients(respond), Recorder()
    with engine_with(engine_name, CONFIG, clients.workers()) as engine:
        assert_aborted(lambda: run(engine, recorder))
    assert recorder.failures == []
    assert recorder.run is None
    assert {task.id.attempt for task in clients.tasks} == {0}


@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_abort_does_not_wait_for_a_client_that_computes(engine_name: str) -> None:
    begun = threading.Event()

    def respond(name: str, task: Task) -> Reply:
        begun.set()
        task.cancelled.wait()
        task.check_cancelled()
        raise AssertionError

    clients = Clients(respond)
    with engine_with(engine_name, CONFIG, clients.workers()) as engine:
        result = in_background(lambda: run(engine))
        begun.wait()
        engine.abort(REASON)
        assert_aborted(result.result)


@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_abort_in_a_reduction_ends_the_run(engine_name: str) -> None:
    rule, recorder = WatchedMean.held(), Recorder()
    with engine_with(engine_name, CONFIG, Clients().workers()) as engine:
        result = in_background(lambda: run(engine, recorder, extensions=Extensions(rule=rule)))
        rule.begun.wait()
        engine.abort(REASON)
        if engine_name == "grpc":
            assert_aborted(result.result)  # while the reduction is still under way
        rule.go_on.set()
        assert_aborted(result.result)
    assert recorder.exchanges == []


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("looks", [True, False], ids=["looks", "does_not_look"])
def test_an_abort_in_an_evaluation_ends_the_run(engine_name: str, looks: bool) -> None:
    def evaluate(_: Tensors, check: Callable[[], None]) -> Evaluation:
        engine.abort(REASON)
        if looks:
            check()
            raise AssertionError
        return Evaluation(10, 5, 1.0)

    clients = Clients()
    with engine_with(engine_name, CONFIG, clients.workers()) as engine:
        assert_aborted(lambda: run(engine, evaluator=evaluate))
    assert len(clients.tasks) == len(NAMES)


# While the server waits for clients


class AbortedWhileWaiting(GrpcEngine):
    """Is aborted when it waits for clients for the last time of `waits`."""

    waits = 1

    async def _wait_until(self, reached: Callable[[], bool], timeout_s: float | None) -> bool:
        self.waits -= 1
        if self.waits == 0:
            # When this method suspends for want of clients.
            asyncio.get_running_loop().call_soon(self.abort, REASON)
        return await super()._wait_until(reached, timeout_s)


def test_an_abort_ends_the_wait_for_the_first_clients() -> None:
    engine = AbortedWhileWaiting(CONFIG, RUN_ID, zeros().schema)
    with serving(engine=engine):
        assert_aborted(lambda: run(engine))
    assert engine.waits == 0


def test_an_abort_ends_a_pause() -> None:
    engine = AbortedWhileWaiting(CONFIG, RUN_ID, zeros().schema)
    engine.waits = 2
    recorder = Calling("round_finished")
    with serving(engine=engine) as server, HandClient(server.address, "b") as leaving:
        server.agent("a", Clients().workers()["a"])
        leaving.connect()
        server.wait_for(*NAMES)

        def leave() -> None:
            leaving.hang_up()
            server.wait_for("a")

        recorder.then = leave
        result = in_background(lambda: run(engine, recorder))
        work, _ = leaving.work()
        leaving.send(*answer_frames(work, filled(zeros().schema, 2)))
        assert_aborted(result.result)
    assert [reason.partition(";")[0] for reason in recorder.pauses] == ["round 2 needs 2 clients, 1 are connected"]
    assert engine.waits == 0


# While the server waits within an exchange


def test_an_abort_does_not_wait_for_the_grace_of_a_lost_client() -> None:
    engine = WatchedEngine(CONFIG, RUN_ID, zeros().schema)
    with serving(engine=engine) as server, HandClient(server.address) as hand:
        hand.connect()
        server.wait_for("hand")
        closing = Closing(1000.0, reconnect_grace_s=1000.0)
        schema = zeros().schema
        exchange = exchange_of(["hand"], Tensors(schema), reply_schema=schema, closing=closing)
        result = server.begin(exchange)
        hand.work()
        hand.hang_up()
        engine.losses.acquire()
        engine.abort(REASON)
        assert_aborted(result.result)
