"""Change the defaults of FedDKD, or of its control, one at a time (ablation.toml); a variant that is finished is not run again.

python benchmarks/niid_bench/ablate.py mini --partition c1

The seed, 100 by default, is none that a table of results uses.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.config.table import flatten
from niid_bench.cells import PARTITIONS, Cell, read_toml
from niid_bench.grid import RESULTS, Runner, main_guard, results_file
from niid_bench.run import add_options, settings_of

RESULT = "niid_bench_ablation.jsonl"
LONGER_RESULT = "niid_bench_ablation_15.jsonl"
"""Of fifteen rounds, with --results; a cell's name does not say its rounds."""
STEP_SCALE_RESULT = "step_scale.jsonl"
"""Of six rounds on CIFAR-10 as JPEG, FedDKD and its control, with --results."""
VARIANTS = {name: tuple(flatten(settings).items()) for name, settings in read_toml("ablation.toml").items()}
"""What differs from the default, by dotted key, for each variant."""


def variant_of(point: tuple[tuple[str, object], ...]) -> str | None:
    """The name of the variant with exactly these settings."""
    return next((name for name, settings in VARIANTS.items() if settings == point), None)


def _variant_option(cell: Cell) -> list[str]:
    return ["--variant", str(variant_of(cell.point))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the variants; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--algorithm", choices=["feddkd", "fedavg_sgd"], default="feddkd")
    parser.add_argument("--variant", action="append", choices=[*VARIANTS], metavar="NAME", help="may be repeated; default: all")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: c1")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 100")
    options = parser.parse_args(arguments)
    cells = [
        Cell(options.tier, options.data, options.algorithm, partition, seed, point)
        for seed in dict.fromkeys(options.seed or (100,))
        for partition in dict.fromkeys(options.partition or ("c1",))
        for point in (VARIANTS[name] for name in options.variant or VARIANTS)
    ]
    results = results_file(options.results or RESULTS / RESULT, options.records)
    runner = Runner(
        results,
        settings_of(options),
        script="benchmarks/niid_bench/ablate.py",
        default_results=RESULTS / RESULT,
        jobs=options.jobs,
        point_options=_variant_option,
    )
    return int(runner.run(cells, again=options.again) > 0)


if __name__ == "__main__":
    main_guard(main)
