"""Runs the comparison of `feddkd compare` and lays its numbers out in tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.bench.environment import environment
from feddkd.bench.runs import Job, is_complete, run_jobs
from feddkd.bench.side_by_side import Row, Runs, read_run, results
from feddkd.cli.compare_progress import CompareProgress
from feddkd.cli.comparison_tables import comparison_tables
from feddkd.cli.output import error_console, note
from feddkd.cli.report import PAGE, report_command
from feddkd.config import MainMetric
from feddkd.engines.simulation import EngineName
from feddkd.errors import ConfigError, FedDKDError, RunError
from feddkd.observability.first_rounds import first_rounds
from feddkd.observability.run_folder import RunFolder
from feddkd.report.frontier import Frontier, Track, Walk, fedavg_round_bytes, method_of
from feddkd.report.groups import Name, names_of
from feddkd.report.table import Table
from feddkd.report.table_files import write_tables


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison says.

    Attributes:
        document: everything, for JSON.
        names: what a person calls each row, by its label in the document.
        notes: for a person.
        frontier: what a good model costs in bytes; None where too little was evaluated.
        records: of the runs of every row; a row that is read from a longer run has its first rounds.
    """

    document: dict[str, Any]
    names: dict[str, str]
    notes: list[str]
    frontier: Frontier | None
    records: list[RunFolder]

    def terminal_tables(self) -> list[Table]:
        """For 80 columns."""
        return comparison_tables(self.document, self.names, self.frontier, short=True)

    def write_tables(self, folder: Path) -> None:
        """Write the tables as CSV, Markdown and LaTeX.

        Raises:
            ConfigError: a file cannot be written.
        """
        found = comparison_tables(self.document, self.names, self.frontier, short=False)
        try:
            write_tables(found, folder)
        except OSError as error:
            where = error.filename or folder
            raise ConfigError(f"cannot write tables to {where}: {error.strerror}") from error


def compared(
    rows: Sequence[Row],
    seeds: Sequence[int],
    folder: Path,
    engine: EngineName,
    workers: int,
    target: float | None,
) -> Comparison:
    """Run what is not complete in `folder`, and compare.

    Raises:
        ConfigError: a folder holds the record of another configuration.
        RunError: runs failed.
    """
    _run_all(rows, seeds, folder, engine, workers)
    runs = {row.label: [read_run(row, seed, folder, engine) for seed in seeds] for row in rows}
    records = [first_rounds(RunFolder.load(row.job(seed, folder, engine).folder), row.rounds) for row in rows for seed in seeds]
    names = _names(rows)
    frontier = _frontier(rows, names, runs, records)
    document = {
        "command": shlex.join(["feddkd", *sys.argv[1:]]),
        **environment(),
        "engine": engine,
        "runs_at_once": workers,
        **results(rows, runs, target),
        "frontier": frontier.as_json() if frontier else None,
    }
    notes = [
        f"{names[row.label]}: the first {row.rounds} rounds of {names[row.source.label]}, and the delivery of its model"
        for row in rows
        if row.source is not None
    ]
    at_once = f"{workers} runs at once" if workers > 1 else "one run at a time"
    notes.append(f"times: {at_once}; gradients: gradient evaluations")
    return Comparison(document, names, notes, frontier, records)


def _names(rows: Sequence[Row]) -> dict[str, str]:
    """What a person calls each row; rows of equal configurations keep their label beside it."""
    names = [name.label for name in names_of([row.config for row in rows])]
    return {row.label: name if names.count(name) == 1 else f"{name} ({row.label})" for row, name in zip(rows, names, strict=True)}


def _frontier(rows: Sequence[Row], names: Mapping[str, str], runs: Runs, records: Sequence[RunFolder]) -> Frontier | None:
    """What a good model costs in bytes; FedAvg's shorter rows are the first rounds of its longest one."""
    tracks = []
    for row in rows:
        curves = [run.curve for run in runs[row.label]]
        walks = [Walk.of(curve.wire_bytes, curve.scores) for curve in curves]
        if not row.reads_another_run and all(walk.scores for walk in walks):
            name = Name(names[row.label], row.label)
            tracks.append(Track.of(name, method_of(row.config), walks, MainMetric.of(row.config)))
    return Frontier.of(tracks, fedavg_round_bytes(records)) if tracks else None


def _run_all(rows: Sequence[Row], seeds: Sequence[int], out: Path, engine: EngineName, workers: int) -> None:
    """Run what is not complete.

    Raises:
        ConfigError: a folder below `out` holds the record of another configuration; nothing has run then.
        RunError: runs failed; the others are complete, and will not be run again.
    """
    jobs = {job.folder: job for seed in seeds for row in rows if not row.reads_another_run for job in [row.job(seed, out, engine)]}
    missing = [job for job in jobs.values() if not is_complete(job)]
    console = error_console()
    note(console, f"{len(jobs) - len(missing)} of {len(jobs)} runs are complete, {len(missing)} to run, {workers} at once")
    if not missing:
        return
    failed: list[str] = []

    def on_done(job: Job, error: FedDKDError | None) -> None:
        progress.done(job, error)
        if error is not None:
            failed.append(f"{job.folder.name}: {error}")

    # The shortest first: what is wrong with a configuration shows within the first minutes.
    ordered = sorted(missing, key=lambda job: job.config.rounds)
    with CompareProgress(console, ordered, workers) as progress:
        run_jobs(ordered, workers, on_done, progress.tick)
    if failed:
        names = [line.partition(":")[0] for line in failed]
        good = [job.folder for job in jobs.values() if job.folder.name not in names]
        draw = f"; to draw the others: {report_command(good, out / PAGE)}" if good else ""
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}{draw}")
