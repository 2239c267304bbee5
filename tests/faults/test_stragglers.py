"""How long an exchange waits for slow, silent and late clients, on a clock that the test moves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from harness import (
    RUN_ID,
    SCHEMA,
    FakeWorker,
    HandClient,
    Recorder,
    Server,
    answer_frames,
    exchange_of,
    filled,
    mean_of,
    reasons,
    serving,
    small_config,
    until,
)
from watching import Clock, WatchedEngine

from feddkd import algorithms
from feddkd.config import Config
from feddkd.exchange import DELIVER, Closing, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors
from feddkd.transport.messages import Verdict

HONEST = {name: filled(SCHEMA, seed) for seed, name in enumerate("abcd")}
ALL = [*HONEST, "hand"]
MODEL = filled(SCHEMA, 9)
DEADLINE_S = 1000.0
PATIENCE_S = 60.0
ENOUGH = Closing(DEADLINE_S, enough=4, grace_after_enough_s=0.0)
CLOSED = "the exchange closed after 4 replies"


def start_honest(server: Server, go_on: threading.Event | None = None) -> None:
    """Start four clients that reply at once, or once `go_on` is set."""

    def replying(contribution: Tensors) -> FakeWorker:
        def respond(_: Task) -> Reply:
            if go_on is not None:
                assert go_on.wait(PATIENCE_S)
            return Reply(contribution, loss=0.5)

        return FakeWorker(respond, contribution.schema)

    for name, contribution in HONEST.items():
        server.agent(name, replying(contribution))


# An exchange closes early


@pytest.mark.parametrize("sends", ["nothing", "a header", "all but the last chunk"])
def test_an_exchange_does_not_wait_for_a_client_that_is_slower_than_enough_others(
    sends: str,
) -> None:
    has_work = threading.Event()
    with serving() as server, HandClient(server.address) as hand:
        start_honest(server, has_work)
        hand.connect()
        server.wait_for(*ALL)
        exchange = exchange_of(ALL, MODEL, closing=ENOUGH)
        result = server.begin(exchange)
        work, _ = hand.work()
        has_work.set()
        frames = answer_frames(work, filled(SCHEMA, 8))
        sent = {"nothing": 0, "a header": 1, "all but the last chunk": len(frames) - 1}[sends]
        hand.send(*frames[:sent])
        outcome = result.result()
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_DEADLINE_EXCEEDED
        assert receipt.reason == CLOSED
        hand.send(*frames[sent:])  # too late, and of no harm
        again = exchange_of(["hand"], MODEL, round_number=2)
        next_result = server.begin(again)
        work, _ = hand.work()
        hand.send(*answer_frames(work, HONEST["a"]))
        assert next_result.result().missing == {}
    assert reasons(outcome) == {"hand": CLOSED}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == mean_of(HONEST, dict.fromkeys(HONEST, 1.0)).sha256()


def test_a_client_that_replies_within_the_grace_after_enough_others_counts(clock: Clock) -> None:
    with serving() as server, HandClient(server.address) as hand:
        start_honest(server)
        hand.connect()
        server.wait_for(*ALL)
        closing = Closing(DEADLINE_S, enough=4, grace_after_enough_s=60.0)
        result = server.begin(exchange_of(ALL, MODEL, closing=closing))
        work, _ = hand.work()
        until(lambda: server.engine.states().working == 1)
        clock.advance(server.engine, 59.0)
        hand.send(*answer_frames(work, filled(SCHEMA, 8)))
        assert result.result().missing == {}
        late = server.begin(exchange_of(ALL, MODEL, closing=closing, round_number=2))
        hand.work()
        until(lambda: server.engine.states().working == 1)
        clock.advance(server.engine, 60.0)
        assert reasons(late.result()) == {"hand": CLOSED}


def test_a_client_that_is_late_in_one_exchange_is_in_the_next() -> None:
    with serving() as server:
        go_on = threading.Event()
        late: list[int] = []

        def respond(task: Task) -> Reply:
            if task.id.round == 1:
                go_on.wait()
                late.append(task.id.round)
            return Reply(HONEST["a"])

        start_honest(server)
        server.agent("hand", FakeWorker(respond))
        server.wait_for(*ALL)
        first = server.engine.carry_out(exchange_of(ALL, MODEL, closing=ENOUGH))
        go_on.set()
        closing = Closing(DEADLINE_S)
        second = exchange_of(ALL, MODEL, closing=closing, round_number=2)
        outcome = server.engine.carry_out(second)
    assert reasons(first) == {"hand": CLOSED}
    assert late == [1]
    assert outcome.missing == {}


# A round of FedDKD


class Federation:
    """A run of FedDKD whose clients reply zeros, unless they are told to do something else.

    Attributes:
        tasks: how often each client was asked, by its name and the exchange's.
        silent: released when a client begins to be silent.
    """

    def __init__(self, config: Config, engine: WatchedEngine, server: Server) -> None:
        self.tasks: Counter[tuple[str, str]] = Counter()
        self.silent = threading.Semaphore(0)
        self.recorder = Recorder()
        self._config = config
        self._algorithm = algorithms.build(config)
        self._server = server
        self._schema = build_initial(config).model.schema

    def start_clients(self, behaviour: Callable[[str, Task], bool]) -> None:
        """Let clients take part.

        Args:
            behaviour: whether a client replies to a task; otherwise it is silent until it is
                told that nobody waits. It may raise.
        """
        for name in ("a", "b", "c"):
            self._server.agent(name, FakeWorker(self._responding(name, behaviour), self._schema))
        self._server.wait_for("a", "b", "c")

    def _responding(
        self,
        name: str,
        behaviour: Callable[[str, Task], bool],
    ) -> Callable[[Task], Reply]:
        def respond(task: Task) -> Reply:
            self.tasks[name, task.id.name] += 1
            if not behaviour(name, task):
                self.silent.release()
                task.cancelled.wait()
                task.check_cancelled()
            return self._zeros(task)

        return respond

    def _zeros(self, task: Task) -> Reply:
        if task.id.name == DELIVER:
            return Reply()
        rule = self._algorithm.exchanges(self._config)[task.id.name].reply
        assert rule is not None
        return Reply(Tensors(rule(self._schema)), loss=1.0)

    def start(self) -> Future[RunRecord]:
        scheduler = Scheduler(
            self._config,
            self._algorithm,
            self._server.engine,
            run_id=RUN_ID,
            observers=[self.recorder],
        )
        model = build_initial(self._config).model
        return self._server.background(lambda: scheduler.run(model))

    def deadlines(self) -> list[tuple[int, str, int]]:
        """The exchanges that waited for the whole deadline."""
        return [
            (record.id.round, record.id.name, record.id.step)
            for record in self.recorder.exchanges
            if f"no reply within {DEADLINE_S:g} s" in record.clients_missing.values()
        ]


STEPS = 5
ROUNDS = 2


@pytest.mark.parametrize(
    ("silent", "exchange"),
    [({"c"}, "dkd_step"), ({"b", "c"}, "dkd_step"), ({"c"}, "local_train")],
    ids=["one_in_every_step", "two_in_every_step", "one_in_local_training"],
)
def test_clients_that_fall_silent_cost_a_round_one_deadline(
    silent: set[str],
    exchange: str,
    clock: Clock,
) -> None:
    config = small_config(
        f"rounds={ROUNDS}",
        f"dkd.steps={STEPS}",
        f"scheduler.deadline_s={DEADLINE_S}",
        "scheduler.min_clients=1",
        "scheduler.wait_for_clients=3",
        "data.test_set=false",
    )
    engine = WatchedEngine(config, RUN_ID, build_initial(config).model.schema)
    with serving(engine=engine) as server:
        run = Federation(config, engine, server)
        run.start_clients(lambda name, task: name not in silent or task.id.name != exchange)
        result = run.start()
        for _ in range(ROUNDS):
            for _ in silent:
                run.silent.acquire()
            until(lambda: engine.states().working == len(silent))
            clock.advance(engine, DEADLINE_S)
        record = result.result()
    assert run.deadlines() == [(number, exchange, 0) for number in range(1, 1 + ROUNDS)]
    assert record.not_delivered == {}
    asked = {name: run.tasks[name, exchange] for name in silent}
    assert asked == dict.fromkeys(silent, ROUNDS)
    other_steps = ROUNDS if exchange == "dkd_step" else 0
    assert all(run.tasks[name, "local_train"] == ROUNDS for name in silent)
    assert all(run.tasks[name, "dkd_step"] == other_steps for name in silent)


def test_a_client_that_fails_again_and_again_is_asked_twice_a_round() -> None:
    config = small_config(
        f"rounds={ROUNDS}",
        f"dkd.steps={STEPS}",
        "scheduler.min_clients=1",
        "scheduler.wait_for_clients=3",
        "data.test_set=false",
    )
    engine = WatchedEngine(config, RUN_ID, build_initial(config).model.schema)

    def fail(name: str, task: Task) -> bool:
        if (name, task.id.name) == ("c", "dkd_step"):
            raise RuntimeError("no memory")
        return True

    with serving(engine=engine) as server:
        run = Federation(config, engine, server)
        run.start_clients(fail)
        run.start().result()
    assert run.tasks["c", "dkd_step"] == 2 * ROUNDS
    assert run.tasks["a", "dkd_step"] == STEPS * ROUNDS
    last = run.recorder.of("dkd_step", step=STEPS - 1).clients_missing["c"]
    assert last == "not asked after it missed dkd_step 2: RuntimeError: no memory"


def test_an_upload_that_stalls_is_given_up_while_nothing_else_happens() -> None:
    with serving() as server, HandClient(server.address, "hand") as hand, HandClient(server.address, "other") as other:
        hand.connect()
        other.connect()
        server.wait_for("hand", "other")
        server.begin(exchange_of(["hand", "other"], MODEL, closing=Closing(DEADLINE_S, stall_timeout_s=0.2)))
        other.work()
        work, _ = hand.work()
        hand.send(*answer_frames(work, HONEST["a"])[:1])
        until(lambda: server.engine.states().working == 1)
