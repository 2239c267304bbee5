"""Search the grid of an algorithm on seeds that no result uses, and print its points from best to worst.

    python benchmarks/niid_bench/tune.py mini --algorithm fedprox --partition c2 --seed 100

The grid is what algorithms.toml says; a point that is finished is not run again. The winner has the highest final
accuracy, on average over the partitions and seeds; to adopt it is to write it into algorithms.toml.
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
from niid_bench.cells import ALGORITHMS, DEFAULT_PARTITIONS, PARTITIONS, Cell, put
from niid_bench.grid import RESULTS, Runner, main_guard, results_file
from niid_bench.run import add_options, settings_of

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


def ranking(points: Sequence[Point], cells: Sequence[Cell], lines: Sequence[dict[str, Any]]) -> list[tuple[float, Point]]:
    """Mean final accuracy of each point, best first; points that lack a cell are left out."""
    accuracy = {Cell.of_line(line): line["final_accuracy"] for line in lines}
    found = []
    for point in points:
        own = [accuracy.get(cell) for cell in cells if cell.point == point]
        values = [value for value in own if value is not None]
        if len(values) == len(own):
            found.append((statistics.fmean(values), point))
    return sorted(found, key=lambda entry: -entry[0])


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
    results = results_file(options.results or RESULTS / "niid_bench_tuning.jsonl", options.records)
    failed = Runner(results, settings_of(options), script="benchmarks/niid_bench/tune.py", jobs=options.jobs).run(
        cells, again=options.again
    )
    for mean, point in ranking(points, cells, results.lines()):
        print(f"{mean:8.2%}  {'  '.join(f'{key} = {value}' for key, value in point)}")
    return int(failed > 0)


if __name__ == "__main__":
    main_guard(main)
