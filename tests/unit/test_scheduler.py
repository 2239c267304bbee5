from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from harness import RUN_ID, Recorder
from torch import Tensor

from feddkd.algorithms.base import Algorithm, ClientSide, Cohort
from feddkd.config import Config
from feddkd.errors import PausedError
from feddkd.exchange import DELIVER, Evaluation, ExchangeKind
from feddkd.scheduler.engine import ClientStates, Exchange, Outcome, Report
from feddkd.scheduler.records import RoundRecord
from feddkd.scheduler.rounds import Evaluator, Scheduler
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

SCHEMA = Schema([TensorSpec("w", torch.float64, ())])


def number(value: float) -> Tensors:
    out = Tensors(SCHEMA)
    out["w"].fill_(value)
    return out


class Counting(Algorithm):
    """Adds what comes back in two exchanges, and counts its rounds in its state."""

    client_side = ClientSide

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.rounds = 0
        self.states_at_start: list[int] = []

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"first": ExchangeKind(), "second": ExchangeKind()}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        self.states_at_start.append(self.rounds)
        self.rounds += 1
        model = model + cohort.exchange("first", model)
        return model + cohort.exchange("second", model)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {"rounds": torch.tensor(self.rounds)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.rounds = int(state["rounds"])


class ScriptedEngine:
    """Clients answer 1.0; `lost` says who does not, by (round, attempt, exchange)."""

    def __init__(self, clients: Mapping[str, int], lost: Mapping[tuple[int, int, str], set[str]] | None = None) -> None:
        self.connected = dict(clients)
        self.lost = lost or {}
        self.exchanges: list[Exchange] = []
        self.waits: list[tuple[int, float | None]] = []
        self.finished: list[tuple[bool, str]] = []
        self.on_wait: Callable[[], bool] = lambda: True
        self.on_loss: Callable[[set[str]], object] = lambda _: None

    def clients(self) -> Mapping[str, int]:
        return dict(sorted(self.connected.items()))

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        self.waits.append((count, timeout_s))
        return self.on_wait()

    def carry_out(self, exchange: Exchange) -> Outcome:
        self.exchanges.append(exchange)
        lost = self.lost.get((exchange.id.round, exchange.id.attempt, exchange.id.name), set())
        if lost:
            self.on_loss(lost)
        reports = {
            client: Report(loss=1.0, evaluation=Evaluation(10, exchange.id.round, 5.0) if exchange.evaluate else None)
            for client in exchange.clients
            if client not in lost
        }
        mean = number(1) if exchange.answer_schema is not None and reports else None
        return Outcome(mean, reports, dict.fromkeys(sorted(lost), "lost"), Traffic(1, 1, 10, 100), 0.1)

    def other_traffic(self) -> Traffic:
        return Traffic(0, 0, 3, 4)

    def states(self) -> ClientStates:
        return ClientStates()

    def finish(self, completed: bool, reason: str) -> None:
        self.finished.append((completed, reason))


class FullRecorder(Recorder):
    """Writes down the order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def run_started(self, run_id: str, rounds: int) -> None:
        self.events.append(f"run {run_id} of {rounds}")

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self.events.append(f"round {round_number}.{attempt} of {clients}")

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self.events.append(f"model {round_number} is {float(model['w']):g}")

    def round_done(self, record: RoundRecord) -> None:
        super().round_done(record)
        self.events.append(f"round {record.round} done")

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        super().round_failed(round_number, attempt, reason)
        self.events.append(f"round {round_number}.{attempt} failed")

    def paused(self, reason: str) -> None:
        super().paused(reason)
        self.events.append("paused")


THREE = {"a": 10, "b": 20, "c": 30}


class Setup:
    def __init__(self, engine: ScriptedEngine, *overrides: str, evaluator: Evaluator | None = None) -> None:
        self.engine = engine
        self.recorder = FullRecorder()
        config = Config.load(overrides=["rounds=2", *overrides])
        self.algorithm = Counting(config)
        self.scheduler = Scheduler(config, self.algorithm, engine, run_id=RUN_ID, observers=[self.recorder], evaluator=evaluator)

    def run(self) -> float:
        return float(self.scheduler.run(number(0)).model["w"])


def test_a_run_is_its_rounds_and_the_delivery_of_the_final_model() -> None:
    setup = Setup(ScriptedEngine(THREE))
    assert setup.run() == 4
    assert [(e.id.round, e.id.name) for e in setup.engine.exchanges] == [
        (1, "first"),
        (1, "second"),
        (2, "first"),
        (2, "second"),
        (2, "deliver"),
    ]
    assert float(setup.engine.exchanges[-1].payload["w"]) == 4
    assert setup.engine.exchanges[-1].answer_schema is None
    assert setup.recorder.events == [
        "run testrun of 2",
        "round 1.0 of 3",
        "model 1 is 2",
        "round 2.0 of 3",
        "round 1 done",  # as soon as its clients have said what they think of its model
        "model 2 is 4",
        "round 2 done",
    ]
    assert setup.engine.finished == [(True, "all rounds are done")]


@pytest.mark.parametrize(("weights", "expected"), [("examples", THREE), ("uniform", dict.fromkeys(THREE, 1.0))])
def test_weights_are_example_counts_or_all_alike(weights: str, expected: Mapping[str, float]) -> None:
    setup = Setup(ScriptedEngine(THREE), f"scheduler.weights={weights}")
    setup.run()
    assert setup.engine.exchanges[0].clients == expected


def test_the_first_round_waits_for_the_configured_number_of_clients() -> None:
    for overrides, count in ((["scheduler.min_clients=2"], 2), (["scheduler.wait_for_clients=3"], 3)):
        setup = Setup(ScriptedEngine(THREE), *overrides)
        setup.run()
        assert setup.engine.waits == [(count, None)]


def test_every_client_that_is_there_gets_the_final_model_even_if_it_was_never_drawn() -> None:
    setup = Setup(ScriptedEngine(THREE), "scheduler.cohort=1")
    setup.run()
    assert all(len(exchange.clients) == 1 for exchange in setup.engine.exchanges[:-1])
    assert list(setup.engine.exchanges[-1].clients) == ["a", "b", "c"]


def test_what_clients_think_of_a_model_comes_with_the_next_broadcast_and_moves_no_model_of_its_own() -> None:
    setup = Setup(ScriptedEngine(THREE))
    record = setup.scheduler.run(number(0))
    # Round 1's model was broadcast in round 2, and round 2's in the delivery, which bears round 2 as well.
    assert [done.client_evaluation for done in setup.recorder.rounds] == [Evaluation(30, 6, 15.0), Evaluation(30, 6, 15.0)]
    assert [done.evaluation for done in setup.recorder.rounds] == [Evaluation(30, 6, 15.0), Evaluation(30, 6, 15.0)]
    assert record.final_evaluation == Evaluation(30, 6, 15.0)


def test_the_servers_test_set_is_preferred_to_what_clients_say() -> None:
    accuracies = iter([9, 5])
    setup = Setup(ScriptedEngine(THREE), evaluator=lambda model: Evaluation(10, next(accuracies), float(model["w"])))
    record = setup.scheduler.run(number(0))
    assert [done.evaluation for done in setup.recorder.rounds] == [Evaluation(10, 9, 2.0), Evaluation(10, 5, 4.0)]
    assert record.best_accuracy == 0.9
    assert record.final_evaluation == Evaluation(10, 5, 4.0)


def test_the_bytes_of_all_exchanges_add_up_with_those_of_failed_attempts() -> None:
    setup = Setup(ScriptedEngine(THREE, {(1, 0, "second"): {"a"}}), "scheduler.min_clients=3")
    record = setup.scheduler.run(number(0))
    assert [done.traffic.wire_bytes for done in setup.recorder.rounds] == [4 * 110, 3 * 110]
    assert [done.cumulative_wire_bytes for done in setup.recorder.rounds] == [440, 770]
    assert record.traffic.wire_bytes == 770 == 110 * len(setup.recorder.exchanges)
    assert record.other_traffic == Traffic(0, 0, 3, 4)


def test_a_failed_round_starts_over_from_its_model_and_its_state() -> None:
    setup = Setup(ScriptedEngine(THREE, {(2, 0, "second"): {"a", "b", "c"}, (2, 1, "first"): {"c"}}), "scheduler.min_clients=3")
    assert setup.run() == 4
    assert setup.algorithm.states_at_start == [0, 1, 1, 1]
    assert setup.recorder.events[3:] == [
        "round 2.0 of 3",
        "round 1 done",
        "round 2.0 failed",
        "round 2.1 of 3",
        "round 2.1 failed",
        "round 2.2 of 3",
        "model 2 is 4",
        "round 2 done",
    ]
    assert setup.recorder.failures[0][2] == "round 2 second[0]: 0 of 3 clients answered, 3 are needed (a: lost; b: lost; c: lost)"


class WorkingEngine(ScriptedEngine):
    """Every client computes 10 gradients in each exchange but the delivery, and reports its round as a metric in the second."""

    def carry_out(self, exchange: Exchange) -> Outcome:
        outcome = super().carry_out(exchange)
        metrics = {"round": float(exchange.id.round + exchange.id.attempt)} if exchange.id.name == "second" else {}
        work = 0 if exchange.id.name == DELIVER else 10
        reports = {client: replace(report, gradient_evaluations=work, metrics=metrics) for client, report in outcome.reports.items()}
        return replace(outcome, reports=reports)


def test_work_adds_up_and_metrics_are_averaged_over_a_rounds_exchanges() -> None:
    setup = Setup(WorkingEngine(THREE, {(2, 0, "second"): {"a"}}), "scheduler.min_clients=3")
    record = setup.scheduler.run(number(0))
    # Round 2's first attempt failed, after 3 + 2 answers: the clients did that work all the same.
    assert [done.gradient_evaluations for done in setup.recorder.rounds] == [60, 50 + 60]
    assert record.gradient_evaluations == 170
    # Metrics are those of the attempt that made the model.
    assert [done.metrics for done in setup.recorder.rounds] == [{"round": 1.0}, {"round": 3.0}]


def always_losing(round_number: int) -> dict[tuple[int, int, str], set[str]]:
    return {(round_number, attempt, "first"): {"a"} for attempt in range(100)}


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_clients_that_are_there_but_do_not_answer_end_the_run_after_the_retries(retries: int) -> None:
    setup = Setup(ScriptedEngine(THREE, always_losing(1)), "scheduler.min_clients=3", f"scheduler.retries={retries}")
    with pytest.raises(PausedError, match="3 clients are connected, so waiting for more would not help"):
        setup.run()
    assert len(setup.recorder.failures) == retries + 1
    assert setup.recorder.run is None
    assert setup.engine.finished == []  # the caller says how it ended


def test_a_run_that_lost_clients_pauses_and_goes_on_when_they_are_back() -> None:
    engine = ScriptedEngine(THREE, {(2, 0, "first"): {"a"}})

    def come_back() -> bool:
        engine.connected["a"] = 10
        return True

    engine.on_loss = lambda _: engine.connected.pop("a")
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.pause_timeout_s=12")
    engine.on_wait = come_back
    assert setup.run() == 4
    assert engine.waits == [(3, None), (3, 12.0)]
    assert setup.recorder.pauses == ["round 2 needs 3 clients, 2 are connected"]
    assert setup.recorder.events[4:7] == ["round 2.0 failed", "paused", "round 2.1 of 3"]


def test_a_paused_run_gives_up_when_nobody_comes_in_time() -> None:
    engine = ScriptedEngine(THREE, {(2, 0, "first"): {"a"}})
    engine.on_loss = lambda _: engine.connected.pop("a")
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.pause_timeout_s=12")
    answers = iter([True, False])
    engine.on_wait = lambda: next(answers)
    with pytest.raises(PausedError, match=r"nobody else came within scheduler\.pause_timeout_s = 12$"):
        setup.run()
    # What was complete is on record, although no client could say what it thinks of it.
    assert [done.round for done in setup.recorder.rounds] == [1]


def test_a_lost_client_above_the_quorum_changes_nothing_but_the_counts() -> None:
    setup = Setup(ScriptedEngine(THREE, {(1, 0, "first"): {"b"}}), "scheduler.min_clients=2")
    assert setup.run() == 4
    assert [done.clients_reported for done in setup.recorder.rounds] == [2, 3]
    assert setup.recorder.failures == []


def test_delivery_needs_nobody() -> None:
    engine = ScriptedEngine(THREE, {(2, 0, "deliver"): {"a", "b", "c"}})
    setup = Setup(engine, "scheduler.min_clients=3")
    assert setup.run() == 4
    assert setup.recorder.rounds[-1].client_evaluation is None
