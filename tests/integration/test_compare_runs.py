"""`feddkd compare` end to end: it runs, resumes, reads FedAvg from its longer run, and says what it cannot do.

A process takes seconds to import PyTorch, so only one run here has a process of its own.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feddkd import cli
from feddkd.bench import runs
from feddkd.bench.runs import Job, delivery_bytes, read_curve, run_jobs
from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.errors import FedDKDError
from feddkd.observability.first_rounds import first_rounds
from feddkd.observability.ledger import Ledger
from feddkd.observability.run_folder import RunFolder

OVERRIDES = ["rounds=2", "dkd.steps=1", "training.epochs=1", "partition.clients=2", "partition.labels=5"]
TINY = [
    *(word for override in OVERRIDES for word in ("-o", override)),
    *("--seeds", "3", "--out", "out", "--jobs", "1"),
]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Exit code, standard output and standard error of `feddkd compare`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["feddkd", "compare", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carry out runs without starting processes."""

    def run(self: Any, command: list[str], **options: Any) -> int:
        config, folder = Config.load(Path(command[4])), Path(command[command.index("--out") + 1])
        with contextlib.closing(Ledger(folder, config)) as ledger:
            run_federation(config, "in-process", folder, [ledger])
        return 0

    monkeypatch.setattr(runs._Processes, "run", run)


@pytest.mark.usefixtures("in_this_process")
def test_a_comparison_runs_once_and_reads_fedavg_from_the_longer_run(compare: Command, tmp_path: Path) -> None:
    code, out, err = compare(*TINY, "--save", "result.json")
    assert code == 0, err
    assert "0 of 3 runs are complete, 3 to run" in err
    assert all(words in out for words in ("Verdict", "FedDKD against", "Accuracy (%) at equal budgets", "To 90.0% accuracy"))
    assert max(map(len, out.splitlines())) <= 80
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["command"].startswith("feddkd compare ")
    assert saved["versions"]["torch"]
    assert list(saved["summary"]) == ["feddkd", "fedavg", "fedavg_sgd", "fedavg x2"]
    assert "Accuracy for its bytes" in out
    assert list(saved["frontier"]["rows"]) == ["feddkd", "fedavg_sgd", "fedavg x2"]
    model_bytes = RunFolder.load(tmp_path / "out" / "feddkd-seed3").model_bytes
    assert model_bytes is not None
    assert saved["frontier"]["fedavg_round_bytes"] == 2 * 2 * model_bytes
    assert "report: out/report.html" in out
    assert (tmp_path / "out" / "report" / "frontier.png").exists()
    with (tmp_path / "out" / "report" / "tables" / "results.csv").open() as stream:
        results = {row["configuration"]: row for row in csv.DictReader(stream)}
    fedavg = saved["summary"]["fedavg"]
    assert list(results) == ["FedDKD", "FedAvg", "control (SGD on labels)", "FedAvg, 2 \N{MULTIPLICATION SIGN} the rounds"]
    assert float(results["FedAvg"]["final_accuracy_mean"]) == pytest.approx(fedavg["final_accuracy"]["mean"], abs=1e-6)
    assert float(results["FedAvg"]["wire_bytes_mean"]) == fedavg["wire_bytes"]["mean"]
    tables = {file.name for file in (tmp_path / "out" / "report" / "tables").iterdir()}
    assert {
        f"{name}{kind}" for name in ("comparison", "verdict", "equal_budgets", "to_target") for kind in (".csv", ".md", ".tex")
    } <= tables

    (tmp_path / "out" / "feddkd-seed3" / "summary.json").unlink()  # as if it had been interrupted
    code, out, err = compare(*TINY, "--json", "--no-report")
    assert code == 0, err
    assert "2 of 3 runs are complete, 1 to run" in err
    again = json.loads(out)
    assert [_without_seconds(run) for run in again["runs"]] == [_without_seconds(run) for run in saved["runs"]]

    code, _, err = compare(*TINY, "-o", "training.lr=0.01")
    assert code == 2
    assert "feddkd-seed3 holds the record of another configuration: training.lr = 0.05 there, 0.01 here" in err


def test_the_first_rounds_of_the_longer_run_are_the_shorter_run(tmp_path: Path) -> None:
    """With a process for the shorter run, as `feddkd compare` starts it, and none for the longer one."""
    config = Config.load(None, [*OVERRIDES, "seed=3", "algorithm.name=fedavg"])
    errors: list[FedDKDError | None] = []
    run_jobs([Job(config, tmp_path / "alone")], 1, lambda _, error: errors.append(error))
    assert errors == [None]
    alone = read_curve(RunFolder.load(tmp_path / "alone"))
    longer = config.model_copy(update={"rounds": 4})
    with contextlib.closing(Ledger(tmp_path / "longer", longer)) as ledger:
        run_federation(longer, "in-process", tmp_path / "longer", [ledger])
    folder = RunFolder.load(tmp_path / "longer")
    first = read_curve(folder).first(2, delivery_bytes(folder))
    assert first.scores == alone.scores
    assert first.gradient_evaluations == alone.gradient_evaluations
    assert first.gradient_evaluations[0] > 0
    # Equal but for the numbers of a few bytes in the headers.
    assert first.wire_bytes[-1] == pytest.approx(alone.wire_bytes[-1], rel=1e-4)
    shorter, own = first_rounds(folder, 2), RunFolder.load(tmp_path / "alone")
    assert shorter.config.rounds == own.config.rounds
    assert read_curve(shorter) == first
    assert [(line.round, line.exchange) for line in shorter.exchanges] == [(line.round, line.exchange) for line in own.exchanges]
    assert shorter.summary is not None
    assert own.summary is not None
    assert shorter.summary.final_accuracy == own.summary.final_accuracy
    assert shorter.summary.gradient_evaluations == own.summary.gradient_evaluations
    assert shorter.summary.total_wire_bytes_down + shorter.summary.total_wire_bytes_up == first.wire_bytes[-1]
    assert first_rounds(folder, 4) is folder


def test_configurations_of_other_partitions_are_refused_before_anything_runs(compare: Command, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[partition]\nlabels = 2\n")
    (tmp_path / "b.toml").write_text("[partition]\nlabels = 3\n")
    code, out, err = compare("a.toml", "b.toml")
    assert (code, out) == (2, "")
    assert err == "feddkd: b and a cannot be compared: partition.labels = 3 in one, 2 in the other\n"
    assert not (tmp_path / "runs").exists()


def test_a_result_that_could_not_be_saved_is_said_before_anything_runs(compare: Command, tmp_path: Path) -> None:
    code, out, err = compare(*TINY, "--save", "nowhere/result.json")
    assert (code, out) == (2, "")
    assert err == "feddkd: cannot write --save nowhere/result.json: nowhere is not a folder\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("in_this_process")
def test_short_runs_start_first_and_baselines_can_be_left_out(compare: Command, tmp_path: Path) -> None:
    (tmp_path / "long.toml").write_text('rounds = 3\n[algorithm]\nname = "fedprox"\n')
    (tmp_path / "short.toml").write_text('rounds = 1\n[algorithm]\nname = "scaffold"\n')
    words = [word for pair in OVERRIDES[1:] for word in ("-o", pair)]
    options = [*words, "--seeds", "3", "--out", "out", "--jobs", "1", "--no-baselines", "--no-report"]
    code, out, err = compare("long.toml", "short.toml", *options)
    assert code == 0, err
    assert [line.split()[1] for line in err.splitlines() if line.startswith("  ")] == ["short-seed3:", "long-seed3:"]
    assert "FedProx, 3 \N{MULTIPLICATION SIGN} the rounds" in out
    assert "SCAFFOLD" in out
    assert "FedDKD" not in out
    assert (tmp_path / "out" / "report" / "tables" / "verdict.tex").exists()


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the run's process, which takes seconds to start."""
    fails = tmp_path / "fails"
    jobs = [Job(Config(), fails), Job(Config(), tmp_path / "works")]
    script = "import sys; print('no luck'); sys.exit(3 if sys.argv[1].endswith('fails') else 0)"
    real = runs._Processes.run

    def run(self: Any, command: list[str], **options: Any) -> int:
        return real(self, [sys.executable, "-c", script, command[-3]], **options)

    monkeypatch.setattr(runs._Processes, "run", run)
    errors: dict[Path, FedDKDError | None] = {}
    run_jobs(jobs, 2, lambda job, error: errors.update({job.folder: error}))
    assert errors.pop(tmp_path / "works") is None
    assert str(errors[fails]) == f"exit code 3: no luck (see {fails}.log)"


def test_an_interrupt_ends_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(Config(), tmp_path / "quick"), Job(Config(), tmp_path / "slow"), Job(Config(), tmp_path / "never")]
    script = "import signal, sys; sys.argv[1].endswith('quick') or signal.pause()"
    real, started = runs._Processes.run, []

    def run(self: Any, command: list[str], **options: Any) -> int:
        started.append(Path(command[-3]).name)
        return real(self, [sys.executable, "-c", script, command[-3]], **options)

    def interrupt(job: Job, error: FedDKDError | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs._Processes, "run", run)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, interrupt)
    assert {"quick", "slow"} <= set(started)


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(Config(), tmp_path / "run")
    errors: list[FedDKDError | None] = []

    def run(self: Any, command: list[str], **options: Any) -> int:
        run_jobs([job], 1, lambda _, error: errors.append(error))
        return 0

    monkeypatch.setattr(runs._Processes, "run", run)
    run_jobs([job], 1, lambda _, error: errors.append(error))
    assert [str(error) for error in errors] == [f"{job.folder} is being written by another process; try again when it has ended", "None"]


def test_a_job_that_starts_anew_deletes_what_is_there_but_not_what_another_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text(Config(rounds=3).to_toml())
    (folder / "summary.json").write_text("{}")
    job, errors = Job(Config(), folder, overwrite=True), []

    def run(self: Any, command: list[str], **options: Any) -> int:
        assert not (folder / "summary.json").exists()
        (folder / "summary.json").write_text("new")
        run_jobs([job], 1, lambda _, error: errors.append(str(error)))
        return 0

    monkeypatch.setattr(runs._Processes, "run", run)
    run_jobs([job], 1, lambda _, error: errors.append(str(error)))
    assert errors == [f"{folder} is being written by another process; try again when it has ended", "None"]
    assert (folder / "summary.json").read_text() == "new"


def _without_seconds(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key not in ("seconds", "round_seconds")}
