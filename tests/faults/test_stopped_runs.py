"""Runs that are stopped by a signal go on later; a finished run is served to who comes late."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from federation import CONFIGS, SERVER, Federation, check
from processes import Process
from run_history import RunHistory
from safetensors.torch import load_file

from feddkd.cli import EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE
from feddkd.cli.replay import replayed

Undisturbed = Callable[[str], RunHistory]

RUN = ("--no-report", "--json", "--engine")
SLOW = "scheduler.exchange.after_append=sleep(2)@3"
"""The moment in which a signal comes: whatever is being done is done to its end."""


def mark(federation: Federation) -> dict[str, str]:
    found: dict[str, str] = json.loads((federation.state / "run.json").read_text())
    return found


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_is_stopped_goes_on_later(number: signal.Signals, tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.tolerated.add(EXIT_STOPPED)
        federation.start({SERVER: SLOW})
        federation.wait_for_exchanges(3)
        server = federation.processes[SERVER]
        server.signal(number)
        assert server.wait() == EXIT_STOPPED
        said = server.log.read_text()
        assert f"{number.name}: pausing the run" in said
        assert f"stopped by {number.name}; the record is in" in said
        assert said.splitlines()[-1].startswith("  feddkd -v server config.toml ")
        assert mark(federation)["status"] == "paused"
        assert all(federation.processes[name].exit_code is None for name in federation.names)
        federation.finish()
        assert federation.starts == {SERVER: 2, **dict.fromkeys(federation.names, 1)}
        assert mark(federation)["status"] == "completed"
        check(federation, undisturbed("feddkd"))


def started(folder: Path, engine: str, *arguments: str, failpoints: str = "") -> Process:
    return Process("run", ["run", *arguments, *RUN, engine], folder, failpoints)


def until(condition: Callable[[], bool], process: Process) -> None:
    """Wait for what a process does."""
    pause = threading.Event()
    while not condition():
        assert process.exit_code is None, process.log.read_text()
        pause.wait(0.005)


def lines(file: Path) -> int:
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.parametrize("engine", ["in-process", "grpc"])
def test_a_run_that_is_stopped_goes_on_later(engine: str, tmp_path: Path) -> None:
    Federation(tmp_path, [*CONFIGS["feddkd"], "runtime.client_processes=1"])  # writes the configuration
    whole = started(tmp_path, "in-process", "config.toml", "--out", "whole")
    assert whole.wait() == 0
    process = started(tmp_path, engine, "config.toml", "--out", "out", failpoints=SLOW)
    until(lambda: lines(tmp_path / "out" / "exchanges.jsonl") == 3, process)
    process.signal(signal.SIGTERM)
    assert process.wait() == EXIT_STOPPED
    assert process.log.read_text().endswith("stopped by SIGTERM; the record is in out/; to go on:\n  feddkd run --resume out\n")
    assert started(tmp_path, engine, "--resume", "out").wait() == 0
    assert summary(tmp_path / "out")["model_sha256"] == summary(tmp_path / "whole")["model_sha256"]
    assert lines(tmp_path / "out" / "exchanges.jsonl") == lines(tmp_path / "whole" / "exchanges.jsonl")
    # A finished run can be extended.
    assert started(tmp_path, "in-process", "--resume", "out", "--rounds", "3").wait() == 0
    assert summary(tmp_path / "out")["rounds"] == 3


def test_what_is_refused_changes_nothing_of_the_record(tmp_path: Path) -> None:
    Federation(tmp_path, CONFIGS["fedavg"])
    assert started(tmp_path, "in-process", "config.toml", "--out", "out").wait() == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()}
    refused = started(tmp_path, "in-process", "--resume", "out", "-o", "seed=7")
    assert refused.wait() == 1
    assert "of another configuration: seed = 0 there, 7 here" in refused.log.read_text()
    assert started(tmp_path, "in-process", "--resume", "out", "--rounds", "1").wait() == 1
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()} == before


def test_a_finished_run_is_served_to_a_client_that_was_away(tmp_path: Path) -> None:
    away = "client-2"
    overrides = [*CONFIGS["fedavg"], "scheduler.min_clients=2", "scheduler.reconnect_grace_s=0.5"]
    with Federation(tmp_path, overrides) as federation:
        federation.start()
        federation.wait_for_exchanges(1)
        federation.processes.pop(away).kill()
        federation.finish()
        run_id = mark(federation)["run_id"]
        assert away in summary(federation.state / run_id)["not_delivered"]
        before = (federation.state / run_id / "journal.jsonl").read_bytes()
        federation.restart(SERVER)
        federation.restart(away)
        federation.finish()
        assert mark(federation) == {"run_id": run_id, "status": "completed"}
        journal = (federation.state / run_id / "journal.jsonl").read_bytes()
        assert journal.startswith(before)
        (line,) = journal.removeprefix(before).splitlines()
        event = json.loads(line)["event"]
        assert (event["kind"], event["clients"]) == ("delivered_late", [away])
        assert summary(federation.state / run_id)["not_delivered"] == {}
        assert replayed(federation.state / run_id, federation.state / run_id).problems == []
        models = [load_file(folder / "model.safetensors") for folder in (federation.state / run_id, federation.client_state(away))]
        assert models[0].keys() == models[1].keys()
        assert all(models[0][name].equal(models[1][name]) for name in models[0])
        # With --new, another run begins beside it.
        another = Process(SERVER, [*federation.command(SERVER), "--new"], tmp_path)
        federation.put(another)
        until(lambda: mark(federation)["run_id"] != run_id, another)
        assert (federation.state / run_id / "journal.jsonl").read_bytes() == journal


def test_a_server_that_is_stopped_while_it_lingers_has_finished_its_run(tmp_path: Path) -> None:
    away = "client-2"
    overrides = [*CONFIGS["fedavg"], "scheduler.min_clients=2", "scheduler.reconnect_grace_s=0.5"]
    with Federation(tmp_path, overrides) as federation:
        server = Process(SERVER, [*federation.command(SERVER), "--linger", "600"], tmp_path)
        federation.put(server)
        for name in federation.names:
            federation.restart(name)
        federation.wait_for_exchanges(1)
        federation.processes.pop(away).kill()
        for name in federation.names[:2]:
            assert federation.processes[name].wait() == 0  # those that have the model need not wait
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        folder = federation.state / mark(federation)["run_id"]
        assert mark(federation)["status"] == "completed"
        assert list(summary(folder)["not_delivered"]) == [away]
        assert replayed(folder, folder).problems == []


@pytest.fixture
def finished(tmp_path: Path, undisturbed: Undisturbed) -> Iterator[Federation]:
    """The server of a finished run, before it is started again."""
    with Federation(tmp_path, CONFIGS["fedavg"]) as federation:
        shutil.copytree(undisturbed("fedavg").folder.parent, federation.state)
        yield federation


def files(folder: Path) -> dict[str, bytes]:
    """All files but the mark of what the process that is there counts, and its lock."""
    kept = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("traffic", "lock")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in kept}


@pytest.mark.parametrize("runs", [0, 1], ids=["before the first run", "after a run"])
def test_a_site_that_stays_ends_with_a_signal_and_keeps_what_it_has(runs: int, tmp_path: Path) -> None:
    name = "client-0"
    with Federation(tmp_path, CONFIGS["fedavg"]) as federation:
        site = Process(name, [*federation.command(name), "--stay"], tmp_path)
        federation.put(site)
        if runs:
            for other in (SERVER, *federation.names[1:]):
                federation.restart(other)
            assert federation.processes[SERVER].wait() == 0
            federation.wait_for_log(name, "client-0: waiting for the next run of the server")
        else:
            federation.wait_for_log(name, "trying again")
        site.signal(signal.SIGTERM)
        assert site.wait() == EXIT_INTERRUPTED
        *_, stopped, again = site.log.read_text().splitlines()
        kept = federation.client_state(name)
        assert stopped == f"feddkd: interrupted: what it has computed is kept in {kept}/; to go on, the same command again:"
        assert again.endswith(" --stay")
        assert "Traceback" not in site.log.read_text()
        assert (kept / "model.safetensors").exists() == bool(runs)


def test_a_port_that_is_taken_costs_a_finished_run_nothing(finished: Federation) -> None:
    before = files(finished.state)
    with socket.create_server(("127.0.0.1", finished.port)):
        server = finished.restart(SERVER)
        assert server.wait() == EXIT_USAGE
    assert files(finished.state) == before


def test_the_record_of_another_run_is_not_written_over(finished: Federation, tmp_path: Path) -> None:
    run_id = mark(finished)["run_id"]
    out = tmp_path / "out"
    shutil.copytree(finished.state / run_id, out)
    (out / "config.toml").write_text((out / "config.toml").read_text().replace(run_id, "another"))
    before = files(out)
    journal = (finished.state / run_id / "journal.jsonl").read_bytes()
    server = Process(SERVER, [*finished.command(SERVER), "--out", str(out)], tmp_path)
    finished.put(server)
    assert server.wait() == 1
    assert server.log.read_text().splitlines()[-1] == (
        f"feddkd: {out} holds the record of run another; choose another --out for run {run_id}"
    )
    assert files(out) == before
    assert (finished.state / run_id / "journal.jsonl").read_bytes() == journal
    assert mark(finished) == {"run_id": run_id, "status": "completed"}
