import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from harness import RUN_ID
from scripted import THREE, FullRecorder, Moment, ScriptedEngine, Setup, number

from feddkd.algorithms.base import Cohort, CohortAround
from feddkd.errors import NotFiniteError, PausedError, RunError
from feddkd.exchange import (
    DELIVER,
    MAX_METRICS,
    Cause,
    Evaluation,
    Exchange,
    ExchangeId,
    Outcome,
    Reply,
)
from feddkd.scheduler.engine import OpenExchange
from feddkd.scheduler.events import ExchangeDone
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import Header, read_journal
from feddkd.scheduler.metric_names import MAX_METRIC_NAMES
from feddkd.scheduler.rounds import CohortLayer
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic


def test_a_run_is_its_rounds_and_the_delivery_of_the_final_model() -> None:
    setup = Setup(ScriptedEngine(THREE))
    assert setup.run() == 4
    assert setup.engine.ids() == [
        (1, "first"),
        (1, "second"),
        (2, "first"),
        (2, "second"),
        (2, "deliver"),
    ]
    assert float(setup.engine.exchanges[-1].payload["w"]) == 4
    assert setup.engine.exchanges[-1].reply_schema is None
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


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("examples", THREE), ("uniform", dict.fromkeys(THREE, 1.0))],
)
def test_weights_are_example_counts_or_all_alike(
    weights: str,
    expected: Mapping[str, float],
) -> None:
    setup = Setup(ScriptedEngine(THREE), f"scheduler.weights={weights}")
    setup.run()
    assert setup.engine.exchanges[0].clients == expected


def test_the_first_round_waits_for_the_configured_number_of_clients() -> None:
    cases = (
        (["scheduler.min_clients=2"], 2),
        (["scheduler.wait_for_clients=3"], 3),
        (["scheduler.clients=3", "scheduler.min_clients=1"], 3),
        (['scheduler.clients=["a", "b"]'], 2),
    )
    for overrides, count in cases:
        setup = Setup(ScriptedEngine(THREE), *overrides)
        setup.run()
        assert setup.engine.waits == [(count, None)]


def test_every_client_that_is_there_gets_the_final_model_even_if_it_was_never_drawn() -> None:
    setup = Setup(ScriptedEngine(THREE), "scheduler.cohort=1")
    setup.run()
    assert all(len(exchange.clients) == 1 for exchange in setup.engine.exchanges[:-1])
    assert list(setup.engine.exchanges[-1].clients) == ["a", "b", "c"]


def test_what_clients_think_of_a_model_comes_with_the_next_broadcast() -> None:
    setup = Setup(ScriptedEngine(THREE))
    record = setup.scheduler.run(number(0))
    # Round 1's model was broadcast in round 2, round 2's in the delivery, which bears round 2 too.
    opinion, rounds = Evaluation(30, 6, 15.0), setup.recorder.rounds
    assert [done.client_evaluation for done in rounds] == [opinion, opinion]
    assert [done.evaluation for done in rounds] == [opinion, opinion]
    assert record.final_evaluation == opinion


def test_the_servers_test_set_is_preferred_to_what_clients_say() -> None:
    accuracies = iter([9, 5])
    setup = Setup(
        ScriptedEngine(THREE),
        evaluator=lambda model, _: Evaluation(10, next(accuracies), float(model["w"])),
    )
    record = setup.scheduler.run(number(0))
    found = [done.evaluation for done in setup.recorder.rounds]
    assert found == [Evaluation(10, 9, 2.0), Evaluation(10, 5, 4.0)]
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
    lost = {(2, 0, "second"): {"a", "b", "c"}, (2, 1, "first"): {"c"}}
    setup = Setup(ScriptedEngine(THREE, lost), "scheduler.min_clients=3")
    assert setup.run() == 4
    assert setup.algorithm.states_at_start == [0, 1, 1, 1]
    assert setup.algorithm.models_at_start == [0, 2, 2, 2]
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
    answered, reasons = "0 of 3 clients answered", "a: lost; b: lost; c: lost"
    reason = f"round 2 second 1: {answered}, 3 are needed ({reasons})"
    assert setup.recorder.failures[0] == (2, 0, reason)


class WorkingEngine(ScriptedEngine):
    """Every client computes 10 gradients in each exchange but the delivery.

    In the second one it reports round + attempt as a metric.
    """

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        name, moment = exchange.id.name, exchange.id.round + exchange.id.attempt
        computed = Reply(
            loss=1.0,
            gradient_evaluations=0 if name == DELIVER else 10,
            metrics={"round": float(moment)} if name == "second" else {},
        )
        return replace(outcome, replies=dict.fromkeys(outcome.replies, computed))


def test_work_adds_up_and_metrics_are_averaged_over_a_rounds_exchanges() -> None:
    setup = Setup(WorkingEngine(THREE, {(2, 0, "second"): {"a"}}), "scheduler.min_clients=3")
    record = setup.scheduler.run(number(0))
    # Round 2's first attempt failed, after 3 + 2 answers: the clients did that work all the same.
    assert [done.gradient_evaluations for done in setup.recorder.rounds] == [60, 50 + 60]
    assert record.gradient_evaluations == 170
    # Metrics are those of the attempt that made the model.
    assert [done.metrics for done in setup.recorder.rounds] == [{"round": 1.0}, {"round": 3.0}]


def always_losing(round_number: int) -> dict[Moment, set[str]]:
    return {(round_number, attempt, "first"): {"a"} for attempt in range(100)}


@pytest.mark.parametrize("retries", [0, 1, 4])
def test_clients_that_are_there_but_do_not_reply_end_the_run_after_the_retries(
    retries: int,
) -> None:
    overrides = "scheduler.min_clients=3", f"scheduler.retries={retries}"
    setup = Setup(ScriptedEngine(THREE, always_losing(1)), *overrides)
    with pytest.raises(PausedError, match="3 clients are connected, so waiting for more would not"):
        setup.run()
    assert len(setup.recorder.failures) == retries + 1
    assert setup.recorder.run is None
    assert setup.engine.finished == []  # the caller says how it ended


def test_a_run_whose_connections_broke_pauses_although_the_clients_are_back() -> None:
    lost = {(1, attempt, "first"): {"a"} for attempt in range(3)}
    engine = ScriptedEngine(THREE, lost, cause=Cause.DISCONNECTED)
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.pause_timeout_s=12")
    assert setup.run() == 4
    assert engine.waits == [(3, None), (3, 12.0)]
    assert len(setup.recorder.failures) == 3


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
    (pause,) = setup.recorder.pauses
    until = r"\d\d:\d\d:\d\d \(scheduler\.pause_timeout_s = 12\)"
    assert re.fullmatch(rf"round 2 needs 3 clients, 2 are connected; missing: a; if nobody comes, the run ends at {until}", pause)
    assert setup.recorder.events[4:7] == ["round 2.0 failed", "paused", "round 2.1 of 3"]


def test_a_paused_run_gives_up_when_nobody_comes_in_time() -> None:
    engine = ScriptedEngine(THREE, {(2, 0, "first"): {"a"}})
    engine.on_loss = lambda _: engine.connected.pop("a")
    setup = Setup(engine, "scheduler.min_clients=3", "scheduler.pause_timeout_s=12")
    answers = iter([True, False])
    engine.on_wait = lambda: next(answers)
    reason = r"no other client joined within scheduler\.pause_timeout_s = 12$"
    with pytest.raises(PausedError, match=reason):
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


def test_a_client_that_went_silent_in_one_round_is_asked_in_the_next() -> None:
    engine = ScriptedEngine(THREE, {(1, 0, "second"): {"b"}}, cause=Cause.SILENT)
    setup = Setup(engine)
    setup.run()
    asked = {exchange.id: list(exchange.clients) for exchange in engine.exchanges}
    assert asked[ExchangeId(RUN_ID, 2, 0, "first", 0)] == ["a", "b", "c"]
    assert asked[ExchangeId(RUN_ID, 2, 0, "second", 0)] == ["a", "b", "c"]


# Metrics.


class Talkative(ScriptedEngine):
    """Each client reports as many metrics as it may, by new names in each exchange, and `loss2`."""

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        replies = {}
        for client, reply in outcome.replies.items():
            prefix = f"{client} {exchange.id.name} {exchange.id.round}"
            names = ["loss2", *(f"{prefix} {index}" for index in range(MAX_METRICS - 1))]
            replies[client] = replace(reply, metrics=dict.fromkeys(names, 1.0))
        return replace(outcome, replies=replies)


def test_the_names_of_metrics_are_bounded_over_a_run(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(Talkative(THREE))
    with caplog.at_level(logging.WARNING):
        setup.run()
    records = setup.recorder.exchanges
    names = [list(record.metrics) for record in records]
    assert len(set().union(*names)) == MAX_METRIC_NAMES
    assert len(names[0]) == 3 * (MAX_METRICS - 1) + 1
    # A name that is known stays, whatever came after it.
    assert all(record.metrics["loss2"] == 1.0 for record in records)
    assert names[2] == ["loss2"]
    # One line in the log, however many names come.
    assert len(caplog.messages) == 1
    assert f"not recorded: the clients have used {MAX_METRIC_NAMES} others" in caplog.messages[0]


class Crowding(Talkative):
    """The same, and what sites are compared by comes late."""

    def outcome_of(self, exchange: Exchange) -> Outcome:
        outcome = super().outcome_of(exchange)
        late = {"teacher_accuracy": 0.5, "label_disagreement": 0.25} if exchange.id.round == 2 else {}
        replies = {client: replace(reply, metrics={**reply.metrics, **late}) for client, reply in outcome.replies.items()}
        return replace(outcome, replies=replies)


def test_names_that_clients_make_up_do_not_crowd_out_what_sites_are_compared_by() -> None:
    setup = Setup(Crowding(THREE))
    setup.run()
    found = [record.metrics for record in setup.recorder.exchanges if record.id.round == 2 and record.id.name == "first"]
    assert [(metrics["teacher_accuracy"], metrics["label_disagreement"]) for metrics in found] == [(0.5, 0.25)]


def test_metrics_within_the_bound_are_all_recorded(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup(Talkative({"a": 1}), "rounds=1")
    with caplog.at_level(logging.WARNING):
        setup.run()
    assert [len(record.metrics) for record in setup.recorder.exchanges] == [MAX_METRICS] * 3
    assert caplog.messages == []


# Clients of much weight, and clients that are missing.


@pytest.mark.parametrize(
    ("clients", "overrides", "expected"),
    [
        ({"a": 10, "b": 20, "c": 31}, [], ["c claims 31 examples, 51 % of all"]),
        ({"a": 10, "b": 20, "c": 30}, [], []),  # exactly half is not more
        ({"a": 10, "b": 20, "c": 31}, ["scheduler.weights=uniform"], []),
        ({"a": 10}, [], []),  # alone, it has all of it anyway
        ({"a": 721, "b": 717}, [], []),  # two of about the same size
        ({"a": 10, "b": 30}, [], []),
        ({"a": 10, "b": 31}, [], ["b claims 31 examples, 76 % of all"]),
        ({"a": 1, "b": 2**53}, [], [f"b claims {2**53} examples, 100 % of all"]),
    ],
)
def test_a_client_with_most_of_the_weight_is_named_once(
    clients: Mapping[str, int],
    overrides: list[str],
    expected: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        Setup(ScriptedEngine(clients), *overrides).run()
    assert caplog.messages == expected


def leaving(engine: ScriptedEngine, recorder: FullRecorder, event: str, client: str) -> None:
    """Let a client go away when something happens."""

    def leave(found: str) -> None:
        if found == event:
            engine.connected.pop(client)

    recorder.on_event = leave


def test_a_rounds_record_names_the_clients_of_the_federation_that_are_away() -> None:
    engine = ScriptedEngine(THREE, {(1, 0, "first"): {"a"}})
    setup = Setup(engine, 'scheduler.clients=["a", "b", "c", "d"]', "scheduler.min_clients=2")
    record = setup.scheduler.run(number(0))
    assert [dict(done.clients_missing) for done in setup.recorder.rounds] == [
        {"a": "lost", "d": "not connected"},
        {"d": "not connected"},
    ]
    assert record.rounds_missed == {"a": 1, "d": 2}
    assert record.not_delivered == {"d": "not connected"}


def test_a_client_that_took_part_and_left_is_missed_where_no_names_are_given() -> None:
    engine = ScriptedEngine(THREE)
    setup = Setup(engine, "rounds=3", "scheduler.clients=3", "scheduler.min_clients=2")
    leaving(engine, setup.recorder, "round 1 done", "b")
    record = setup.scheduler.run(number(0))
    # Round 2's cohort was drawn before it left.
    assert [dict(done.clients_missing) for done in setup.recorder.rounds] == [
        {},
        {},
        {"b": "not connected"},
    ]
    assert record.rounds_missed == {"b": 1}
    assert record.not_delivered == {"b": "not connected"}


def test_a_client_that_is_not_drawn_is_not_missing() -> None:
    setup = Setup(ScriptedEngine(THREE), "scheduler.cohort=1", 'scheduler.clients=["a", "b", "c"]')
    record = setup.scheduler.run(number(0))
    assert [dict(done.clients_missing) for done in setup.recorder.rounds] == [{}, {}]
    assert record.rounds_missed == {}


def test_missing_clients_are_those_of_the_attempt_that_made_the_model() -> None:
    lost = {(1, 0, "first"): {"a", "b"}, (1, 1, "first"): {"c"}}
    setup = Setup(ScriptedEngine(THREE, lost), "scheduler.min_clients=2")
    record = setup.scheduler.run(number(0))
    assert [dict(done.clients_missing) for done in setup.recorder.rounds] == [{"c": "lost"}, {}]
    assert record.rounds_missed == {"c": 1}


def test_a_run_says_who_did_not_get_the_final_model_and_why() -> None:
    engine = ScriptedEngine(THREE, {(2, 0, "deliver"): {"b"}})
    assert Setup(engine).scheduler.run(number(0)).not_delivered == {"b": "lost"}
    assert Setup(ScriptedEngine(THREE)).scheduler.run(number(0)).not_delivered == {}


# What stands around a cohort.


class Around(CohortAround):
    """Changes payloads on their way down and reduced contributions on their way up."""

    def __init__(
        self,
        cohort: Cohort,
        down: Callable[[float], float],
        up: Callable[[float], float],
    ) -> None:
        super().__init__(cohort)
        self._down = down
        self._up = up

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        reduced = super().exchange(name, number(self._down(float(payload["w"]))), step)
        return number(self._up(float(reduced["w"])))


def around(down: Callable[[float], float], up: Callable[[float], float]) -> CohortLayer:
    return lambda cohort: Around(cohort, down, up)


def test_a_layer_that_changes_nothing_changes_nothing() -> None:
    identities: list[CohortLayer] = [lambda cohort: cohort, around(lambda x: x, lambda x: x)]
    plain = Setup(ScriptedEngine(THREE))
    layered = Setup(ScriptedEngine(THREE), layers=identities)
    first, second = plain.scheduler.run(number(0)), layered.scheduler.run(number(0))
    assert first.model.sha256() == second.model.sha256()
    assert plain.recorder.events == layered.recorder.events
    assert plain.engine.ids() == layered.engine.ids()


def test_layers_stand_around_the_cohort_the_first_outermost() -> None:
    layers = [
        around(lambda x: x + 1, lambda x: x + 10),
        around(lambda x: x * 2, lambda x: x * 3),
    ]
    setup = Setup(ScriptedEngine(THREE), "rounds=1", layers=layers)
    # Down: plus 1, then doubled. Up: tripled, then plus 10; so each exchange adds 13.
    assert setup.run() == 26
    payloads = [float(exchange.payload["w"]) for exchange in setup.engine.exchanges]
    assert payloads == [2, 28, 26]  # the delivery sends the model itself


def test_each_attempt_has_layers_of_its_own() -> None:
    made: list[Cohort] = []

    def layer(cohort: Cohort) -> Cohort:
        made.append(cohort)
        return cohort

    engine = ScriptedEngine(THREE, {(1, 0, "second"): {"a"}})
    Setup(engine, "scheduler.min_clients=3", layers=[layer]).run()
    assert len(made) == len(set(map(id, made))) == 3


def test_an_error_of_a_layer_that_rejects_a_result_fails_the_attempt() -> None:
    rejections = iter([True, False, False])

    def reject_once(cohort: Cohort) -> Cohort:
        if next(rejections):
            raise NotFiniteError("a mask did not fit")
        return cohort

    setup = Setup(ScriptedEngine(THREE), layers=[reject_once])
    assert setup.run() == 4
    assert setup.recorder.failures == [(1, 0, "a mask did not fit")]


# The journal.


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[FileJournal]:
    with closing(FileJournal.create(tmp_path, Header(RUN_ID, ""), "exchange")) as journal:
        yield journal


def journalled(folder: Path) -> list[str]:
    _, entries = read_journal(folder)
    return [entry.event.record.id.name for entry, _ in entries if isinstance(entry.event, ExchangeDone)]


def test_what_the_journal_knows_does_not_go_to_the_engine(journal: FileJournal, tmp_path: Path) -> None:
    engine = ScriptedEngine(THREE, {(1, 0, "first"): {"a", "c"}}, reduced={(1, 0, "first"): 7.0}, cause=Cause.DISCONNECTED)
    setup = Setup(engine, "rounds=1", journal=journal)
    setup.recorder.on_event = lambda event: setup.engine.abort("the process dies") if event == "first 1.0" else None
    with pytest.raises(RunError):
        setup.run()
    assert journalled(journal.folder) == ["first"]
    journal.close()
    with closing(FileJournal.open(tmp_path)) as again:
        setup = Setup(ScriptedEngine(THREE), "rounds=1", journal=again)
        assert setup.run() == 8
        asked = [(exchange.id.name, list(exchange.clients)) for exchange in setup.engine.exchanges]
        assert asked == [("second", ["b"]), ("deliver", ["a", "b", "c"])]
        assert journalled(tmp_path) == ["first", "second", "deliver"]
    assert [record.id.name for record in setup.recorder.exchanges] == ["first", "second", "deliver"]
    assert setup.recorder.rounds[0].clients_missing == {"a": "lost", "c": "lost"}


def test_an_outcome_is_journalled_before_anything_is_made_of_it(journal: FileJournal) -> None:
    engine = ScriptedEngine(THREE, {(1, 0, "first"): set(THREE)})
    setup = Setup(engine, "scheduler.retries=0", journal=journal)
    found: list[list[str]] = []
    setup.recorder.on_event = lambda event: found.append(journalled(journal.folder)) if event == "first 1.0" else None
    with pytest.raises(PausedError):
        setup.run()
    assert found == [["first"]]


def test_clients_hear_of_an_outcome_once_it_is_in_the_journal(journal: FileJournal) -> None:
    told: list[list[str]] = []

    class Telling(ScriptedEngine):
        def begin(self, exchange: Exchange) -> OpenExchange:
            begun = super().begin(exchange)
            begun.acknowledge = lambda: told.append(journalled(journal.folder))  # type: ignore[method-assign]
            return begun

    Setup(Telling(THREE), "rounds=1", journal=journal).run()
    assert told == [["first"], ["first", "second"], ["first", "second", "deliver"]]
