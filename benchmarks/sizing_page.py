"""Write the table of docs/deploy.md; with `--check`, only say whether it is what the result says.

python benchmarks/sizing_page.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from niid_bench.markdown import table
from niid_bench.pages import write

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "sizing.json"
PAGE = ROOT / "docs" / "deploy.md"
MB = 1e6

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
    what = (
        f"FedDKD with {rows[0]['exchanges_per_round']} exchanges a round: each sends the model to each site and as much back. "
        f"Sizes in MB (10^6 bytes). Journal and record grow by {text / 1e3:.0f} kB a round at most, whatever the model."
    )
    source = f"From [`benchmarks/results/{RESULT.name}`](../benchmarks/results/{RESULT.name}): `{result['command']}`."
    return "\n\n".join([table(list(HEADER), [_cells(row) for row in rows]), what, source])


def _cells(row: dict[str, Any]) -> list[str]:
    sizes = ("server_peak", "client_peak", "wire", "wire", "server_state", "record", "client_state")
    keys = [f"{name}_bytes" for name in sizes]
    keys[2:4] = ["wire_bytes_down", "wire_bytes_up"]
    return [f"{row['mib']} MiB", str(row["clients"]), *(f"{row[key] / MB:,.0f}" for key in keys)]


def main() -> int:
    """Rewrite the page, or compare it."""
    check = "--check" in sys.argv[1:]
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    return int(not write(PAGE, {"sizing": section(result)}, check=check, script="benchmarks/sizing_page.py"))


if __name__ == "__main__":
    sys.exit(main())
