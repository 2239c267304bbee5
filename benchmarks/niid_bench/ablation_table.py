"""The table of docs/ablation.md: what each variant of FedDKD came to, beside the default."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from typing import Any

from feddkd.observability.budgets import spread
from niid_bench.ablate import VARIANTS
from niid_bench.cells import PARTITIONS, Cell, Settings, configure
from niid_bench.grid import outdated_key
from niid_bench.markdown import MISSING, accuracy, commands, table


def ablation_table(lines: Sequence[dict[str, Any]]) -> str:
    """Every variant of FedDKD on every partition that was run on MNIST in the mini tier, beside the default.

    Lines that ran with other defaults than today's, or for other rounds than most, are left out and counted.
    """
    ours = [line for line in lines if (line["tier"], line["data"]) == ("mini", "mnist")]
    rounds = statistics.mode(line["rounds"] for line in ours) if ours else 0
    lines = [line for line in ours if outdated_key(line, configure(Cell.of_line(line), Settings(rounds=rounds))) is None]
    if not lines:
        return "No results yet: `python benchmarks/niid_bench/ablate.py mini`."
    partitions = [name for name in PARTITIONS if any(line["partition"] == name for line in lines)]
    rows = []
    for name, point in VARIANTS.items():
        own = [line for line in lines if tuple(line.get("grid_point", {}).items()) == point]
        if not own:
            continue
        cells = []
        for partition in partitions:
            found = spread(line["final_accuracy"] for line in own if line["partition"] == partition)
            falls = [largest_fall(line["accuracy"]) for line in own if line["partition"] == partition]
            cells += [accuracy(found, seeds=1), _fall(max(falls)) if falls else MISSING]
        settings = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in point) or "-"
        rows.append([name, settings, *cells, f"{own[0]['cumulative_wire_bytes'][-1] / 1e6:,.0f} MB"])
    header = [
        "variant",
        "settings",
        *(text for name in partitions for text in (f"{name}: final", "largest fall")),
        "bytes",
    ]
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    what = f"{len(lines)} runs of {rounds} rounds, tier `{lines[0]['tier']}`, seeds {seeds}; accuracy in %."
    what += f" {len(ours) - len(lines)} more, of older defaults or other rounds, are left out." if len(ours) > len(lines) else ""
    return f"{what}\n\n{table(header, rows)}\n\n{commands([line['command'] for line in lines])}"


def _fall(points: float) -> str:
    return f"{100 * points:.1f}" if points > 0 else "none"


def largest_fall(accuracy: Sequence[float]) -> float:
    """How much accuracy a run lost at most from one round to the next."""
    return max((before - after for before, after in itertools.pairwise(accuracy)), default=0.0)
