"""Run the rows of labels.toml: accuracy where labels are few or wrong; a finished cell is not run again.

    python benchmarks/niid_bench/labels.py                                      everything that is missing
    python benchmarks/niid_bench/labels.py mini --row feddkd --case 3% --partition c2 --seed 40
    python benchmarks/niid_bench/labels.py exact --data cifar10_jpeg            the whole protocol: hours

Each finished cell is one line of benchmarks/results/labels.jsonl. The seeds are none that a setting was chosen on. A row, a case
and a partition that are all named run also where the plan does not have them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.config.table import flatten
from niid_bench.cells import LABELS, PARTITIONS, Cell, read_toml
from niid_bench.grid import RESULTS, Runner, main_guard, results_file
from niid_bench.run import add_common_options, settings_of

RESULT = "labels.jsonl"
STUDY = "labels"
TIERS = ("mini", "exact")
SEEDS = (40, 41, 42)
SINGLE_SEEDS = (40,)

CASES: dict[str, tuple[tuple[str, Any], ...]] = {
    name: tuple(flatten(keys).items()) for name, keys in read_toml("labels.toml")["case"].items()
}
"""What is done to the labels, by dotted key, for each case."""

SKEWED = ("c2", "dir0.1")
MILD = ("dir0.5", "iid")
FEW, WRONG = ("3%", "10%"), ("noise40", "noise60")
HELD_OUT = ("feddkd_auto", "feddkd_holdout")


@dataclass(frozen=True, slots=True)
class Stage:
    """Cells that are run together: all its rows in all its cases on all its partitions."""

    cases: tuple[str, ...]
    partitions: tuple[str, ...]
    rows: tuple[str, ...]


MAIN = (
    Stage(FEW, SKEWED, ("feddkd", "control", "self_training")),
    Stage(WRONG, SKEWED, ("feddkd", "feddkd_teachers", "control")),
    Stage(FEW, SKEWED, ("fedavg_x20", "semifl")),
    Stage(("all",), SKEWED, ("feddkd", "control")),
    Stage(FEW, SKEWED, HELD_OUT),
    Stage(WRONG, SKEWED, ("control_slow", "control_bootstrap")),
)
"""Run for all seeds; what matters most comes first."""

SINGLE = (
    Stage(("1%",), SKEWED, ("feddkd", "control", "self_training", "fedavg_x20")),
    Stage(FEW, MILD, ("feddkd", *HELD_OUT, "control", "self_training")),
    Stage(FEW, SKEWED, ("self_training_all", "control_slow", "feddkd_frugal")),
    Stage(("own20", "own30", "noise20"), SKEWED, ("feddkd", "feddkd_teachers", *HELD_OUT, "control")),
    Stage(("noise40",), MILD, ("feddkd", "feddkd_teachers", "control")),
    Stage(("1%",), SKEWED, HELD_OUT),
    Stage(("all",), SKEWED, ("self_training", "fedavg_x20")),
    Stage(WRONG, SKEWED, ("fedavg_x20",)),
)
"""Run for one seed, after all others."""

CIFAR_MAIN = (
    Stage(("10%",), SKEWED, ("feddkd", "control", "self_training")),
    Stage(("noise40",), SKEWED, ("feddkd", "control")),
    Stage(("all",), SKEWED, ("feddkd", "control")),
)
CIFAR_SINGLE = (
    Stage(("10%",), SKEWED, ("self_training_all", "control_slow", *HELD_OUT, "feddkd_frugal")),
    Stage(("noise40",), SKEWED, ("feddkd_teachers", "control_slow", "control_bootstrap")),
    Stage(("10%",), MILD, ("feddkd", *HELD_OUT, "control", "self_training")),
    Stage(("10%",), SKEWED, ("fedavg_x20", "semifl")),
)

CIFAR_GRID = Stage(
    ("all", "10%"),
    ("c1", *SKEWED, "dir0.5"),
    ("feddkd", "feddkd_paper", "control", "fedavg", "fedavg_tuned", "fedavgm", "fedadagrad", "feddkd_frugal", "fedavg_coded"),
)
"""All algorithms of a comparison at equal rounds; run after what few labels need."""

PLANS = {"mnist": (MAIN, SINGLE), "cifar10_jpeg": ((*CIFAR_MAIN, CIFAR_GRID), CIFAR_SINGLE)}
"""By data set; others are run as MNIST."""

EXACT = Stage(("all",), ("c2", "c1", "dir0.5"), ("feddkd", "fedavg"))
"""The plan of the `exact` tier, for any data set: a run takes an hour or so, so one seed at a time."""


def case_of(cell: Cell) -> str:
    """The name of what is done to a cell's labels."""
    return next(name for name, point in CASES.items() if point == cell.point)


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """Seed by seed and then stage by stage, so that a grid that is cut short has the first stages of the first seed."""
    main, single = PLANS.get(options.data, PLANS["mnist"]) if options.tier == "mini" else ((), (EXACT,))
    if options.row and options.case and options.partition:
        main = (Stage(tuple(options.case), tuple(options.partition), tuple(options.row)),)
        single = ()
    cells = [cell for seed in options.seed or SEEDS for cell in _cells(options, main, seed)]
    cells += [cell for seed in options.seed or SINGLE_SEEDS for cell in _cells(options, single, seed)]
    return list(dict.fromkeys(cells))


def _cells(options: argparse.Namespace, stages: Sequence[Stage], seed: int) -> Iterator[Cell]:
    for stage in stages:
        for case, partition, row in product(stage.cases, stage.partitions, stage.rows):
            is_chosen = (
                case in (options.case or CASES) and partition in (options.partition or PARTITIONS) and row in (options.row or LABELS)
            )
            if is_chosen:
                yield Cell(options.tier, options.data, row, partition, seed, CASES[case], STUDY)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen cells; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=TIERS, nargs="?", default="mini")
    add_common_options(parser)
    parser.add_argument("--row", "--algorithm", action="append", choices=[*LABELS], metavar="R", help="may be repeated; default: all")
    parser.add_argument("--case", action="append", choices=[*CASES], metavar="C", help="may be repeated; default: all")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: the plan's")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 40, 41 and 42")
    options = parser.parse_args(arguments)
    default = RESULTS / RESULT
    results = results_file(options.results or default, options.records)
    runner = Runner(
        results,
        settings_of(options),
        script="benchmarks/niid_bench/labels.py",
        default_results=default,
        jobs=options.jobs,
        point_options=lambda cell: ["--case", case_of(cell)],
    )
    return int(runner.run(chosen_cells(options), again=options.again) > 0)


if __name__ == "__main__":
    main_guard(main)
