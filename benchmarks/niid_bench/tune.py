"""Search the grid of an algorithm on seeds that no result uses, and print its points from best to worst.

    python benchmarks/niid_bench/tune.py mini --algorithm fedprox --partition c2 --seed 100

The grid is what algorithms.toml says; a point that is finished is not run again. The winner has the highest mean accuracy
over the last three rounds, the partitions and the seeds; to adopt it is to write it into algorithms.toml.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.config import read_tables
from feddkd.config.table import flatten
from feddkd.errors import ConfigError
from niid_bench.cells import ALGORITHMS, DEFAULT_PARTITIONS, PARTITIONS, Cell, Settings, configure, put
from niid_bench.grid import RESULTS, Runner, main_guard, outdated_key, results_file
from niid_bench.run import add_options, settings_of

RESULT = "niid_bench_tuning.jsonl"

Point = tuple[tuple[str, Any], ...]


def points_of(algorithm: str, only: Sequence[str] = ()) -> list[Point]:
    """Every combination of the grid's values; with `key=value` only those that have them.

    Raises:
        ConfigError: the algorithm has no grid, or no point of it is chosen.
    """
    grid = ALGORITHMS[algorithm].get("grid")
    if not grid:
        raise ConfigError(f"algorithms.toml states no grid for {algorithm}")
    points = [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    wanted = flatten(read_tables(None, only)).items()
    chosen = [point for point in points if wanted <= flatten(_tree(point)).items()]
    if not chosen:
        raise ConfigError(f"the grid of {algorithm} has no point with {', '.join(only)}")
    return chosen


def _tree(point: Point) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in point:
        put(tree, key, value)
    return tree


def ranking(cells: Sequence[Cell], settings: Settings, lines: Sequence[dict[str, Any]]) -> list[tuple[float, Point]]:
    """Settled accuracy of each point, best first; points that lack a cell, or have one of other settings, are left out."""
    configs = {cell: configure(cell, settings) for cell in cells}
    own = ((Cell.of_line(line), line) for line in lines)
    accuracy = {
        cell: settled_accuracy(line["accuracy"]) for cell, line in own if cell in configs and outdated_key(line, configs[cell]) is None
    }
    found = []
    for point in dict.fromkeys(cell.point for cell in cells):
        wanted = [cell for cell in cells if cell.point == point]
        values = [accuracy[cell] for cell in wanted if cell in accuracy]
        if len(values) == len(wanted):
            found.append((statistics.fmean(values), point))
    return sorted(found, key=lambda entry: -entry[0])


def settled_accuracy(accuracy: Sequence[float]) -> float:
    """Mean over the last three rounds: with few classes a party, a single one is up or down by tens of points."""
    return statistics.fmean(accuracy[-3:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the grid and print its ranking; returns 1 if a point failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--algorithm", required=True, choices=[*ALGORITHMS], metavar="A")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: four")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 100")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="only the points with this value")
    options = parser.parse_args(arguments)
    points = points_of(options.algorithm, options.only)
    cells = [
        Cell(options.tier, options.data, options.algorithm, partition, seed, point)
        for seed in dict.fromkeys(options.seed or (100,))
        for partition in dict.fromkeys(options.partition or DEFAULT_PARTITIONS)
        for point in points
    ]
    results = results_file(options.results or RESULTS / RESULT, options.records)
    script = "benchmarks/niid_bench/tune.py"
    runner = Runner(results, settings_of(options), script=script, default_results=RESULTS / RESULT, jobs=options.jobs)
    failed = runner.run(cells, again=options.again)
    for mean, point in ranking(cells, settings_of(options), results.lines()):
        print(f"{mean:8.2%}  {'  '.join(f'{key} = {value}' for key, value in point)}")
    return int(failed > 0)


if __name__ == "__main__":
    main_guard(main)
