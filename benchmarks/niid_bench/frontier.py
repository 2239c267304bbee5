"""Run the rows of frontier.toml: accuracy by bytes, with codecs and without; a finished cell is not run again.

    python benchmarks/niid_bench/frontier.py                                    everything that is missing
    python benchmarks/niid_bench/frontier.py mini --row feddkd_frugal --partition c1 --seed 30

Each finished cell is one line of benchmarks/results/frontier.jsonl, or of frontier_grpc.jsonl with `--engine grpc`.
The seeds are none that a setting was chosen on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench.cells import FRONTIER, FRONTIER_TIERS, PARTITIONS, Cell
from niid_bench.grid import RESULTS, Runner, main_guard, results_file
from niid_bench.run import add_common_options, settings_of

RESULT = "frontier.jsonl"
GRPC_RESULT = "frontier_grpc.jsonl"
FRESH_RESULT = "frontier_fresh.jsonl"
"""Seeds that the piggyback's rule was not changed after."""

SEEDS = (30, 31, 32)
COMPARISON_SEEDS = (30,)
DEFAULT_PARTITIONS = {"mini": ("c1", "c2", "dir0.1"), "sampled": ("c2",)}


def tiers_of(row: str) -> list[str]:
    """Where a row runs."""
    return list(FRONTIER[row].get("tiers", ["mini"]))


def is_comparison(row: str) -> bool:
    return bool(FRONTIER[row].get("comparison", False))


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Seed by seed and then row by row, so that a grid that is cut short has the first rows of the first seed; comparisons last."""
    main = [cell for seed in options.seed or SEEDS for cell in _cells(options, seed, comparison=False)]
    comparisons = [cell for seed in options.seed or COMPARISON_SEEDS for cell in _cells(options, seed, comparison=True)]
    return list(dict.fromkeys(main + comparisons))


def _cells(options: argparse.Namespace, seed: int, *, comparison: bool) -> Iterator[Cell]:
    for tier in [options.tier] if options.tier else FRONTIER_TIERS:
        for row in FRONTIER:
            if is_comparison(row) == comparison and tier in tiers_of(row) and row in (options.row or FRONTIER):
                for partition in options.partition or DEFAULT_PARTITIONS[tier]:
                    yield Cell(tier, options.data, row, partition, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cells; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=FRONTIER_TIERS, nargs="?", help="default: both")
    add_common_options(parser)
    parser.add_argument("--row", "--algorithm", action="append", choices=[*FRONTIER], metavar="R", help="may be repeated; default: all")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: the tier's")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 30, 31 and 32")
    options = parser.parse_args(arguments)
    default = RESULTS / (RESULT if options.engine == "in-process" else GRPC_RESULT)
    results = results_file(options.results or default, options.records)
    script = "benchmarks/niid_bench/frontier.py"
    runner = Runner(results, settings_of(options), script=script, default_results=default, jobs=options.jobs)
    return int(runner.run(chosen_cells(options), again=options.again) > 0)


if __name__ == "__main__":
    main_guard(main)
