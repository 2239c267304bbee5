"""Change FedDKD's defaults one at a time (ablation.toml); a variant that is finished is not run again.

python benchmarks/niid_bench/ablate.py mini --partition c1 --seed 0
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.bench.runs import flatten
from feddkd.config import read_tables
from feddkd.errors import ConfigError
from niid_bench.cells import PARTITIONS, Cell, read_toml
from niid_bench.grid import RESULTS, Runner, main_guard, results_file
from niid_bench.run import add_options, settings_of

RESULT = "niid_bench_ablation.jsonl"
VARIANTS = {name: tuple(flatten(settings).items()) for name, settings in read_toml("ablation.toml").items()}
"""What differs from the default, by dotted key, for each variant."""


def chosen_variants(names: Sequence[str], only: Sequence[str]) -> dict[str, tuple[tuple[str, object], ...]]:
    """The variants of these names, or with exactly these settings; all of them if nothing is asked for.

    Raises:
        ConfigError: there is none.
    """
    wanted = flatten(read_tables(None, only))
    chosen = {name: point for name, point in VARIANTS.items() if (not names or name in names) and (not only or dict(point) == wanted)}
    if not chosen:
        raise ConfigError(f"ablation.toml has no variant {', '.join([*names, *only])}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the variants; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--algorithm", choices=["feddkd"], default="feddkd")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME", help="may be repeated; default: all")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="only the variant with these settings")
    parser.add_argument("--partition", action="append", choices=[*PARTITIONS], metavar="P", help="may be repeated; default: c1")
    parser.add_argument("--seed", action="append", type=int, metavar="S", help="may be repeated; default: 0")
    options = parser.parse_args(arguments)
    cells = [
        Cell(options.tier, options.data, options.algorithm, partition, seed, point)
        for seed in dict.fromkeys(options.seed or (0,))
        for partition in dict.fromkeys(options.partition or ("c1",))
        for point in chosen_variants(options.variant, options.only).values()
    ]
    results = results_file(options.results or RESULTS / RESULT, options.records)
    runner = Runner(results, settings_of(options), script="benchmarks/niid_bench/ablate.py", jobs=options.jobs)
    return int(runner.run(cells, again=options.again) > 0)


if __name__ == "__main__":
    main_guard(main)
