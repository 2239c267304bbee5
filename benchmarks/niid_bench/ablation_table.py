"""The table of docs/ablation.md: what each variant of FedDKD came to, beside the default."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from feddkd.bench.budgets import spread
from niid_bench.ablate import VARIANTS
from niid_bench.cells import PARTITIONS, Cell, Settings, configure
from niid_bench.grid import outdated_key
from niid_bench.markdown import MISSING, accuracy, table


def ablation_table(lines: Sequence[dict[str, Any]]) -> str:
    """Every variant of FedDKD on every partition that was run on MNIST in the mini tier, beside the default.

    Lines that ran with other defaults than today's are left out and counted.
    """
    ours = [line for line in lines if (line["tier"], line["data"]) == ("mini", "mnist")]
    lines = [line for line in ours if outdated_key(line, configure(Cell.of_line(line), Settings(rounds=line["rounds"]))) is None]
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
            worst = min((value for line in own if line["partition"] == partition for value in line["accuracy"][2:]), default=None)
            cells += [accuracy(found, seeds=1), MISSING if worst is None else f"{100 * worst:.1f}"]
        settings = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in point) or "-"
        rows.append([name, settings, *cells, f"{own[0]['cumulative_wire_bytes'][-1] / 1e6:,.0f} MB", f"`{own[0]['command']}`"])
    header = [
        "variant",
        "settings",
        *(text for name in partitions for text in (f"{name}: final", "lowest from round 3")),
        "bytes",
        "command",
    ]
    seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
    what = f"{len(lines)} runs of {lines[0]['rounds']} rounds, tier `{lines[0]['tier']}`, seeds {seeds}; accuracy in %."
    what += f" {len(ours) - len(lines)} more ran with older defaults and are left out." if len(ours) > len(lines) else ""
    return f"{what}\n\n{table(header, rows)}"
