"""The commands as a user types them: exit codes, one-line errors, machine-readable output."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from feddkd import cli
from feddkd.config import Config
from feddkd.extras import install_command
from feddkd.scheduler.server_state import ServerState

TINY = [
    "-o",
    "rounds=1",
    "-o",
    "partition.clients=2",
    "-o",
    "partition.labels=5",
    "-o",
    "training.epochs=1",
    "-o",
    "dkd.steps=2",
    "--no-report",
]


def feddkd(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["feddkd", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: feddkd(*arguments, capsys=capsys, monkeypatch=monkeypatch)


def test_run_prints_one_json_object_and_nothing_else(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, err = command("run", *TINY, "--engine", "in-process", "--out", "record", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary == json.loads((tmp_path / "record" / "summary.json").read_text())
    assert summary["rounds"] == 1
    assert "1/1" in err
    assert "\x1b[" not in err  # no terminal, no colours and no bar


TALKATIVE = """
from torch import nn

def model(input_shape, num_classes):
    print("a word of the model's")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


def test_what_code_of_ones_own_prints_does_not_reach_standard_output(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["-o", "model.name=talkative:model"]
    code, out, err = command("run", *TINY, *own, "--engine", "in-process", "--out", "record", "--json")
    assert code == 0
    assert json.loads(out)["rounds"] == 1
    assert "a word of the model's" in err


def test_run_says_what_is_about_to_run_before_anything_else(command) -> None:  # type: ignore[no-untyped-def]
    _, _, err = command("run", *TINY, "--engine", "in-process", "--out", "record")
    assert err.startswith("feddkd run: the built-in example with 5 overrides\nrecord in record/\n")


def test_run_for_a_person_says_accuracy_bytes_and_where_the_record_is(command) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = command("run", *TINY, "--engine", "in-process", "--out", "record")
    assert code == 0
    assert "final accuracy" in out
    assert "MB down" in out
    assert "record/" in out
    assert "report " not in out


def test_run_draws_its_report(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = command("run", *TINY, "--report", "--engine", "in-process", "--out", "record")
    assert code == 0
    assert "report             record/report.html" in out
    assert "data:image/svg" in (tmp_path / "record" / "report.html").read_text()


def test_a_report_that_fails_does_not_hide_the_run(command, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("feddkd.report.page.write_report", fail)
    code, out, err = command("run", *TINY, "--report", "--engine", "in-process", "--out", "record", "--json")
    assert code == 0
    assert json.loads(out)["rounds"] == 1
    assert "none: ValueError: no ink; try again with feddkd report record" in err


def test_run_without_matplotlib_says_how_to_get_a_report(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("feddkd.cli.report.missing_module", lambda: "matplotlib")
    code, out, _ = command("run", *TINY, "--report", "--engine", "in-process", "--out", "record")
    assert code == 0
    assert f"none; for one, {install_command('plot')}, then feddkd report record" in out
    assert not (tmp_path / "record" / "report.html").exists()


def test_run_picks_a_folder_of_its_own(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert command("run", *TINY, "--engine", "in-process")[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("feddkd-")
    assert (folder / "rounds.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "-o", "training.epoch=3"], "unknown key 'training.epoch' (did you mean 'epochs'?)"),
        (["run", "-o", "rounds=0"], "rounds = 0"),
        (["run", "nowhere.toml"], "cannot read configuration nowhere.toml"),
        (["run", "\x1b[2Jnowhere\n.toml"], "cannot read configuration \\x1b[2Jnowhere\\n.toml"),
        (
            ["run", "-o", "aggregation.max_norm.train=1"],
            "aggregation.max_norm.train: this algorithm has no such exchange; it has dkd_step,",
        ),
        (["config", "check", "-o", "aggregation.max_norm.train=1"], "aggregation.max_norm.train: this algorithm has no such exchange"),
        (["run", "-o", "scheduler.clients=3"], "scheduler.clients = 3: partition.clients is 10"),
        (["run", "-o", "runtime.threads=1000000"], "runtime.threads = 1000000"),
        (["run", "-o", "partition.labels=11"], "partition.labels = 11"),
        (["run", "-o", "partition.clients=5000"], "partition.clients = 5000"),
        (["run", "-o", "data.name=mnist", "-o", "data.root=nowhere", "-o", "model.name=niid_cnn"], "nowhere"),
        (["run", "-o", "model.name=niid_cnn"], "model.name = 'niid_cnn'"),
        (["config", "check", "-o", "seed"], "override 'seed'"),
        (["bench", "transport", "--save", "nowhere/result.json"], "cannot write --save nowhere/result.json: nowhere is not a folder"),
        (["client", "--server", "no-port", "--id", "a", "--state", "s"], "--server 'no-port' is not HOST:PORT"),
        (["client", "--server", "10.0.0.1:1", "--id", "a", "--state", "s"], "--insecure"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(command, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    *before, line = err.splitlines()
    assert message in line
    assert [said for said in before if not said.startswith(("feddkd run: the built-in example", "feddkd client: a, server "))] == []


def test_a_record_is_never_overwritten(command) -> None:  # type: ignore[no-untyped-def]
    assert command("run", *TINY, "--engine", "in-process", "--out", "record")[0] == 0
    code, _, err = command("run", *TINY, "--engine", "in-process", "--out", "record")
    assert code == 1
    assert "already holds the record of a run" in err


def test_the_folder_of_a_start_that_failed_is_free(command) -> None:  # type: ignore[no-untyped-def]
    arguments = ["run", *TINY, "--engine", "in-process", "--out", "record"]
    assert command(*arguments, "-o", "model.name=niid_cnn")[0] == 2
    assert command(*arguments)[0] == 0


def test_a_silent_server_is_named_and_given_up_on(command) -> None:  # type: ignore[no-untyped-def]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    code, _, err = command("client", "--server", address, "--id", "a", "--state", "s", "--retry-for", "0.1")
    assert code == 1
    assert address in err.splitlines()[-1]
    assert "gave up after 0.1 s" in err


def test_a_taken_port_is_named(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.toml").write_text("rounds = 1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command("server", "f.toml", "--listen", address, "--state", "state")
    assert code == 2
    assert f"cannot listen on {address}" in err
    assert sorted(file.name for file in (tmp_path / "state").iterdir()) == ["audit.jsonl", "lock"]  # nobody has heard of the run
    assert (tmp_path / "state" / "audit.jsonl").read_bytes() == b""


def test_a_state_directory_serves_one_server(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "f.toml").write_text("rounds = 1")
    with ServerState(tmp_path / "state"):
        code, _, err = command("server", "f.toml", "--listen", "127.0.0.1:0", "--state", "state")
    assert code == 1
    assert "another server holds the state directory" in err


def test_a_terminated_server_ends_in_order(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("rounds = 1\nscheduler.clients = 1")
    command = [sys.executable, "-m", "feddkd", "server", "f.toml", "--listen", "127.0.0.1:0", "--state", "state"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)  # or a failure would wait for it
        assert server.stderr is not None
        assert server.stderr.readline() == "feddkd server: f.toml\n"
        assert "listening on" in server.stderr.readline()
        pause = threading.Event()
        while not list((tmp_path / "state").glob("*/exchanges.jsonl")):
            pause.wait(0.005)
        server.terminate()
        rest = server.stderr.read()
        assert server.wait(30) == 75
    assert "Traceback" not in rest
    assert "pending" not in rest
    assert json.loads((tmp_path / "state" / "run.json").read_text())["status"] == "paused"


def test_an_impossible_id_is_refused_before_anything_is_loaded(command) -> None:  # type: ignore[no-untyped-def]
    code, _, err = command("client", "--server", "127.0.0.1:1", "--id", "../etc", "--state", "s")
    assert code == 2
    assert "--id '../etc'" in err


def test_config_show_prints_what_config_reads_back(command) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = command("config", "show", "-o", "rounds=7")
    assert code == 0
    Path("shown.toml").write_text(out)
    assert Config.load(Path("shown.toml")) == Config.load(None, ["rounds=7"])


def test_config_schema_knows_every_table(command) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = command("config", "schema")
    assert code == 0
    assert set(json.loads(out)["properties"]) == set(Config.model_fields)


def test_the_program_answers_to_its_name() -> None:
    done = subprocess.run([sys.executable, "-m", "feddkd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("feddkd 0.")
