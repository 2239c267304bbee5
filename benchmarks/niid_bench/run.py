"""Run cells of the grid; a finished one is not run again.

    python benchmarks/niid_bench/run.py mini                                    everything that is missing
    python benchmarks/niid_bench/run.py exact --algorithm feddkd --partition c1 --seed 0

Each finished cell is one line of benchmarks/results/niid_bench_TIER.jsonl; benchmarks/niid_bench/README.md explains it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.engines.simulation import EngineName
from niid_bench.cells import ALGORITHMS, DATA_ROOT, DATA_SETS, DEFAULT_PARTITIONS, DEFAULT_SEEDS, PARTITIONS, TIERS, Cell, Settings
from niid_bench.grid import RECORDS, RESULTS, Runner, default_jobs, main_guard, results_file


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the scripts that run one tier."""
    parser.add_argument("tier", choices=TIERS)
    add_common_options(parser)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options of all scripts that run cells."""
    parser.add_argument("--data", choices=DATA_SETS, default="mnist")
    parser.add_argument("--rounds", type=at_least_one, metavar="N", help="instead of the tier's")
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT, metavar="DIR", help="has a folder mnist, ...; default: data")
    parser.add_argument("--jobs", type=at_least_one, default=default_jobs(), metavar="N", help="runs at once; default: one a core")
    parser.add_argument("--engine", choices=get_args(EngineName), default="in-process", help="default: in-process")
    parser.add_argument("--again", action="store_true", help="run finished cells too, and replace their lines")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="of the runs; default: runs/niid_bench")


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(options.rounds, tuple(options.override), options.data_root, options.engine)


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Seed by seed, so that a grid that is cut short has all algorithms of the first seed."""
    return [
        Cell(options.tier, options.data, algorithm, partition, seed)
        for seed in dict.fromkeys(options.seed or DEFAULT_SEEDS)
        for algorithm in dict.fromkeys(options.algorithm or ALGORITHMS)
        for partition in dict.fromkeys(options.partition or DEFAULT_PARTITIONS)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cells; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--algorithm", action="append", choices=[*ALGORITHMS], metavar="A", help="may be repeated; default: all")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: four")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 0, 1 and 2")
    options = parser.parse_args(arguments)
    default = RESULTS / f"niid_bench_{options.tier}.jsonl"
    results = results_file(options.results or default, options.records)
    script = "benchmarks/niid_bench/run.py"
    runner = Runner(results, settings_of(options), script=script, default_results=default, jobs=options.jobs)
    return int(runner.run(chosen_cells(options), again=options.again) > 0)


if __name__ == "__main__":
    main_guard(main)
