"""Write the table of docs/deploy.md and what follows from it for the defaults; with `--check`, only say whether it is what the result says.

python benchmarks/sizing_page.py [--check]
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from niid_bench.markdown import table
from niid_bench.pages import write

from feddkd.config import Config

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "sizing.json"
PAGE = ROOT / "docs" / "deploy.md"
MB, GB = 1e6, 1e9
KEPT_ROUNDS = 2
"""Of which a server keeps the model."""
RECORD_MODELS = 3
"""In a record at most: the delivered, the best and the last one."""

HEADER = (
    "model",
    "sites",
    "server memory",
    "memory of a site",
    "a round, server to sites",
    "a round, sites to server",
    "server's state",
    "its record",
    "state of a site",
)


def section(result: dict[str, Any]) -> str:
    """Return what stands between the marks of the page; `result` is as `sizing.py --save` wrote it."""
    rows = result["rows"]
    text = max(row["record_text_bytes_per_round"] for row in rows)
    what = _prose(
        f"FedDKD with {rows[0]['exchanges_per_round']} exchanges a round: each sends the model to each site and as much back. "
        f"Sizes in MB (10^6 bytes). Journal and record grow by {text / 1e3:.0f} kB a round at most, whatever the model."
    )
    source = f"From [`benchmarks/results/{RESULT.name}`](../benchmarks/results/{RESULT.name}):\n`{result['command']}`."
    return "\n\n".join([table(list(HEADER), [_cells(row) for row in rows]), what, source])


def defaults(result: dict[str, Any]) -> str:
    """Return what a round of FedDKD with the default number of steps takes, by the largest row."""
    exchanges = Config().dkd.steps + 1
    exchange_bytes = max(row["record_text_bytes_per_round"] / row["exchanges_per_round"] for row in result["rows"])
    rounds_in_gb = round(GB / (exchanges * exchange_bytes), -3)
    models = exchanges + KEPT_ROUNDS + RECORD_MODELS
    return _prose(
        f"A round of FedDKD is `dkd.steps` + 1 exchanges, {exchanges} by default. Only the journal and the lines of the record "
        f"grow with the rounds: by up to {exchange_bytes / 1e3:.1f} kB an exchange, so by {exchanges * exchange_bytes / 1e3:.0f} kB "
        f"a round, and a gigabyte holds about {rounds_in_gb:,.0f} rounds. A round that would not fit does not start: the run pauses and "
        f"says how much is missing. Give the server `{models} \u00d7 M + M \u00d7 sites + 1 GB` ({exchanges} exchanges of the open round, "
        f"{KEPT_ROUNDS} rounds, {RECORD_MODELS} models of the record), and see "
        "[what to do when the disk is full](runbook.md#the-disk-is-full)."
    )


def _prose(text: str) -> str:
    return textwrap.fill(text, width=100, break_long_words=False, break_on_hyphens=False)


def _cells(row: dict[str, Any]) -> list[str]:
    sizes = ("server_peak", "client_peak", "wire", "wire", "server_state", "record", "client_state")
    keys = [f"{name}_bytes" for name in sizes]
    keys[2:4] = ["wire_bytes_down", "wire_bytes_up"]
    return [f"{row['mib']} MiB", str(row["clients"]), *(f"{row[key] / MB:,.0f}" for key in keys)]


def main() -> int:
    """Rewrite the page, or compare it."""
    check = "--check" in sys.argv[1:]
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    sections = {"sizing": section(result), "sizing:defaults": defaults(result)}
    return int(not write(PAGE, sections, check=check, script="benchmarks/sizing_page.py"))


if __name__ == "__main__":
    sys.exit(main())
