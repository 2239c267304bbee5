"""`feddkd status`: what it says of runs that are running, dead, paused and finished, and that it changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import cast

import pytest
from killed_runs import OVERRIDES, cut_after, finished_run, round_2_began, snapshot
from typer.testing import CliRunner

from feddkd import cli
from feddkd.cli.run_place import RunPlace
from feddkd.cli.run_status import RunStatus
from feddkd.engines.traffic_mark import TRAFFIC_MARK, TrafficMark
from feddkd.errors import StateError
from feddkd.exchange import ExchangeId
from feddkd.observability.status_file import STATUS, StatusFile
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.journal_file import FileJournal
from feddkd.scheduler.journal_lines import JOURNAL, read_journal
from feddkd.scheduler.server_state import ServerState


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs")
    return finished_run(folder / "finished", folder / "blobs")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def kill_in_round_2(folder: Path) -> None:
    cut_after(folder, round_2_began)


def look(folder: Path) -> RunStatus:
    return RunStatus.of(RunPlace.find(folder))


def as_printed(folder: Path, *options: str) -> str:
    done = CliRunner().invoke(cli.app, ["status", str(folder), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_finished_run_has_the_totals_of_its_events(folder: Path) -> None:
    found = json.loads(as_printed(folder, "--json"))
    assert (found["state"], found["rounds"], found["rounds_done"], found["go_on"]) == ("finished", 2, 2, "")
    assert found["last_exchange"] == {"round": 2, "attempt": 0, "exchange": "deliver", "step": 0}
    _, entries = read_journal(folder)
    exchanges = [entry.event.record for entry, _ in entries if entry.event.kind == "exchange_done"]
    for direction in ("down", "up"):
        assert found[f"wire_bytes_{direction}"] == sum(getattr(record.traffic, f"wire_bytes_{direction}") for record in exchanges)
    assert found["journal_bytes"] == (folder / JOURNAL).stat().st_size
    assert found["blob_bytes"] == sum(file.stat().st_size for file in (folder / "blobs").iterdir())
    assert list(found["clients"]) == ["client-0", "client-1", "client-2"]


def test_a_run_that_nobody_works_on_is_dead_and_says_how_to_go_on(folder: Path) -> None:
    kill_in_round_2(folder)
    found = look(folder)
    assert (found.state, found.progress.done, found.progress.attempt) == ("dead", 1, 0)
    assert found.go_on == f"feddkd run --resume {folder.resolve()}"
    table = as_printed(folder)
    assert "dead" in table
    assert "2 of 2" in table
    assert "dkd_step 2 of round 1 was the last one done" in table
    assert "feddkd run --resume" in table


def test_a_run_whose_journal_is_open_is_running(folder: Path) -> None:
    kill_in_round_2(folder)
    journal = FileJournal.open(folder)
    with StatusFile(folder):
        found = look(folder)
    assert (found.state, found.process.waits_for, found.go_on) == ("running", "3 clients to join; 0 are there", "")
    assert found.process.pid is not None
    journal.close()
    assert look(folder).state == "dead"


def test_a_living_process_that_waits_for_clients_is_paused(folder: Path) -> None:
    kill_in_round_2(folder)
    journal = FileJournal.open(folder)
    with StatusFile(folder) as status:
        status.paused("round 2 needs 3 clients, 1 is connected")
        status.write()
        assert "paused, waiting for clients" in as_printed(folder)
        assert "round 2 needs 3 clients, 1 is connected" in as_printed(folder)
        status.round_started(2, 0, 3)
        status.write()
        assert "feddkd: running" in as_printed(folder)
    journal.close()


def test_a_run_whose_process_said_why_it_ended_is_paused(folder: Path) -> None:
    kill_in_round_2(folder)
    with StatusFile(folder) as status:
        status.run_failed("stopped by SIGTERM")
    found = look(folder)
    assert (found.state, found.reason, found.process.pid) == ("paused", "stopped by SIGTERM", None)
    assert found.go_on


def test_a_process_that_has_not_spoken_for_long_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_in_round_2(folder)
    journal = FileJournal.open(folder)
    with StatusFile(folder, every_s=1e6):
        assert "silent" not in as_printed(folder)
        file = json.loads((folder / STATUS).read_text())
        (folder / STATUS).write_text(json.dumps(file | {"time": file["time"] - 40}))
        assert "silent for 40 s" in as_printed(folder)
    journal.close()


def test_an_exchange_that_was_open_and_its_bytes_come_from_the_servers_mark(folder: Path) -> None:
    kill_in_round_2(folder)
    before = look(folder).cost
    run_id = read_journal(folder)[0].run_id
    mark = TrafficMark(folder / TRAFFIC_MARK)
    mark.other.up(7)
    mark.begin(ExchangeId(run_id, 2, 0, "local_train", 0))
    mark.open.down(1000)
    dead = look(folder)
    assert dead.progress.open_exchange == ExchangeId(run_id, 2, 0, "local_train", 0)
    assert dead.cost.traffic.wire_bytes_down == before.traffic.wire_bytes_down + 1000
    assert dead.cost.traffic.wire_bytes_up == before.traffic.wire_bytes_up + 7
    assert dead.cost.lost == before.lost  # the next process may still get something for it


def test_a_servers_state_directory_names_its_run_and_its_command(folder: Path, tmp_path: Path) -> None:
    kill_in_round_2(folder)
    run_id = read_journal(folder)[0].run_id
    state = tmp_path / "state"
    with ServerState(state) as held:
        held.mark(run_id, "running")
    folder.rename(state / run_id)
    assert (look(state).state, look(state).go_on) == ("dead", f"feddkd server CONFIG --listen HOST:PORT --state {state}")
    with StatusFile(state / run_id, "feddkd server x.toml --listen 127.0.0.1:1 --state state"):
        pass
    assert look(state).go_on == look(state / run_id).go_on == "feddkd server x.toml --listen 127.0.0.1:1 --state state"
    with ServerState(state) as held:
        held.mark(run_id, "paused")
    assert look(state).state == "paused"


def test_a_run_that_its_server_left_for_another_has_nothing_to_go_on_with(folder: Path, tmp_path: Path) -> None:
    kill_in_round_2(folder)
    state = tmp_path / "state"
    with ServerState(state) as held:
        held.mark("another", "running")
    folder.rename(state / "old")
    assert (look(state / "old").state, look(state / "old").go_on) == ("dead", "")


def test_a_journal_that_is_being_written_can_be_read(folder: Path) -> None:
    kill_in_round_2(folder)
    whole = look(folder).cost.events
    with (folder / JOURNAL).open("ab") as stream:
        stream.write(b'{"seq": 99, "at_s"')
    assert look(folder).cost.events == whole


def test_looking_changes_nothing(folder: Path) -> None:
    kill_in_round_2(folder)
    shutil.rmtree(folder / "blobs")
    before = snapshot(folder)
    as_printed(folder)
    as_printed(folder, "--json")
    assert snapshot(folder) == before


@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "a run without a journal"])
def test_a_folder_without_a_journal_is_refused_with_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    if kind != "nothing":
        place.mkdir()
    if kind == "a run without a journal":
        with ServerState(place) as held:
            held.mark("someid", "failed")
    monkeypatch.setattr(sys, "argv", ["feddkd", "status", str(place)])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_was_stopped_before_it_began_says_why_and_how_to_begin_again(tmp_path: Path) -> None:
    with ServerState(tmp_path) as held:
        held.mark("someid", "paused")
    (tmp_path / "someid").mkdir()
    with StatusFile(tmp_path / "someid", "cd here && feddkd server x.toml") as status:
        status.run_failed("stopped by SIGTERM")
    with pytest.raises(StateError, match=r"first round \(stopped by SIGTERM\); to begin again: cd here && feddkd server x\.toml$"):
        RunPlace.find(tmp_path)


def test_a_finished_run_whose_server_is_still_there_lingers(folder: Path) -> None:
    journal = FileJournal.open(folder)
    with StatusFile(folder) as status:
        status.waiting("all rounds are done; lingering until 14:32:10 to give the final model to site-b")
        status.write()
        shown = as_printed(folder)
    journal.close()
    assert "feddkd: finished, lingering\n" in shown
    assert "lingering until 14:32:10 to give the final model to site-b" in shown
    assert "lingering" not in as_printed(folder)


def test_while_clients_join_those_that_are_there_are_named(folder: Path) -> None:
    kill_in_round_2(folder)
    journal = FileJournal.open(folder)
    with StatusFile(folder) as status:
        status.engine_ready(cast("Engine", Meeting()))
        status.write()
        assert "waits for          3 clients to join; 2 are there: north, south\n" in as_printed(folder)
    journal.close()


def test_each_client_is_connected_working_or_lost_as_in_the_metric(folder: Path) -> None:
    kill_in_round_2(folder)
    journal = FileJournal.open(folder)
    with StatusFile(folder) as status:
        status.engine_ready(cast("Engine", Working()))
        status.write()
        states = {name: client.state for name, client in look(folder).clients.items()}
        assert "working, its reply is awaited" in as_printed(folder)
    journal.close()
    assert states == {"client-0": "working", "client-1": "connected", "client-2": "lost"}
    assert {client.state for client in look(folder).clients.values()} == {""}


class Working:
    """An engine with a client at work, one without, and one that is away."""

    def here(self) -> list[str]:
        return ["client-0", "client-1"]

    def last_heard(self) -> dict[str, float]:
        return {"client-0": 0.0, "client-1": 0.0, "client-2": 50.0}

    def waiting_for(self) -> list[str]:
        return ["client-0"]


class Meeting:
    """An engine that two clients have joined."""

    def here(self) -> list[str]:
        return ["north", "south"]

    def last_heard(self) -> dict[str, float]:
        return {"north": 0.0, "south": 0.0}

    def waiting_for(self) -> list[str]:
        return []


def test_a_run_without_a_journal_writes_no_status(tmp_path: Path) -> None:
    options = [option for override in [*OVERRIDES, "rounds=1", "scheduler.durability=none"] for option in ("-o", override)]
    done = CliRunner().invoke(cli.app, ["run", *options, "--engine", "in-process", "--no-report", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "run" / STATUS).exists()
    with pytest.raises(StateError, match="holds no run"):
        RunPlace.find(tmp_path / "run")


def test_the_status_of_a_command_stays_beside_its_journal(tmp_path: Path) -> None:
    options = [option for override in [*OVERRIDES, "rounds=1"] for option in ("-o", override)]
    done = CliRunner().invoke(cli.app, ["run", *options, "--engine", "in-process", "--no-report", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run" / STATUS).read_text())["ended"] == "all rounds are done"
