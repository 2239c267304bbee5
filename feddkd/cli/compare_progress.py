"""What a person sees while `feddkd compare` runs: each run's rounds, how long it takes, and when all will be done."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from feddkd.bench.runs import Job, rounds_done
from feddkd.cli.output import note
from feddkd.errors import FedDKDError

LINE_EVERY_S = 30.0
"""Without a terminal, a line says so often how far the runs are."""

MOST_NAMED = 8
"""Runs that such a line names."""

NAME_LETTERS = 30


@dataclass(slots=True)
class Pace:
    """How fast a run goes.

    Attributes:
        began_s: on the clock, when it was first seen.
        first_s: on the clock, when its first round was seen done, and how many were done then.
        seen_s: on the clock, when its latest round was seen done.
    """

    rounds: int
    began_s: float
    done: int = 0
    first_s: float = 0.0
    first_done: int = 0
    seen_s: float = 0.0

    def see(self, done: int, now_s: float) -> None:
        """Take note of the rounds that are done."""
        if done <= self.done:
            return
        if not self.done:
            self.first_s, self.first_done = now_s, done
        self.done, self.seen_s = done, now_s

    @property
    def round_s(self) -> float | None:
        """Seconds a round; start-up counts only as long as nothing else is known."""
        if self.done > self.first_done:
            return (self.seen_s - self.first_s) / (self.done - self.first_done)
        return (self.first_s - self.began_s) / self.done if self.done else None

    def left_s(self, now_s: float) -> float | None:
        """Estimate the seconds until its end; None before its first round."""
        if self.round_s is None:
            return None
        return max((self.rounds - self.done) * self.round_s - (now_s - self.seen_s), 0.0)


class Estimate:
    """When all runs will be done, from the pace of those that run and of those like them."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._waiting = {job.folder: job for job in jobs}
        self._workers = workers
        self._known: dict[str, float] = {}
        self.paces: dict[Path, Pace] = {}

    def see(self, running: Sequence[Job], now_s: float) -> None:
        """Read how far the running jobs are."""
        for job in running:
            self._waiting.pop(job.folder, None)
            pace = self.paces.setdefault(job.folder, Pace(job.config.rounds, now_s))
            pace.see(rounds_done(job), now_s)
            self._learn(job, pace)

    def end(self, job: Job, now_s: float) -> Pace | None:
        """Forget a job that is done; its pace is that of the runs like it."""
        self._waiting.pop(job.folder, None)
        pace = self.paces.pop(job.folder, None)
        if pace is not None:
            pace.see(rounds_done(job), now_s)
            self._learn(job, pace)
        return pace

    def left_s(self, now_s: float) -> tuple[float, bool] | None:
        """Estimate the seconds until the end, and say whether that leaves out runs of which nothing is known yet."""
        running = [pace.left_s(now_s) for pace in self.paces.values()]
        waiting = [
            job.config.rounds * pace if (pace := self._known.get(_kind(job))) is not None else None for job in self._waiting.values()
        ]
        known = [seconds for seconds in (*running, *waiting) if seconds is not None]
        if not known:
            return None
        longest = max(known)
        return max(longest, math.fsum(known) / self._workers), None in (*running, *waiting)

    def _learn(self, job: Job, pace: Pace) -> None:
        if pace.round_s is not None:
            self._known[_kind(job)] = pace.round_s


def _kind(job: Job) -> str:
    """Equal for runs that take as long: those that differ in the seed or in the number of rounds."""
    return job.config.model_copy(update={"seed": 0, "rounds": 1}).model_dump_json()


class CompareProgress:
    """Shows running jobs: a bar each on a terminal, a line now and then elsewhere. On standard error."""

    def __init__(
        self,
        console: Console,
        jobs: Sequence[Job],
        workers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._estimate = Estimate(jobs, workers)
        self._total, self._done = len(jobs), 0
        self._clock = clock
        self._began_s = self._last_line_s = clock()
        self._tasks: dict[Path, TaskID] = {}
        self._bars: Progress | None = None
        self._all: TaskID | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=14),
                TextColumn("{task.fields[said]}", markup=False),
                console=console,
                transient=True,
            )
            self._all = self._bars.add_task("all runs", total=self._total, said="")

    def __enter__(self) -> Self:
        if self._bars is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone is no reason not to begin
                self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            with contextlib.suppress(OSError):
                self._bars.stop()

    def tick(self, running: Sequence[Job]) -> None:
        """Show how far the running jobs are."""
        now_s = self._clock()
        self._estimate.see(running, now_s)
        if self._bars is not None:
            self._show_bars(self._bars, running, now_s)
        elif running and now_s - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now_s
            note(self._console, f"  {self._line(running, now_s)}")

    def done(self, job: Job, error: FedDKDError | None) -> None:
        """Say that a job has ended."""
        self._done += 1
        now_s = self._clock()
        pace = self._estimate.end(job, now_s)
        if self._bars is not None and (task := self._tasks.pop(job.folder, None)) is not None:
            self._bars.remove_task(task)
        took = f" in {_clock_text(now_s - pace.began_s)}" if pace else ""
        ended = ": failed" if error else f": {job.config.rounds} rounds{took}"
        note(self._console, f"  {self._done}/{self._total} {job.folder.name}{ended}")

    def _show_bars(self, bars: Progress, running: Sequence[Job], now_s: float) -> None:
        for job in running:
            pace = self._estimate.paces[job.folder]
            if job.folder not in self._tasks:
                self._tasks[job.folder] = bars.add_task(_shortened(job.folder.name), total=pace.rounds, said="")
            said = f"round {_round_text(pace)}  {_clock_text(now_s - pace.began_s)}"
            left_s = pace.left_s(now_s)
            said += "" if left_s is None else f", {_clock_text(left_s)} left"
            bars.update(self._tasks[job.folder], completed=pace.done, said=said)
        if self._all is not None:
            said = f"{self._done} of {self._total} done  {_clock_text(now_s - self._began_s)}"
            bars.update(self._all, completed=self._done, said=f"{said}{self._left(now_s)}")

    def _line(self, running: Sequence[Job], now_s: float) -> str:
        paces = self._estimate.paces
        named = [f"{job.folder.name} round {_round_text(paces[job.folder])}" for job in running]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        elapsed = _clock_text(now_s - self._began_s)
        return f"{elapsed}: {', '.join(named[:MOST_NAMED])}{more}{self._left(now_s)}"

    def _left(self, now_s: float) -> str:
        found = self._estimate.left_s(now_s)
        if found is None:
            return ""
        seconds, is_less = found
        return f", {'more than ' if is_less else 'about '}{_clock_text(seconds)} left"


def _round_text(pace: Pace) -> str:
    """The round that it is in."""
    return f"{min(pace.done + 1, pace.rounds)}/{pace.rounds}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _shortened(name: str) -> str:
    """The end of a long name is its seed, which tells it from others."""
    return name if len(name) <= NAME_LETTERS else f"…{name[1 - NAME_LETTERS :]}"
