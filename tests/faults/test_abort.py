"""An abort ends a run at once, at every point of it and on both engines; it is no reason to try again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
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

from feddkd import algorithms
from feddkd.aggregator.rule import Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.simulation import initial_model
from feddkd.errors import RunError
from feddkd.exchange import DELIVER, Closing, Evaluation, Reply, Task
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Evaluator, Extensions, Scheduler
from feddkd.tensors import Tensors

REASON = "the server was stopped"
ENGINES = ["in-process", "grpc"]
NAMES = ["a", "b"]


def config_with(*overrides: str) -> Config:
    return small_config(
        "algorithm.name=fedavg",
        "scheduler.min_clients=2",
        "scheduler.pause_timeout_s=1000",
        *overrides,
    )


@cache
def model() -> Tensors:
    return initial_model(config_with())


def reply_to(task: Task) -> Reply:
    """What an honest client returns."""
    return Reply() if task.id.name == DELIVER else Reply(filled(model().schema, 1))


class Clients:
    """Honest clients that take part in a run.

    Attributes:
        tasks: all that they were asked, in the order in which they began.
    """

    def __init__(self, respond: Callable[[str, Task], Reply] | None = None) -> None:
        self.tasks: list[Task] = []
        self._then = respond or (lambda _, task: reply_to(task))

    def workers(self) -> dict[str, FakeWorker]:
        return {name: FakeWorker(self._responding(name), model().schema) for name in NAMES}

    def _responding(self, name: str) -> Callable[[Task], Reply]:
        def respond(task: Task) -> Reply:
            self.tasks.append(task)
            return self._then(name, task)

        return respond


@contextmanager
def engine_with(name: str, workers: Mapping[str, FakeWorker]) -> Iterator[Engine]:
    """Either engine, with these clients connected."""
    config = config_with()
    if name == "in-process":
        with InProcessEngine(workers, config.transport.chunk_bytes) as engine:
            yield engine
        return
    with serving(config, model().schema) as server:
        for client, worker in workers.items():
            server.agent(client, worker)
        server.wait_for(*workers)
        yield server.engine


def scheduler_on(
    engine: Engine,
    recorder: Recorder | None = None,
    *,
    evaluator: Evaluator | None = None,
    rule: Rule = WeightedMean(),  # noqa: B008
) -> Scheduler:
    config = config_with()
    return Scheduler(
        config,
        algorithms.build(config),
        engine,
        run_id=RUN_ID,
        observers=[recorder or Recorder()],
        evaluator=evaluator,
        extensions=Extensions(rule=rule),
    )


def assert_aborted(run: Callable[[], object]) -> None:
    with pytest.raises(RunError) as stopped:
        run()
    assert type(stopped.value) is RunError
    assert str(stopped.value) == REASON


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
    with engine_with(engine_name, clients.workers()) as engine:
        asked: list[int] = []

        def abort() -> None:
            engine.abort(REASON)
            asked.append(len(clients.tasks))

        recorder.then = abort
        evaluator = lambda *_: Evaluation(10, 5, 1.0)  # noqa: E731
        scheduler = scheduler_on(engine, recorder, evaluator=evaluator)
        assert_aborted(lambda: scheduler.run(model()))
        assert asked == [len(clients.tasks)]
    assert recorder.failures == []
    assert recorder.run is None


@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_abort_of_a_run_whose_round_failed_is_the_reason_that_it_gives(
    engine_name: str,
) -> None:
    def fail(name: str, task: Task) -> Reply:
        raise RuntimeError("no data")

    clients, recorder = Clients(fail), Calling("round_failed")
    with engine_with(engine_name, clients.workers()) as engine:
        recorder.then = lambda: engine.abort(REASON)
        assert_aborted(lambda: scheduler_on(engine, recorder).run(model()))
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
        return reply_to(task)

    clients, recorder = Clients(respond), Recorder()
    with engine_with(engine_name, clients.workers()) as engine:
        assert_aborted(lambda: scheduler_on(engine, recorder).run(model()))
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
    with engine_with(engine_name, clients.workers()) as engine:
        run = in_background(lambda: scheduler_on(engine).run(model()))
        begun.wait()
        engine.abort(REASON)
        assert_aborted(run.result)


@pytest.mark.parametrize("engine_name", ENGINES)
def test_an_abort_in_a_reduction_ends_the_run(engine_name: str) -> None:
    rule, recorder = WatchedMean.held(), Recorder()
    with engine_with(engine_name, Clients().workers()) as engine:
        run = in_background(lambda: scheduler_on(engine, recorder, rule=rule).run(model()))
        rule.begun.wait()
        engine.abort(REASON)
        if engine_name == "grpc":
            assert_aborted(run.result)  # while the reduction is still under way
        rule.go_on.set()
        assert_aborted(run.result)
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
    with engine_with(engine_name, clients.workers()) as engine:
        assert_aborted(lambda: scheduler_on(engine, evaluator=evaluate).run(model()))
    assert len(clients.tasks) == len(NAMES)


def in_background(run: Callable[[], RunRecord]) -> Future[RunRecord]:
    """Run in a thread; what it raises is in the future."""
    future: Future[RunRecord] = Future()

    def go() -> None:
        try:
            future.set_result(run())
        except BaseException as error:  # noqa: BLE001  # it belongs to the test
            future.set_exception(error)

    threading.Thread(target=go, daemon=True).start()
    return future


# While the server waits for clients


class AbortedWhileWaiting(GrpcEngine):
    """Is aborted when it waits for clients for the last time of `waits`."""

    waits = 1

    async def _wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        self.waits -= 1
        if self.waits == 0:
            # When this method suspends for want of clients.
            asyncio.get_running_loop().call_soon(self.abort, REASON)
        return await super()._wait_for_clients(count, timeout_s)


def test_an_abort_ends_the_wait_for_the_first_clients() -> None:
    engine = AbortedWhileWaiting(config_with(), RUN_ID, model().schema)
    with serving(engine=engine):
        assert_aborted(lambda: scheduler_on(engine).run(model()))
    assert engine.waits == 0


def test_an_abort_ends_a_pause() -> None:
    engine = AbortedWhileWaiting(config_with(), RUN_ID, model().schema)
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
        run = in_background(lambda: scheduler_on(engine, recorder).run(model()))
        work, _ = leaving.work()
        leaving.send(*answer_frames(work, filled(model().schema, 2)))
        assert_aborted(run.result)
    assert recorder.pauses == ["round 2 needs 2 clients, 1 are connected"]
    assert engine.waits == 0


# While the server waits within an exchange


def test_an_abort_does_not_wait_for_the_grace_of_a_lost_client() -> None:
    engine = WatchedEngine(config_with(), RUN_ID, model().schema)
    with serving(engine=engine) as server, HandClient(server.address) as hand:
        hand.connect()
        server.wait_for("hand")
        closing = Closing(1000.0, reconnect_grace_s=1000.0)
        schema = model().schema
        exchange = exchange_of(["hand"], model(), reply_schema=schema, closing=closing)
        result = server.begin(exchange)
        hand.work()
        hand.hang_up()
        engine.losses.acquire()
        engine.abort(REASON)
        assert_aborted(result.result)
