"""Runs the comparison of `feddkd compare` and lays its numbers out in tables."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from feddkd.bench.environment import environment
from feddkd.bench.runs import Job, is_complete, run_jobs
from feddkd.bench.side_by_side import Row, Runs, make_rows, read_run, results
from feddkd.cli.output import as_terminal_table, error_console, megabytes, note
from feddkd.config import Config
from feddkd.engines.simulation import EngineName
from feddkd.errors import FedDKDError, RunError
from feddkd.observability.run_folder import RunFolder
from feddkd.report.frontier import Frontier, Track, Walk, fedavg_round_bytes, method_of
from feddkd.report.frontier_table import frontier_table

Numbers = dict[str, Any] | None

ENDED_EARLY = 0.99
"""A row that has spent less of a budget could have gone on; message headers make up less than the rest."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison says.

    Attributes:
        document: everything, for JSON.
        notes: for a person.
        frontier: what accuracy costs in bytes; None where too little was evaluated.
        folders: the records of the runs.
    """

    document: dict[str, Any]
    notes: list[str]
    frontier: Frontier | None
    folders: list[Path]


def compared(
    configs: Sequence[tuple[str, Config]], seeds: Sequence[int], folder: Path, engine: EngineName, workers: int, target: float
) -> Comparison:
    """Run what is not complete in `folder`, and compare.

    Raises:
        ConfigError: configurations cannot be compared, or a folder holds the record of another one.
        RunError: runs failed.
    """
    rows = make_rows(configs)
    _run_all(rows, seeds, folder, engine, workers)
    runs = {row.label: [read_run(row, seed, folder, engine) for seed in seeds] for row in rows}
    folders = [row.job(seed, folder, engine).folder for row in rows if not row.reads_another_run for seed in seeds]
    frontier = _frontier(rows, runs, folders)
    document = {
        "command": shlex.join(["feddkd", *sys.argv[1:]]),
        **environment(),
        "engine": engine,
        "runs_at_once": workers,
        **results(rows, runs, target),
        "frontier": frontier.as_json() if frontier else None,
    }
    notes = [
        f"{row.label}: the first {row.rounds} rounds of {row.source.label}, and the delivery of its model"
        for row in rows
        if row.source is not None
    ]
    notes.append(f"times are of {workers} runs at once, with start-up")
    return Comparison(document, notes, frontier, folders)


def _frontier(rows: Sequence[Row], runs: Runs, folders: Sequence[Path]) -> Frontier | None:
    """What accuracy costs in bytes; FedAvg's shorter rows are the first rounds of its longest one."""
    tracks = []
    for row in rows:
        curves = [run.curve for run in runs[row.label]]
        walks = [Walk.of(curve.wire_bytes, curve.accuracy) for curve in curves]
        if not row.reads_another_run and all(walk.accuracy for walk in walks):
            tracks.append(Track.of(row.label, method_of(row.config), walks))
    return Frontier.of(tracks, fedavg_round_bytes(map(RunFolder.load, folders))) if tracks else None


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
    failed: list[str] = []
    done = 0

    def on_done(job: Job, error: FedDKDError | None) -> None:
        nonlocal done
        done += 1
        note(console, f"  {done}/{len(missing)} {job.folder.name}{': failed' if error else ''}")
        if error is not None:
            failed.append(f"{job.folder.name}: {error}")

    # The longest first, so that no core is left alone with it at the end.
    run_jobs(sorted(missing, key=lambda job: -job.config.rounds), workers, on_done)
    if failed:
        raise RunError(f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(failed)}")


def tables(comparison: Comparison) -> list[Table]:
    """One table a budget, and what accuracy costs in bytes, for 100 columns."""
    document, frontier = comparison.document, comparison.frontier
    seeds = ", ".join(map(str, document["seeds"]))
    whole = f"seeds {seeds}: mean ± deviation" if len(document["seeds"]) > 1 else f"seed {seeds}"
    bytes_, evaluations = document["equal_wire_bytes"], document["equal_gradient_evaluations"]
    return [
        _summary_table(document["summary"], f"whole runs, {whole}"),
        _budget_table(document["equal_rounds"], f"equal rounds: {document['equal_rounds']['budget']}"),
        _budget_table(bytes_, f"equal bytes on the wire: {megabytes(bytes_['budget'])}"),
        _budget_table(evaluations, f"equal gradient evaluations: {evaluations['budget']:,}"),
        _target_table(document["to_target"], f"to {document['target_accuracy']:.1%} accuracy"),
        *([as_terminal_table(frontier_table(frontier), "accuracy for its bytes")] if frontier else []),
    ]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _summary_table(summary: dict[str, Any], title: str) -> Table:
    table = _table(title, ("rounds", "final %", "best %", "bytes", "gradient evaluations", "time"))
    for label, row in summary.items():
        table.add_row(
            label,
            str(row["rounds"]),
            _percent(row["final_accuracy"]),
            _percent(row["best_accuracy"]),
            megabytes(round(row["wire_bytes"]["mean"])),
            f"{row['gradient_evaluations']['mean']:,.0f}",
            f"{row['seconds']['mean']:,.1f} s",
        )
    return table


def _budget_table(budget: dict[str, Any], title: str) -> Table:
    table = _table(title, ("accuracy %", "after rounds", "spent"))
    if any(row["share_spent"] < ENDED_EARLY for row in budget["rows"].values()):
        table.caption, table.caption_justify = "below 100 %: ended before it had spent the budget; more rounds would tell", "left"
    for label, row in budget["rows"].items():
        rounds = ["n/a" if number is None else str(number) for number in row["rounds"]]
        spent = "100 %" if row["share_spent"] >= ENDED_EARLY else f"{row['share_spent']:.0%}".replace("%", " %")
        table.add_row(label, _percent(row["accuracy"]), ", ".join(dict.fromkeys(rounds)), spent)
    return table


def _target_table(to_target: dict[str, Any], title: str) -> Table:
    table = _table(title, ("rounds", "bytes", "time"))
    for label, row in to_target.items():
        if row["reached"] < row["of"]:
            table.add_row(label, *[f"n/a ({row['reached']} of {row['of']})"] * 3)
        else:
            table.add_row(
                label, f"{row['rounds']['mean']:.1f}", megabytes(round(row["wire_bytes"]["mean"])), f"{row['seconds']['mean']:,.1f} s"
            )
    return table


def _percent(numbers: Numbers) -> str:
    if numbers is None:
        return "n/a"
    deviation = "" if numbers["deviation"] is None else f" ± {100 * numbers['deviation']:.2f}"
    return f"{100 * numbers['mean']:.2f}{deviation}"
