"""What `feddkd compare` says while it runs, with a clock of the test's own."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from feddkd.bench import runs
from feddkd.bench.runs import Job, rounds_done
from feddkd.cli.compare_progress import CompareProgress, Estimate, Pace
from feddkd.config import Config
from feddkd.errors import RunError


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def job(folder: Path, rounds: int, seed: int = 0, name: str = "feddkd") -> Job:
    config = Config.parse({"rounds": rounds, "seed": seed, "algorithm": {"name": name}})
    return Job(config, folder / f"{name}-seed{seed}")


def record(of: Job, rounds: int) -> None:
    of.folder.mkdir(exist_ok=True)
    (of.folder / "rounds.jsonl").write_text("{}\n" * rounds)


def test_the_rounds_of_a_run_that_has_not_begun_are_none(tmp_path: Path) -> None:
    one = job(tmp_path, 10)
    assert rounds_done(one) == 0
    record(one, 3)
    assert rounds_done(one) == 3


def test_the_pace_of_a_run_leaves_out_its_start_up_as_soon_as_it_can() -> None:
    pace = Pace(rounds=5, began_s=0.0)
    assert pace.left_s(7.0) is None
    pace.see(1, 8.0)
    assert (pace.round_s, pace.left_s(8.0)) == (8.0, 32.0)
    pace.see(3, 12.0)
    assert (pace.round_s, pace.left_s(12.0)) == (2.0, 4.0)
    assert pace.left_s(13.0) == 3.0
    assert pace.left_s(99.0) == 0.0


def test_the_estimate_says_whether_it_leaves_out_runs_of_which_nothing_is_known(tmp_path: Path) -> None:
    first, second, other = job(tmp_path, 4), job(tmp_path, 4, seed=1), job(tmp_path, 4, name="fedavg")
    estimate = Estimate([first, second, other], workers=1)
    assert estimate.left_s(0.0) is None
    estimate.see([first], 0.0)
    for rounds, now_s in ((1, 3.0), (2, 5.0)):
        record(first, rounds)
        estimate.see([first], now_s)
    # Two more rounds of 2 s, four of another seed; FedAvg is not known.
    assert estimate.left_s(5.0) == (12.0, True)
    record(other, 2)
    estimate.end(first, 9.0)
    estimate.see([other], 9.0)
    record(other, 3)
    estimate.see([other], 10.0)
    assert estimate.left_s(10.0) == (9.0, False)


def test_without_a_terminal_it_says_a_line_now_and_then_and_one_for_each_run(tmp_path: Path) -> None:
    out, clock = io.StringIO(), Clock()
    one, other = job(tmp_path, 10), job(tmp_path, 10, seed=1)
    with CompareProgress(Console(file=out, width=80), [one, other], 2, clock) as progress:
        progress.tick([one, other])
        record(one, 4)
        clock.now_s += 20
        progress.tick([one, other])
        assert out.getvalue() == ""
        clock.now_s += 20
        progress.tick([one, other])
        assert out.getvalue() == "  0:40: feddkd-seed0 round 5/10, feddkd-seed1 round 1/10, more than 0:10 left\n"
        progress.done(one, None)
        progress.done(other, RunError("no luck"))
    assert out.getvalue().splitlines()[1:] == ["  1/2 feddkd-seed0: 10 rounds in 0:40", "  2/2 feddkd-seed1: failed"]


def test_on_a_terminal_each_running_job_has_a_line_within_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out, clock = io.StringIO(), Clock()
    one, other = job(tmp_path / ("long" * 20), 210), job(tmp_path, 10, seed=1)
    one.folder.parent.mkdir()
    with CompareProgress(Console(file=out, width=80, force_terminal=True), [one, other], 2, clock) as progress:
        record(one, 1)
        progress.tick([one, other])
        clock.now_s += 60
        record(one, 31)
        progress.tick([one, other])
        assert progress._bars is not None
        said = [(task.description, task.completed, task.fields["said"]) for task in progress._bars.tasks]
        progress.done(other, None)
    assert said == [
        ("all runs", 0, "0 of 2 done  1:00, more than 5:58 left"),
        ("feddkd-seed0", 31, "round 32/210  1:00, 5:58 left"),
        ("feddkd-seed1", 0, "round 1/10  1:00"),
    ]
    assert "1/2 feddkd-seed1: 10 rounds in 1:00" in out.getvalue()


def test_rounds_that_an_interrupted_run_left_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(tmp_path, 10)
    record(one, 3)
    ticks: list[list[int]] = []
    asked, has_begun, may_end = (threading.Event() for _ in range(3))

    def incomplete(_: Job) -> bool:
        asked.wait(60)
        return False

    def run(_self: object, _command: object, **_options: object) -> int:
        has_begun.set()
        may_end.wait(60)
        return 0

    def on_tick(running: Sequence[Job]) -> None:
        ticks.append([rounds_done(shown) for shown in running])
        asked.set()  # only now is the record that was left deleted
        if has_begun.is_set() and ticks[-1]:
            may_end.set()

    monkeypatch.setattr(runs, "TICK_S", 0.01)
    monkeypatch.setattr(runs, "is_complete", incomplete)
    monkeypatch.setattr(runs._Processes, "run", run)
    runs.run_jobs([one], 1, lambda _job, _error: None, on_tick)
    assert ticks[0] == []
    assert all(counts in ([], [0]) for counts in ticks)
    assert [0] in ticks
