"""A journal is brought back to its newest good state before a run goes on."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from harness import RUN_ID
from scripted import THREE, Moment, ScriptedEngine, Setup
from typer.testing import CliRunner, Result

from feddkd import cli
from feddkd.config import Config
from feddkd.errors import ConfigError, RunError, StateError
from feddkd.exchange import DELIVER, ExchangeId
from feddkd.failpoints import FailpointError, planned
from feddkd.scheduler.events import Event, ExchangeDone, Resumed, RoundFinished, RoundStarted, RunFinished
from feddkd.scheduler.journal import NoJournal
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.recovery import Spent, new_journal, resume
from feddkd.scheduler.state import RunState, fold
from feddkd.traffic import Traffic

EACH = Traffic(1, 1, 10, 100)
"""Of each exchange."""

WIRE = Traffic(0, 0, 10, 100)
"""The part of it that is on the wire."""

OTHER = ScriptedEngine(THREE).other_traffic()
"""Of each process that finishes the run."""

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

Overrides = tuple[str, ...]


def config(*overrides: str) -> Config:
    return Config.load(overrides=["rounds=2", *overrides])


def begin(folder: Path, until: str, *overrides: str, lost: dict[Moment, set[str]] | None = None) -> None:
    """Let a first process work on a run of two rounds until an event."""
    with closing(new_journal(folder, RUN_ID, config(*overrides))) as journal:
        setup = Setup(ScriptedEngine(THREE, lost), *overrides, journal=journal)
        setup.recorder.on_event = lambda event: setup.engine.abort("it dies") if event == until else None
        with pytest.raises(RunError, match="it dies"):
            setup.run()


def go_on(folder: Path, *overrides: str, spent: Spent | None = None) -> Setup:
    """Let another process take the run to its end."""
    with closing(resume(folder, config(*overrides), spent)) as journal:
        setup = Setup(ScriptedEngine(THREE), *overrides, journal=journal)
        setup.run()
    return setup


def asked(setup: Setup) -> list[tuple[int, str]]:
    return setup.engine.ids()


def events_of(folder: Path, kind: type[Event]) -> list[Event]:
    return [entry.event for entry, _ in read_journal(folder)[1] if isinstance(entry.event, kind)]


def damage(folder: Path, name: str) -> None:
    file = folder / "blobs" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def resumed(folder: Path) -> Resumed:
    """The last time that another process went on."""
    event = events_of(folder, Resumed)[-1]
    assert isinstance(event, Resumed)
    return event


def spent(folder: Path) -> dict[tuple[int, str], Traffic]:
    """What the processes before the last one had spent on exchanges that are open again."""
    return by_place(dict(resumed(folder).spent))


def by_place(traffic: Mapping[ExchangeId, Traffic]) -> dict[tuple[int, str], Traffic]:
    """Traffic by round and exchange, of a run without failed attempts."""
    return {(exchange.round, exchange.name): found for exchange, found in traffic.items()}


def outcomes(folder: Path) -> list[str]:
    """Names of the blobs of all outcomes."""
    return [event.outcome for event in events_of(folder, ExchangeDone) if isinstance(event, ExchangeDone)]


def state_of(folder: Path) -> RunState:
    return fold([entry for entry, _ in read_journal(folder)[1]], RUN_ID, quorum=1)


def all_bytes(setup: Setup) -> int:
    """On the wire, of a finished run, but for what its last process spent on no exchange."""
    record = setup.recorder.run
    assert record is not None
    return record.traffic.wire_bytes + record.other_traffic.wire_bytes - OTHER.wire_bytes


def finished(folder: Path) -> list[RoundFinished]:
    return [event for event in events_of(folder, RoundFinished) if isinstance(event, RoundFinished)]


def test_a_run_goes_on_after_its_last_exchange(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    setup = go_on(tmp_path)
    assert asked(setup) == [(2, "second"), (2, DELIVER)]
    assert resumed(tmp_path).incarnation == 2
    assert setup.recorder.run is not None
    assert setup.recorder.run.lost_traffic == Traffic()


def test_the_engine_remembers_whose_replies_counted(tmp_path: Path) -> None:
    begin(tmp_path, "second 2.0", lost={(2, 0, "first"): {"b"}, (2, 0, "second"): {"c"}})
    told: list[Mapping[str, ExchangeId]] = []

    class Remembering(ScriptedEngine):
        def remember(self, counted: Mapping[str, ExchangeId]) -> None:
            assert self.exchanges == []
            told.append(dict(counted))

    with closing(resume(tmp_path, config())) as journal:
        Setup(Remembering(THREE), journal=journal).run()
    ids = [ExchangeId(RUN_ID, *moment, 0) for moment in ((2, 0, "second"), (1, 0, "second"), (2, 0, "first"))]
    assert told == [dict(zip("abc", ids, strict=True))]


def test_by_round_only_the_open_round_is_lost(tmp_path: Path) -> None:
    by_round = "scheduler.durability=round"
    begin(tmp_path, "first 2.0", by_round)
    setup = go_on(tmp_path, by_round)
    assert asked(setup) == [(2, "first"), (2, "second"), (2, DELIVER)]
    assert spent(tmp_path) == {(2, "first"): WIRE}
    again = setup.recorder.of("first", 2)
    assert (again.traffic, again.lost) == (EACH + WIRE, WIRE)
    record = setup.recorder.run
    assert record is not None
    assert record.lost_traffic == WIRE
    # All that crossed the network is in the totals.
    assert record.traffic.wire_bytes == 6 * EACH.wire_bytes
    assert record.other_traffic == OTHER


def test_a_damaged_outcome_of_the_open_round_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, "second 2.0")
    name = outcomes(tmp_path)[2]
    damage(tmp_path, name)
    with caplog.at_level(logging.WARNING):
        setup = go_on(tmp_path)
    assert asked(setup) == [(2, "first"), (2, "second"), (2, DELIVER)]
    assert spent(tmp_path) == {(2, "first"): WIRE, (2, "second"): WIRE}
    assert [setup.recorder.of(exchange, 2).lost for exchange in ("first", "second")] == [WIRE, WIRE]
    assert all_bytes(setup) == 7 * EACH.wire_bytes
    assert name in caplog.messages[0]
    assert "2 events after the newest good state were cut off" in caplog.messages[1]
    assert (tmp_path / "blobs" / f"{name}.corrupt").exists()


def test_outcomes_of_an_attempt_that_failed_are_not_needed(tmp_path: Path) -> None:
    lost: dict[Moment, set[str]] = {(1, 0, "second"): set(THREE)}
    begin(tmp_path, "round 1.0 failed", lost=lost)
    for _ in range(2):  # the first deletes them
        resume(tmp_path, config()).close()
    setup = go_on(tmp_path)
    assert asked(setup)[0] == (1, "first")
    assert setup.engine.exchanges[0].id.attempt == 1
    assert resumed(tmp_path).spent == ()


def test_the_outcome_of_a_delivery_that_more_rounds_came_after_is_not_needed(tmp_path: Path) -> None:
    with closing(new_journal(tmp_path, RUN_ID, config())) as journal:
        setup = Setup(ScriptedEngine(THREE), journal=journal)
        with planned("scheduler.run.before_finish=raise"), pytest.raises(FailpointError):
            setup.run()
    for _ in range(2):
        resume(tmp_path, config("rounds=3")).close()
    assert asked(go_on(tmp_path, "rounds=3")) == [(3, "first"), (3, "second"), (3, DELIVER)]
    assert resumed(tmp_path).spent == ()


@pytest.mark.parametrize("part", ["model", "state"])
@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, part: str, gone: bool) -> None:
    begin(tmp_path, "first 3.0", "rounds=3")
    name = getattr(finished(tmp_path)[1], part)
    if gone:
        (tmp_path / "blobs" / f"{name}.safetensors").unlink()
    else:
        damage(tmp_path, name)
    setup = go_on(tmp_path, "rounds=3")
    assert asked(setup) == [(2, "first"), (2, "second"), (3, "first"), (3, "second"), (3, DELIVER)]
    assert [event.round for event in finished(tmp_path)] == [1, 2, 3]
    assert setup.recorder.run is not None
    assert float(setup.recorder.run.model["w"]) == 6
    assert spent(tmp_path) == {(2, "first"): WIRE, (2, "second"): WIRE, (3, "first"): WIRE}
    assert all_bytes(setup) == 10 * EACH.wire_bytes


def test_where_no_checkpoint_is_good_the_run_begins_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, "first 3.0", "rounds=3")
    for event in finished(tmp_path):
        damage(tmp_path, event.model)
    with caplog.at_level(logging.WARNING):
        setup = go_on(tmp_path, "rounds=3")
    assert asked(setup)[:2] == [(1, "first"), (1, "second")]
    assert any("the run starts over" in message for message in caplog.messages)
    assert setup.recorder.run is not None
    assert float(setup.recorder.run.model["w"]) == 6


def test_a_process_counts_on_where_events_of_others_were_cut_off(tmp_path: Path) -> None:
    """Clients refuse a server that counts lower than one that they have seen."""
    begin(tmp_path, "first 2.0")
    spent = Spent(ExchangeId(RUN_ID, 2, 0, "second", 0), Traffic(0, 0, 5, 6), Traffic(0, 0, 7, 8))
    for incarnation in (2, 3):
        with closing(resume(tmp_path, config(), spent)) as journal:
            assert fold(journal.entries, RUN_ID, 1).incarnation == incarnation
        spent = Spent()
    damage(tmp_path, finished(tmp_path)[0].model)
    resume(tmp_path, config()).close()
    state = state_of(tmp_path)
    assert state.incarnation == 4
    # What those processes had spent is not forgotten either, and is told by the exchange.
    second = Traffic(0, 0, 5, 6)
    assert by_place(state.spent) == {(1, "first"): WIRE, (1, "second"): WIRE, (2, "first"): WIRE, (2, "second"): second}
    assert state.tally.other == Traffic(0, 0, 7, 8)
    assert state.traffic == WIRE + WIRE + WIRE + second + Traffic(0, 0, 7, 8)
    setup = go_on(tmp_path)
    assert all_bytes(setup) == 8 * EACH.wire_bytes + second.wire_bytes + 15
    assert setup.recorder.run is not None
    assert setup.recorder.run.lost_traffic == WIRE + WIRE + WIRE + second


def test_who_owns_an_id_is_known_although_the_event_that_said_so_was_cut_off(tmp_path: Path) -> None:
    class Owned(ScriptedEngine):
        def owners(self) -> Mapping[str, str]:
            return {client: f"hash of {client}" for client in self.connected}

    with closing(new_journal(tmp_path, RUN_ID, config())) as journal:
        setup = Setup(Owned({"a": 1, "b": 1}), journal=journal)
        happens = {"model 1 is 2": lambda: setup.engine.connected.update(c=1), "second 2.0": lambda: setup.engine.abort("it dies")}
        setup.recorder.on_event = lambda event: happens.get(event, lambda: None)()
        with pytest.raises(RunError, match="it dies"):
            setup.run()
    known = state_of(tmp_path).owners
    damage(tmp_path, finished(tmp_path)[0].model)
    resume(tmp_path, config()).close()
    assert state_of(tmp_path).owners == known
    assert known["c"] == "hash of c"


def test_what_the_process_before_spent_on_the_open_exchange_is_part_of_it(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    spent = Spent(ExchangeId(RUN_ID, 2, 0, "second", 0), Traffic(0, 0, 5, 6), Traffic(0, 0, 7, 8))
    setup = go_on(tmp_path, spent=spent)
    record = setup.recorder.of("second", 2)
    assert record.traffic == EACH + Traffic(0, 0, 5, 6)
    assert setup.recorder.run is not None
    assert setup.recorder.run.other_traffic == Traffic(0, 0, 7, 8) + setup.engine.other_traffic()


def test_the_bytes_of_an_exchange_that_is_done_do_not_count_again(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    setup = go_on(tmp_path, spent=Spent(ExchangeId(RUN_ID, 2, 0, "first", 0), WIRE))
    assert setup.recorder.of("second", 2).traffic == EACH
    assert setup.recorder.run is not None
    assert setup.recorder.run.traffic.wire_bytes == 5 * EACH.wire_bytes


def test_the_bytes_of_an_exchange_that_is_open_again_count_once(tmp_path: Path) -> None:
    """Its clients may still have their replies: then these are the bytes that those took."""
    begin(tmp_path, "first 2.0")
    damage(tmp_path, outcomes(tmp_path)[-1])
    setup = go_on(tmp_path, spent=Spent(ExchangeId(RUN_ID, 2, 0, "first", 0), WIRE))
    assert spent(tmp_path) == {(2, "first"): WIRE}
    assert setup.recorder.of("first", 2).traffic == EACH + WIRE
    assert setup.recorder.run is not None
    assert setup.recorder.run.traffic.wire_bytes == 6 * EACH.wire_bytes


def test_the_bytes_of_each_exchange_that_is_carried_out_again_are_its_own(tmp_path: Path) -> None:
    begin(tmp_path, "second 2.0")
    damage(tmp_path, outcomes(tmp_path)[-2])
    setup = go_on(tmp_path, spent=Spent(ExchangeId(RUN_ID, 2, 0, "second", 0), WIRE))
    for exchange in ("first", "second"):
        record = setup.recorder.of(exchange, 2)
        assert (record.traffic, record.lost) == (EACH + WIRE, WIRE)
    assert all_bytes(setup) == 7 * EACH.wire_bytes


def test_where_the_later_outcome_is_damaged_the_attempt_begins_again_with_its_first_exchange(tmp_path: Path) -> None:
    """Clients may not hold any more what the second exchange needs of the first."""
    begin(tmp_path, "second 2.0")
    damage(tmp_path, outcomes(tmp_path)[-1])
    setup = go_on(tmp_path)
    assert asked(setup) == [(2, "first"), (2, "second"), (2, DELIVER)]
    assert [exchange.id.attempt for exchange in setup.engine.exchanges] == [0, 0, 0]
    assert [event.round for event in events_of(tmp_path, RoundStarted)] == [1, 2]  # type: ignore[union-attr]
    assert all_bytes(setup) == 7 * EACH.wire_bytes


def test_bytes_of_an_exchange_that_is_never_carried_out_again_are_lost_in_the_end(tmp_path: Path) -> None:
    """More rounds come before the delivery that was open."""
    begin(tmp_path, "model 2 is 4")
    delivery, half = ExchangeId(RUN_ID, 2, 0, DELIVER, 0), Traffic(0, 0, 5, 6)
    setup = go_on(tmp_path, "rounds=3", spent=Spent(delivery, half))
    record = setup.recorder.run
    assert record is not None
    assert (record.other_traffic, record.lost_traffic) == (OTHER + half, half)
    assert all_bytes(setup) == 7 * EACH.wire_bytes + half.wire_bytes
    assert state_of(tmp_path).spent == {}


def test_bytes_that_were_given_up_count_once_though_the_end_of_the_run_is_cut_off(tmp_path: Path) -> None:
    begin(tmp_path, "model 2 is 4")
    half = Traffic(0, 0, 5, 6)
    go_on(tmp_path, "rounds=3", spent=Spent(ExchangeId(RUN_ID, 2, 0, DELIVER, 0), half))
    before = state_of(tmp_path).traffic
    damage(tmp_path, finished(tmp_path)[-1].model)
    resume(tmp_path, config("rounds=3")).close()
    assert state_of(tmp_path).traffic.wire_bytes == before.wire_bytes
    setup = go_on(tmp_path, "rounds=3")
    record = setup.recorder.run
    assert record is not None
    assert record.lost_traffic == half + WIRE + WIRE + WIRE
    # The process that had finished it had spent something on no exchange, too.
    assert all_bytes(setup) == 10 * EACH.wire_bytes + half.wire_bytes + OTHER.wire_bytes


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    with closing(new_journal(tmp_path, RUN_ID, config())) as journal:
        Setup(ScriptedEngine(THREE, {(2, 0, DELIVER): {"b"}}), journal=journal).run()
    return tmp_path


def test_a_finished_run_stays_as_it_is(done: Path) -> None:
    before = (done / "journal.jsonl").read_bytes()
    setup = go_on(done)
    assert asked(setup) == []
    assert (done / "journal.jsonl").read_bytes() == before
    record = setup.recorder.run
    assert record is not None
    assert (float(record.model["w"]), record.not_delivered, record.rounds) == (4, {"b": "lost"}, 2)
    assert [found.round for found in setup.recorder.rounds] == [1, 2]


def test_a_finished_run_can_be_extended(done: Path) -> None:
    other = ScriptedEngine(THREE).other_traffic()
    # The mark of the process that finished it is still there.
    setup = go_on(done, "rounds=3", spent=Spent(ExchangeId(RUN_ID, 2, 0, DELIVER, 0), WIRE, other))
    assert asked(setup) == [(3, "first"), (3, "second"), (3, DELIVER)]
    record = setup.recorder.run
    assert record is not None
    assert (float(record.model["w"]), record.rounds, record.not_delivered) == (6, 3, {})
    assert [(found.round, found.traffic.wire_bytes) for found in setup.recorder.rounds] == [(1, 220), (2, 330), (3, 330)]
    assert record.traffic.wire_bytes == 880
    assert record.other_traffic == other + other
    assert len(events_of(done, RunFinished)) == 2


def test_a_run_that_died_before_its_farewell_can_be_extended(tmp_path: Path) -> None:
    with closing(new_journal(tmp_path, RUN_ID, config())) as journal:
        setup = Setup(ScriptedEngine(THREE), journal=journal)
        with planned("scheduler.run.before_finish=raise"), pytest.raises(FailpointError):
            setup.run()
    setup = go_on(tmp_path, "rounds=3")
    assert asked(setup) == [(3, "first"), (3, "second"), (3, DELIVER)]
    assert setup.recorder.run is not None
    assert float(setup.recorder.run.model["w"]) == 6
    assert [found.round for found in setup.recorder.rounds] == [1, 2, 3]


def test_a_run_that_stopped_before_its_delivery_can_be_extended(tmp_path: Path) -> None:
    begin(tmp_path, "model 2 is 4")
    setup = go_on(tmp_path, "rounds=3")
    assert asked(setup) == [(3, "first"), (3, "second"), (3, DELIVER)]


def test_a_run_that_died_while_it_delivered_can_be_extended(tmp_path: Path) -> None:
    class Dying(ScriptedEngine):
        def begin(self, exchange):  # type: ignore[no-untyped-def]
            if exchange.id.name == DELIVER:
                self.abort("it dies")
            return super().begin(exchange)

    with closing(new_journal(tmp_path, RUN_ID, config())) as journal, pytest.raises(RunError, match="it dies"):
        Setup(Dying(THREE), journal=journal).run()
    setup = go_on(tmp_path, "rounds=3")
    assert asked(setup) == [(3, "first"), (3, "second"), (3, DELIVER)]
    assert [found.round for found in setup.recorder.rounds] == [1, 2, 3]
    assert [event.round for event in events_of(tmp_path, RoundStarted)] == [1, 2, 3]  # type: ignore[union-attr]


def test_fewer_rounds_than_are_done_are_refused(done: Path) -> None:
    before = (done / "journal.jsonl").read_bytes()
    with pytest.raises(StateError, match=r"holds a run with round 2 begun, which is more than rounds = 1$"):
        resume(done, config("rounds=1"))
    assert (done / "journal.jsonl").read_bytes() == before
    resume(done, config()).close()


def test_a_round_that_has_begun_is_not_left_out(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    with pytest.raises(StateError, match=r"holds a run with round 2 begun, which is more than rounds = 1$"):
        resume(tmp_path, config("rounds=1"))
    assert asked(go_on(tmp_path)) == [(2, "second"), (2, DELIVER)]


def test_a_run_with_a_journal_does_not_go_on_without(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(StateError, match=r"needs to resume: set scheduler\.durability = exchange or round"):
        resume(tmp_path, config("scheduler.durability=none"))
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_the_events_are_forgotten_once_they_are_taken_in(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    with closing(resume(tmp_path, config())) as journal:
        Setup(ScriptedEngine(THREE), journal=journal).run()
        assert journal.entries == []
    assert state_of(tmp_path).ended is not None


def test_what_the_mark_says_of_processes_counts_where_the_journal_has_lost_them(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    go_on(tmp_path, spent=Spent(incarnation=7))
    assert resumed(tmp_path).incarnation == 8


def test_fewer_rounds_than_planned_end_a_run_earlier(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0", "rounds=5")
    setup = go_on(tmp_path, "rounds=2")
    assert asked(setup) == [(2, "second"), (2, DELIVER)]


@pytest.mark.parametrize("training", ["cosine", "linear", "polynomial", "module:function"])
def test_the_number_of_rounds_may_not_change_where_the_learning_rate_depends_on_it(tmp_path: Path, training: str) -> None:
    schedule = f"training.schedule={training}"
    begin(tmp_path, "first 2.0", schedule)
    with pytest.raises(StateError, match=r"of another configuration: rounds = 2 there, 3 here$"):
        resume(tmp_path, config("rounds=3", schedule))
    assert asked(go_on(tmp_path, schedule)) == [(2, "second"), (2, DELIVER)]


@pytest.mark.parametrize("keys", [["schedule=step", "schedule_options.step_size=1"], ["schedule=cosine", "schedule_over=steps"]])
def test_a_run_whose_learning_rate_does_not_end_with_its_rounds_may_have_more(tmp_path: Path, keys: list[str]) -> None:
    schedule = [f"training.{key}" for key in keys]
    begin(tmp_path, "first 2.0", *schedule)
    assert asked(go_on(tmp_path, "rounds=3", *schedule))[0] == (2, "second")


def test_another_configuration_is_refused_and_its_keys_are_named(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(StateError, match="of another configuration") as refused:
        resume(tmp_path, config("seed=7", "training.lr=0.5", "scheduler.min_clients=2"))
    message = str(refused.value)
    assert RUN_ID in message
    assert "scheduler.min_clients = unset there, 2 here" in message
    assert "seed = 0 there, 7 here" in message
    assert " there, 0.5 here" in message
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert asked(go_on(tmp_path)) == [(2, "second"), (2, DELIVER)]


BEGUN = ["task.name=regression", "task.loss=huber", "algorithm.name=feddyn", "algorithm.alpha=0.3", "data.holdout=0.2"]


def resumed_with(folder: Path, overrides: Sequence[str]) -> Result:
    options = [option for override in overrides for option in ("-o", override)]
    with closing(new_journal(folder, RUN_ID, config(*BEGUN))):
        return CliRunner().invoke(cli.app, ["run", "--resume", str(folder), *options])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.name=multilabel"], "task.name = regression there, multilabel here"),
        (["task.name=multilabel", "task.positive_weights=[1]"], "task.name = regression there, multilabel here"),
        (["task.name=other:Task", "task.metrics=[1]"], "task.name = regression there, other:Task here"),
        (["algorithm.name=fedavg"], "algorithm.name = feddyn there, fedavg here"),
        (["algorithm.name=fedprox", "algorithm.mu=0.1"], "algorithm.name = feddyn there, fedprox here"),
        (
            ["scheduler.stop_at=0.5", "data.test_set=false", "data.holdout=0.0"],
            "data.holdout = 0.2 there, 0.0 here, data.test_set = True there",
        ),
        (["dkd.temperature=-1"], r"dkd.temperature = \S+ there, -1 here"),
    ],
)
def test_an_override_that_may_not_change_is_named_whatever_else_it_would_need(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Config.loads(config(*BEGUN).to_toml(), overrides)
    result = resumed_with(tmp_path, overrides)
    assert isinstance(result.exception, StateError)
    assert re.search(f"holds run {RUN_ID} of another configuration: {message}", str(result.exception))


@pytest.mark.parametrize("options", [[], ["--check"]])
@pytest.mark.parametrize("override", ["task.name=other:Task", "partition.clients=7", "model.name=other:net", "seed=3"])
def test_what_may_not_change_is_said_before_anything_else_of_the_configuration(override: str, options: list[str], tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "crashed", tmp_path / "begun")
    result = CliRunner().invoke(cli.app, ["run", "--resume", str(tmp_path / "begun"), "-o", override, *options])
    key, _, value = override.partition("=")
    assert isinstance(result.exception, StateError)
    assert re.search(rf"of another configuration: {key} = \S+ there, {value} here", str(result.exception))


@pytest.mark.parametrize("override", ["rounds=0", "runtime.threads=none", "task.los=huber", "data.root=1"])
def test_an_override_that_is_wrong_in_itself_is_still_named(override: str, tmp_path: Path) -> None:
    result = resumed_with(tmp_path, [override])
    assert isinstance(result.exception, ConfigError)
    assert override.partition("=")[0] in str(result.exception)


def test_what_changes_no_model_may_change(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    free = ("scheduler.durability=round", "scheduler.resume_grace_s=1", "runtime.threads=2", "data.root=elsewhere")
    assert asked(go_on(tmp_path, *free))[-1] == (2, DELIVER)


def test_a_run_of_another_version_of_the_configuration_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b"seed = ", b"seeds = ", 1))
    with pytest.raises(StateError, match=r"holds a run that this version of feddkd cannot resume: .*seeds"):
        resume(tmp_path, config())


@pytest.mark.parametrize("refuse", [lambda folder: resume(folder, config("seed=7")), lambda folder: resume(folder, config("rounds=1"))])
def test_a_run_that_is_refused_is_let_go(done: Path, refuse: Callable[[Path], FileJournal]) -> None:
    with pytest.raises(StateError):
        refuse(done)
    FileJournal.open(done).close()


def test_without_durability_there_is_no_journal(tmp_path: Path) -> None:
    assert isinstance(new_journal(tmp_path, RUN_ID, config("scheduler.durability=none")), NoJournal)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_does_not_need_any_more_is_deleted(tmp_path: Path) -> None:
    begin(tmp_path, "first 2.0")
    (tmp_path / "blobs" / "half.partial").write_bytes(b"half")
    go_on(tmp_path)
    needed = {name for event in finished(tmp_path) for name in (event.model, event.state)}
    assert {file.stem for file in (tmp_path / "blobs").iterdir()} == needed


def test_what_a_process_spent_counts_once_though_the_next_one_died_before_it_counted_anything(tmp_path: Path) -> None:
    """It had said so in the journal, and left the mark of the process before it."""
    begin(tmp_path, "first 2.0")
    spent = Spent(ExchangeId(RUN_ID, 2, 0, "second", 0), WIRE, WIRE, incarnation=1)
    for _ in range(2):
        resume(tmp_path, config(), spent).close()
    first, second = (event for event in events_of(tmp_path, Resumed) if isinstance(event, Resumed))
    assert (by_place(dict(first.spent)), first.other) == ({(2, "second"): WIRE}, WIRE)
    assert (second.spent, second.other) == ((), Traffic())
