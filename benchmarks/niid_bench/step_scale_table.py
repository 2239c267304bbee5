"""The table of docs/ablation.md on the limit to a gradient's growth: FedDKD and its control on CIFAR-10 as JPEG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from feddkd.observability.budgets import spread
from niid_bench.ablate import VARIANTS, variant_of
from niid_bench.cells import PARTITIONS, Cell, Settings, configure
from niid_bench.grid import outdated_key
from niid_bench.markdown import MISSING, accuracy, commands, table

ALGORITHMS = ("fedavg_sgd", "feddkd")
CHANCE = 0.11
"""A run of ten classes that ends below has learned nothing."""


def step_scale_table(lines: Sequence[dict[str, Any]]) -> str:
    """Every variant that was run, by algorithm and partition: each seed's final accuracy, and how many runs ended at chance.

    Lines that ran with other defaults than today's, or for other rounds than most, are left out.
    """
    rounds = statistics.mode(line["rounds"] for line in lines) if lines else 0
    lines = [line for line in lines if outdated_key(line, configure(Cell.of_line(line), Settings(rounds=rounds))) is None]
    if not lines:
        return "No results yet: `python benchmarks/niid_bench/ablate.py mini --data cifar10_jpeg`."
    partitions = [name for name in PARTITIONS if any(line["partition"] == name for line in lines)]
    rows = []
    for algorithm in ALGORITHMS:
        for name in VARIANTS:
            own = [line for line in lines if line["algorithm"] == algorithm and variant_of(Cell.of_line(line).point) == name]
            if own:
                lost = sum(line["final_accuracy"] < CHANCE for line in own)
                rows.append([f"`{algorithm}`", name, *(_finals(own, partition) for partition in partitions), f"{lost} of {len(own)}"])
    header = ["algorithm", "variant", *partitions, "ended at chance"]
    what = f"{len(lines)} runs of {rounds} rounds, tier `mini`; final accuracy in %, by seed."
    return f"{what}\n\n{table(header, rows)}\n\n{commands([line['command'] for line in lines])}"


def _finals(lines: Sequence[dict[str, Any]], partition: str) -> str:
    """The accuracy of each seed."""
    found = sorted((line["seed"], line["final_accuracy"]) for line in lines if line["partition"] == partition)
    return ", ".join(f"{seed}: {accuracy(spread([final]), seeds=1)}" for seed, final in found) or MISSING
