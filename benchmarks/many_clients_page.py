"""Write the table of docs/many_clients.md and draw its picture; with `--check`, only say whether the table is what the result says.

python benchmarks/many_clients_page.py [--check]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from niid_bench.markdown import table
from niid_bench.pages import write

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "many_clients.json"
PAGE = ROOT / "docs" / "many_clients.md"
PICTURE = ROOT / "docs" / "many_clients.png"
SIZE_INCHES = (8.4, 2.9)

HEADER = (
    "live clients",
    "one exchange: median (quartiles)",
    "server CPU, a client and exchange",
    "server memory, an idle client",
    "errors",
)


def section(result: dict[str, Any] | None) -> str:
    """Return what stands between the marks of the page.

    Args:
        result: as `many_clients.py --save` wrote it; None where nothing was measured yet.
    """
    if result is None:
        return "This machine-dependent table is written when the benchmark has run on an idle machine."
    rows = result["results"]
    small = f"{rows[0]['model_bytes']:,} bytes down and up, {rows[0]['exchanges']} exchanges"
    machine = f"{result['cores']} cores of {result['cpu']} for the server and all clients; load average {result['load_average_1min']}"
    source = f"From [`benchmarks/results/{RESULT.name}`](../benchmarks/results/{RESULT.name}): `{result['command']}`."
    picture = f"![Time of an exchange, processor time and memory of the server by the number of clients]({PICTURE.name})"
    what = f"{small}; {machine}. grpcio {result['versions']['grpcio']}."
    return "\n\n".join([picture, table(list(HEADER), [_cells(row) for row in rows]), what, source])


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = (f"{1e3 * quartile:,.0f}" for quartile in row["quartiles_s"])
    exchange = f"{1e3 * row['median_s']:,.0f} ms ({low} to {high})"
    return [f"{row['clients']:,}", exchange, f"{row['server_cpu_ms']:.2f} ms", f"{row['idle_kib']:.0f} KiB", str(row["errors"])]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw time, processor time and memory against the number of clients; whiskers are quartiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from feddkd.report.looks import FEDDKD, FIXED
    from feddkd.report.style import line_style, style

    clients = [row["clients"] for row in rows]
    medians = [row["median_s"] for row in rows]
    reach = [[row["median_s"] - row["quartiles_s"][0] for row in rows], [row["quartiles_s"][1] - row["median_s"] for row in rows]]
    drawn = line_style(FIXED[FEDDKD], marked=True)
    with style():
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 3)
        panels[0].errorbar(clients, medians, yerr=[[max(0.0, part) for part in side] for side in reach], capsize=2, **drawn)
        panels[0].set(title="one exchange", ylabel="seconds", yscale="log")
        panels[0].yaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        panels[1].plot(clients, [row["server_cpu_ms"] for row in rows], **drawn)
        panels[1].set(title="server CPU", ylabel="ms a client and exchange")
        panels[2].plot(clients, [row["idle_kib"] for row in rows], **drawn)
        panels[2].set(title="server memory", ylabel="KiB an idle client")
        for panel in panels[1:]:
            panel.set_ylim(0, 1.15 * panel.get_ylim()[1])
        for panel in panels:
            _set_axis(panel, clients)
        figure.savefig(path, dpi=160)


def _set_axis(panel: Any, clients: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    panel.set(xscale="log", xlabel="live clients")
    panel.set_xticks(clients, [f"{number:,}" for number in clients], rotation=35)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(visible=True)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> int:
    """Rewrite the page and draw the picture, or compare the page."""
    check = "--check" in sys.argv[1:]
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else None
    if result is not None and not check:
        draw(result["results"], PICTURE)
    return int(not write(PAGE, {"many_clients": section(result)}, check=check, script="benchmarks/many_clients_page.py"))


if __name__ == "__main__":
    sys.exit(main())
