"""What ends an attempt or a run: a model that is not finite, or an abort."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from scripted import THREE, ScriptedEngine, Setup, number

from feddkd.errors import PausedError, RunError
from feddkd.exchange import DELIVER, Cause, Evaluation, Exchange, Outcome
from feddkd.tensors import Tensors

# What is not finite.


def overflowing(*moments: tuple[int, int]) -> ScriptedEngine:
    """Both exchanges of these rounds and attempts return a finite number whose double is not."""
    names = ("first", "second")
    return ScriptedEngine(
        THREE,
        reduced={(*moment, name): 1.7e308 for moment in moments for name in names},
    )


def test_a_round_whose_model_is_not_finite_is_tried_again_from_the_old_model() -> None:
    setup = Setup(overflowing((2, 0), (2, 1)))
    record = setup.scheduler.run(number(0))
    assert float(record.model["w"]) == 4
    assert setup.algorithm.models_at_start == [0, 2, 2, 2]
    assert setup.algorithm.states_at_start == [0, 1, 1, 1]
    reason = "round 2: the new model is not finite"
    assert setup.recorder.failures == [(2, 0, reason), (2, 1, reason)]
    assert [event for event in setup.recorder.events if event.startswith("model")] == [
        "model 1 is 2",
        "model 2 is 4",
    ]
    assert record.traffic.wire_bytes == 110 * len(setup.recorder.exchanges)


def test_a_run_whose_model_stays_not_finite_fails_and_says_why() -> None:
    setup = Setup(overflowing((2, 0), (2, 1), (2, 2)))
    with pytest.raises(PausedError, match=r"^round 2: the new model is not finite; 3 clients are"):
        setup.run()
    assert len(setup.recorder.failures) == 3
    assert [done.round for done in setup.recorder.rounds] == [1]
    assert setup.recorder.run is None
    assert not any(exchange.id.name == DELIVER for exchange in setup.engine.exchanges)


def test_a_student_that_is_not_finite_is_not_broadcast() -> None:
    """The second exchange would send the sum of the model and what came back from the first."""
    setup = Setup(ScriptedEngine(THREE, reduced={(1, 0, "first"): 1.7e308}), "rounds=1")
    assert float(setup.scheduler.run(number(1.7e308)).model["w"]) == 1.7e308
    reason = "round 1 second 1: the tensors to be sent are not finite"
    assert setup.recorder.failures == [(1, 0, reason)]
    assert setup.engine.ids() == [(1, "first"), (1, "first"), (1, "second"), (1, "deliver")]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_round_whose_test_loss_is_not_finite_is_tried_again(loss: float) -> None:
    losses = iter([5.0, loss, 5.0])
    setup = Setup(ScriptedEngine(THREE), evaluator=lambda *_: Evaluation(10, 7, next(losses)))
    assert setup.run() == 4
    reason = f"round 2: the new model's loss on the test set is {loss}"
    assert setup.recorder.failures == [(2, 0, reason)]
    assert [done.evaluation for done in setup.recorder.rounds] == [Evaluation(10, 7, 5.0)] * 2
    assert setup.recorder.events.count("model 2 is 4") == 1


def test_a_run_whose_test_loss_stays_not_finite_fails_and_says_why() -> None:
    setup = Setup(ScriptedEngine(THREE), evaluator=lambda *_: Evaluation(10, 7, math.nan))
    with pytest.raises(PausedError, match="loss on the test set is nan"):
        setup.run()
    assert setup.recorder.rounds == []
    assert not any(event.startswith("model") for event in setup.recorder.events)


class Faulty(ScriptedEngine):
    """The first exchange of every round cannot be reduced."""

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        if exchange.id.name != "first":
            return outcome
        return replace(outcome, reduced=None, fault="no use; largest: a (norm 1e+17)")


def test_contributions_that_cannot_be_reduced_fail_the_run_and_are_named() -> None:
    setup = Setup(Faulty(THREE), "scheduler.retries=1")
    with pytest.raises(PausedError, match=r"round 1 first 1 \(attempt 2\): no use; largest: a"):
        setup.run()
    assert len(setup.recorder.exchanges) == 2  # both attempts are on record


# Aborts.

TOLD = r"^told to stop$"
MOMENTS = [
    "run testrun of 2",
    "round 1.0 of 3",
    "first 1.0",
    "second 1.0",
    "model 1 is 2",
    "round 1 evaluated",
    "round 1 done",
    "second 2.0",
    "model 2 is 4",
    "round 2 evaluated",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_abort_at_any_moment_ends_the_run_at_once(moment: str) -> None:
    engine = ScriptedEngine(THREE)
    begun: list[str] = []  # after the abort

    def evaluator(*_: object) -> Evaluation:
        if engine.aborted:
            begun.append("evaluation")
        return Evaluation(10, 5, 5.0)

    setup = Setup(engine, evaluator=evaluator)
    exchanges_before: list[int] = []

    def stop(event: str) -> None:
        if event == moment:
            engine.abort("told to stop")
            exchanges_before.append(len(engine.exchanges))

    setup.recorder.on_event = stop
    with pytest.raises(RunError, match=TOLD):
        setup.run()
    assert begun == []
    assert exchanges_before == [len(engine.exchanges)]
    assert setup.recorder.failures == []
    assert setup.recorder.pauses == []
    assert setup.recorder.run is None
    assert engine.finished == []


def test_an_abort_during_an_exchange_is_no_reason_to_try_again() -> None:
    class Aborting(ScriptedEngine):
        def outcome_of(self, exchange: Exchange) -> Outcome:
            self.abort("told to stop")
            self.check_aborted()
            raise AssertionError

    setup = Setup(Aborting(THREE))
    with pytest.raises(RunError, match=TOLD):
        setup.run()
    assert setup.engine.ids() == [(1, "first")]
    assert setup.recorder.failures == []


def test_an_abort_ends_an_evaluation_under_way() -> None:
    engine = ScriptedEngine(THREE)
    batches: list[int] = []

    def evaluator(_: Tensors, check: Callable[[], None]) -> Evaluation:
        for batch in range(3):
            check()
            batches.append(batch)
            engine.abort("told to stop")
        return Evaluation(10, 5, 5.0)

    setup = Setup(engine, evaluator=evaluator)
    with pytest.raises(RunError, match=TOLD):
        setup.run()
    assert batches == [0]
    assert setup.recorder.rounds == []


@pytest.mark.parametrize("paused", [False, True])
def test_an_abort_ends_a_wait_for_clients(paused: bool) -> None:
    engine = ScriptedEngine(THREE)
    setup = Setup(engine, "scheduler.min_clients=3")

    def wait() -> bool:
        if paused and not setup.recorder.pauses:
            del engine.connected["a"]
            return True
        engine.abort("told to stop")
        return True

    engine.on_wait = wait
    with pytest.raises(RunError, match=TOLD):
        setup.run()
    assert engine.exchanges == []
    assert len(setup.recorder.pauses) == paused


def test_a_client_that_falls_silent_costs_the_round_one_deadline_not_one_for_each_retry() -> None:
    engine = ScriptedEngine(THREE, {(1, attempt, "second"): {"b"} for attempt in range(5)}, cause=Cause.SILENT)
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.retries=4")
    with pytest.raises(PausedError, match="another attempt would wait just as long"):
        setup.run()
    assert len(setup.recorder.failures) == 1


def test_a_client_that_comes_and_goes_does_not_hold_a_round_for_ever() -> None:
    lost = {(1, attempt, "first"): {"b"} for attempt in range(1000)}
    engine = ScriptedEngine(THREE, lost, cause=Cause.DISCONNECTED)
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.retries=0", "scheduler.pause_timeout_s=0")
    with pytest.raises(PausedError, match=r"longer than scheduler\.pause_timeout_s = 0"):
        setup.run()


def test_a_ruined_model_is_not_accepted_though_its_loss_is_finite() -> None:
    def evaluate(model: Tensors, check: Callable[[], None]) -> Evaluation:
        return Evaluation(10, 1, 10 * 2e4)

    setup = Setup(ScriptedEngine(THREE), evaluator=evaluate)
    with pytest.raises(PausedError, match="loss on the test set is 2e"):
        setup.run()
    assert setup.recorder.rounds == []
