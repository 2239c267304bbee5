"""The table of the tuning: every point of every algorithm's grid, what it came to, and which one the results use."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from feddkd.config.table import flatten
from niid_bench.cells import ALGORITHMS, Cell, Settings, configure
from niid_bench.markdown import MISSING, table
from niid_bench.tune import Point, points_of, settled_accuracy


def tuning_table(lines: Sequence[dict[str, Any]]) -> str:
    """One row an algorithm with a grid; the setting that the mini tier uses is bold."""
    rows = []
    for algorithm in [name for name, settings in ALGORITHMS.items() if settings.get("grid")]:
        found = accuracies(algorithm, lines)
        used = point_used(algorithm)
        cells = [_cell(point, found.get(point), bold=point == used) for point in points_of(algorithm)]
        rows.append([f"`{algorithm}`", ", ".join(f"`{key}`" for key in ALGORITHMS[algorithm]["grid"]), "; ".join(cells)])
    if not lines:
        return "No results yet: `python benchmarks/niid_bench/tune.py mini --algorithm A`."
    partitions = ", ".join(dict.fromkeys(line["partition"] for line in lines))
    seeds, rounds = (", ".join(map(str, sorted({line[key] for line in lines}))) for key in ("seed", "rounds"))
    what = (
        f"Mean accuracy of the last three of {rounds} rounds in %, on {partitions}, seed {seeds}; bold: the point that the mini tier uses."
    )
    return f"{what}\n\n{table(['algorithm', 'settings', 'point: accuracy'], rows)}"


def accuracies(algorithm: str, lines: Sequence[dict[str, Any]]) -> dict[Point, float]:
    """Settled accuracy of an algorithm's points."""
    by_point: dict[Point, list[float]] = {}
    for line in lines:
        cell = Cell.of_line(line)
        if cell.algorithm == algorithm:
            by_point.setdefault(cell.point, []).append(settled_accuracy(line["accuracy"]))
    return {point: statistics.fmean(values) for point, values in by_point.items()}


def point_used(algorithm: str) -> Point:
    """The point of its grid that the mini tier runs an algorithm at; FedAvg is there twice, once at its best point."""
    name = TUNED.get(algorithm, algorithm)
    settings = flatten(configure(Cell("mini", "mnist", name, "c2", 0), Settings()).model_dump(mode="json"))
    return tuple((key, settings.get(key)) for key in ALGORITHMS[algorithm]["grid"])


TUNED = {"fedavg": "fedavg_tuned"}
"""Rows at the protocol's own settings, and the row that takes the best point of their grid."""


def _cell(point: Point, found: float | None, *, bold: bool) -> str:
    values = ", ".join(f"{value:g}" for _, value in point)
    text = f"{values}: {MISSING if found is None else f'{100 * found:.1f}'}"
    return f"**{text}**" if bold else text
