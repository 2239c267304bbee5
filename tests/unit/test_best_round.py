"""Which round is the best, when a run stops for it, and that a process that goes on with the run decides the same."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from harness import RUN_ID
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from scripted import THREE, ScriptedEngine, Setup, number
from test_resumed_runs import CrashError, CrashingJournal

from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.exchange import DELIVER, Evaluation, ExampleCounts, Exchange, Outcome
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.evaluated import Evaluated
from feddkd.scheduler.events import RoundFinished
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.recovery import new_journal, resume
from feddkd.tensors import Tensors

ACCURACIES = [1, 3, 8, 5, 8, 7, 2, 9]
"""Right ones of ten examples after each round; the model of round r is 2 r."""


def by_server(model: Tensors, _: object) -> Evaluation:
    return Evaluation(10, ACCURACIES[int(model["w"]) // 2 - 1], 1.0)


class Opinionated(ScriptedEngine):
    """Clients evaluate what they are sent."""

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        done = int(exchange.payload["w"]) // 2
        for reply in outcome.replies.values():
            if reply.evaluation is not None:
                object.__setattr__(reply, "evaluation", Evaluation(10, ACCURACIES[done - 1] if done else 0, 1.0))
        return outcome


def setup(*scheduler: str, server: bool = True, journal: FileJournal | CrashingJournal | None = None, rounds: int = 8) -> Setup:
    options = [f"rounds={rounds}", *(f"scheduler.{option}" for option in scheduler)]
    return Setup(Opinionated(THREE), *options, evaluator=by_server if server else None, journal=journal)


@pytest.mark.parametrize(
    ("scheduler", "server", "rounds", "stopped", "delivered"),
    [
        ([], True, 8, "", 8),
        (["stop_at=0.8"], True, 3, "the accuracy 80.00% of round 3 is at least scheduler.stop_at = 0.8", 3),
        (["stop_at=0.8"], False, 4, "the accuracy 80.00% of round 3 is at least scheduler.stop_at = 0.8", 4),
        (["stop_at=0.9"], True, 8, "", 8),  # the last round reaches it
        (["stop_at=1.0"], True, 8, "", 8),
        (["patience=2"], True, 5, "no accuracy is above the 80.00% of round 3 since then (scheduler.patience = 2)", 5),
        (["patience=2"], False, 6, "no accuracy is above the 80.00% of round 3 since then (scheduler.patience = 2)", 6),
        (["patience=2", "deliver=best"], True, 5, "no accuracy is above the 80.00% of round 3 since then (scheduler.patience = 2)", 3),
        (["patience=2", "deliver=best"], False, 6, "no accuracy is above the 80.00% of round 3 since then (scheduler.patience = 2)", 3),
        (["deliver=best"], True, 8, "", 8),
        (["deliver=best"], False, 8, "", 3),  # the last round is not evaluated before its model would be delivered
        (["deliver=best", "durability=none"], True, 8, "", 8),
    ],
)
def test_a_run_stops_and_delivers_as_the_configuration_says(
    scheduler: list[str], server: bool, rounds: int, stopped: str, delivered: int
) -> None:
    run = setup(*scheduler, server=server)
    record = run.scheduler.run(number(0))
    last = run.engine.exchanges[-1]
    assert (record.rounds, record.stopped, record.delivered_round or record.rounds) == (rounds, stopped, delivered)
    assert (last.id.name, last.id.round, float(last.payload["w"])) == (DELIVER, rounds, 2.0 * delivered)
    assert float(record.model["w"]) == 2.0 * delivered
    reason = f"the run stopped early: {stopped}" if stopped else "all rounds are done"
    assert run.engine.finished == [(True, reason)]


def test_the_delivery_s_opinion_is_not_that_of_the_last_round() -> None:
    run = setup("deliver=best", server=False)
    record = run.scheduler.run(number(0))
    last = run.recorder.rounds[-1]
    assert (last.round, last.evaluation) == (8, None)
    assert accuracy_of(record) == 0.8


def accuracy_of(record: RunRecord) -> float | None:
    return record.final_evaluation.accuracy if record.final_evaluation is not None else None


def essence(run: Setup, record: RunRecord) -> list[object]:
    return [
        *(record.rounds, record.stopped, record.best_round, record.delivered_round, accuracy_of(record), record.best_accuracy),
        *(record.model.sha256(), run.engine.finished, float(run.engine.exchanges[-1].payload["w"])),
    ]


SETTINGS = [["deliver=best", "patience=2"], ["deliver=best"], ["stop_at=0.8"]]


@pytest.mark.parametrize("scheduler", SETTINGS, ids=str)
@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_resumed_run_decides_the_same_wherever_it_was_cut(scheduler: list[str], server: bool, after: bool, tmp_path: Path) -> None:
    undisturbed = setup(*scheduler, server=server)
    expected = essence(undisturbed, undisturbed.scheduler.run(number(0)))
    config = Config.load(overrides=["rounds=8", *(f"scheduler.{option}" for option in scheduler)])
    with mock.patch("os.fsync"):
        for crash in itertools.count():
            folder = tmp_path / str(crash)
            with closing(new_journal(folder, RUN_ID, config)) as journal:
                assert isinstance(journal, FileJournal)
                first = setup(*scheduler, server=server, journal=CrashingJournal(journal, crash, after=after))
                try:
                    first.scheduler.run(number(0))
                    return  # it lived to its end
                except CrashError:
                    pass
            if not (folder / "journal.jsonl").exists():
                continue  # nobody has heard of it
            with closing(resume(folder, config)) as journal:
                second = setup(*scheduler, server=server, journal=journal)
                record = second.scheduler.run(number(0))
                if second.engine.exchanges and second.engine.finished:
                    assert essence(second, record)[:-2] == expected[:-2]
                assert record.model.sha256() == expected[6]


def test_a_run_that_stopped_early_is_over_whatever_the_number_of_rounds(tmp_path: Path) -> None:
    config = Config.load(overrides=["rounds=8", "scheduler.stop_at=0.8"])
    with closing(new_journal(tmp_path, RUN_ID, config)) as journal:
        assert isinstance(journal, FileJournal)
        assert setup("stop_at=0.8", journal=journal).scheduler.run(number(0)).rounds == 3
    with closing(resume(tmp_path, config.model_copy(update={"rounds": 20}))) as journal:
        again = setup("stop_at=0.8", journal=journal, rounds=20)
        assert again.scheduler.run(number(0)).rounds == 3
        assert again.engine.exchanges == []


@given(accuracies=st.lists(st.integers(0, 5), min_size=1, max_size=12), patience=st.integers(1, 4))
def test_patience_counts_the_evaluated_rounds_after_the_first_best_one(accuracies: list[int], patience: int) -> None:
    evaluated, config = Evaluated(), Config.parse({"scheduler": {"patience": patience}})
    for index, correct in enumerate(accuracies, start=1):
        event = RoundFinished(index, None, 3, {}, {}, ExampleCounts(3))
        evaluated.see(event, Evaluation(5, correct, 1.0))
        seen = accuracies[:index]
        best = seen.index(max(seen)) + 1
        assert evaluated.best is not None
        assert evaluated.best.round == best
        assert bool(evaluated.reason_to_stop(config)) == (index - best >= patience)


ERRORS = [9.0, 7.0, 2.0, 5.0, 2.0, 3.0, 8.0, 1.0]
"""The mean absolute error after each round."""


def with_error(model: Tensors, _: object) -> Evaluation:
    """Say that the loss falls all the time, which nothing here follows."""
    number_of_round = int(model["w"]) // 2
    error = ERRORS[number_of_round - 1]
    return Evaluation(10, None, 10.0 / number_of_round, scores={"mae": error}, merit=-error)


@pytest.mark.parametrize(
    ("scheduler", "rounds", "stopped", "delivered"),
    [
        ([], 8, "", 8),
        (["stop_at=2.0"], 3, "the MAE 2 of round 3 is at most scheduler.stop_at = 2", 3),
        (["stop_at=0.5"], 8, "", 8),
        (["patience=2", "deliver=best"], 5, "no MAE is below the 2 of round 3 since then (scheduler.patience = 2)", 3),
        (["deliver=best", "patience=5"], 8, "", 8),
    ],
)
def test_a_run_follows_a_metric_that_is_minimised(scheduler: list[str], rounds: int, stopped: str, delivered: int, tmp_path: Path) -> None:
    options = ["rounds=8", "task.name=regression", *(f"scheduler.{option}" for option in [*scheduler, "keep_checkpoints=2"])]
    with closing(Ledger(tmp_path, Config.load(None, options))) as ledger:
        record = Setup(Opinionated(THREE), *options, evaluator=with_error, observers=[ledger]).scheduler.run(number(0))
    best = ERRORS.index(min(ERRORS[:rounds])) + 1
    assert (record.rounds, record.stopped, record.delivered_round or rounds, record.best_round) == (rounds, stopped, delivered, best)
    assert float(record.model["w"]) == 2.0 * delivered
    assert float(load_file(tmp_path / "best.safetensors")["w"]) == 2.0 * best
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"round-{number_of_round:05}.safetensors" for number_of_round in (rounds - 1, rounds)]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["metric"], summary["final_score"], summary["best_score"]) == ("mae", ERRORS[delivered - 1], ERRORS[best - 1])


@pytest.mark.parametrize("asked", [{"deliver": "best"}, {"stop_at": 0.5}, {"patience": 1}, {"keep_checkpoints": 1}])
def test_what_follows_the_accuracy_needs_one(asked: dict[str, object]) -> None:
    nothing = {"test_set": False, "holdout": 0.0}
    with pytest.raises(ConfigError, match=rf"scheduler\.{next(iter(asked))} = .*: no round is evaluated; set data.test_set"):
        Config.parse({"scheduler": asked, "data": nothing})
    Config.parse({"scheduler": asked, "data": nothing | {"holdout": 0.1}})


def written(folder: Path) -> Iterator[tuple[str, float]]:
    for file in sorted(folder.rglob("*.safetensors")):
        yield str(file.relative_to(folder)), float(load_file(file)["w"])


Written = Callable[[Sequence[str], bool], dict[str, float]]


@pytest.fixture
def models(tmp_path: Path) -> Written:
    """Runs with a record, and tells which models are in it."""

    def run(scheduler: Sequence[str], server: bool) -> dict[str, float]:
        config = Config.load(overrides=["rounds=8", *(f"scheduler.{option}" for option in scheduler)])
        with closing(Ledger(tmp_path, config)) as ledger:
            prepared = setup(*scheduler, server=server)
            prepared.scheduler._log._observers.add(ledger)
            prepared.scheduler.run(number(0))
        return dict(written(tmp_path))

    return run


@pytest.mark.parametrize("server", [True, False])
def test_the_record_has_the_best_model_the_last_one_and_some_before_it(server: bool, models: Written) -> None:
    found = models(["patience=3", "deliver=best", "keep_checkpoints=2"], server)
    last = 6 if server else 7
    assert found == {
        "best.safetensors": 6.0,
        "last.safetensors": 2.0 * last,
        "model.safetensors": 6.0,
        "checkpoints/round-00005.safetensors": 10.0,
        "checkpoints/round-00006.safetensors": 12.0,
    }


def test_by_default_there_is_the_last_model_and_the_best(models: Written) -> None:
    assert models([], True) == {"best.safetensors": 16.0, "model.safetensors": 16.0}


def test_a_round_whose_metric_is_not_known_is_never_the_best() -> None:
    evaluated, config = Evaluated(), Config.parse({"task": {"name": "regression"}, "scheduler": {"patience": 1}})
    for index, merit in enumerate([-math.inf, -2.0, -math.inf], start=1):
        event = RoundFinished(index, None, 3, {}, {}, ExampleCounts(3))
        scores = {} if merit == -math.inf else {"mae": -merit}
        evaluated.see(event, Evaluation(5, None, 1.0, scores=scores, merit=merit))
        assert evaluated.reason_to_stop(config) == ""
    assert evaluated.best is not None
    assert evaluated.best.round == 2
