"""Write the tables of docs/peers.md from the results; `--check` fails if the page is not what they say.

python benchmarks/peers/tables.py [--check]
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench.markdown import MISSING, table
from niid_bench.pages import write

from peers.cells import DKD_ROUND, EXCHANGE, read_lines
from peers.places import RESULTS, ROOT
from peers.systems import SYSTEMS

PAGE = ROOT / "docs" / "peers.md"
OURS = "feddkd"
NOT_YET = "Not measured yet."
SHOWN = 300
"""Characters of an error, from its end."""


def exchange_tables(lines: Sequence[dict[str, Any]], work: str) -> str:
    """Make a table for each size of model, and below them the errors and where the numbers are from."""
    mine = [line for line in lines if line["work"] == work]
    if not mine:
        return NOT_YET
    sizes = sorted({line["megabytes"] for line in mine})
    parts = [_exchange_table([line for line in mine if line["megabytes"] == size]) for size in sizes]
    return "\n\n".join([*parts, *_errors(mine, "peer"), _source("peers_exchange.jsonl", mine)])


def _exchange_table(lines: Sequence[dict[str, Any]]) -> str:
    """One row a system, over all repeats."""
    first = lines[0]
    measured = {name: [line for line in lines if line["peer"] == name and "error" not in line] for name in SYSTEMS}
    reference = _seconds(measured[OURS])
    rows = []
    for name, runs in measured.items():
        if runs:
            seconds = _seconds(runs)
            spread = f"{_time(min(seconds))} to {_time(max(seconds))}, {len(seconds)}"
            ratio = f"{statistics.median(seconds) / statistics.median(reference):.1f}" if reference else MISSING
            wire = [_size(_median(runs, f"wire_bytes_{way}")) for way in ("down", "up")]
            cpu = [f"{_median(runs, f'{role}_cpu_s'):.2f} s" for role in ("server", "client")]
            memory = _size(max(run["server_peak_bytes"] for run in runs))
            rows.append([name, _time(statistics.median(seconds)), spread, ratio, *wire, *cpu, memory])
    what = f"{_size_of_model(first['megabytes'])} in {_counted(first['tensors'], 'tensor')}, {first['clients']} clients"
    exchanges = "" if first["exchanges"] == 1 else f", {first['exchanges']} exchanges one after the other"
    header = ["", "time", "lowest to highest, of", "over feddkd", "down", "up", "server's CPU", "clients' CPU", "server's memory"]
    return f"**{what}{exchanges}**\n\n{table(header, rows)}" if rows else f"**{what}{exchanges}**: no system has run."


def simulation_table(result: dict[str, Any] | None) -> str:
    """One row a simulator."""
    if result is None:
        return NOT_YET
    measured = {row["system"]: row for row in result["results"] if "error" not in row}
    reference = next(iter(measured.values()), None)
    rows = []
    for name, row in measured.items():
        median = statistics.median(row["seconds"])
        ratio = median / statistics.median(reference["seconds"]) if reference else 1.0
        spread = f"{_time(min(row['seconds']))} to {_time(max(row['seconds']))}, {len(row['seconds'])}"
        difference = f"{row['difference']:.0e}" if "difference" in row else "the reference"
        rows.append([name, str(row["processes_asked"]), _time(median), spread, f"{ratio:.2f}", _size(row["peak_bytes"]), difference])
    header = [
        "",
        "processes that train",
        "a round",
        "lowest to highest, of",
        "over the first",
        "memory of all processes",
        "weights differ by",
    ]
    what = f"{result['cohort']} of {result['clients']} clients in a round, {result['samples']} images each; images: {result['data']}"
    return "\n\n".join(
        [f"**{what}**", table(header, rows), *_errors(result["results"], "system"), _source("peers_simulation.json", [result])]
    )


def _errors(entries: Sequence[dict[str, Any]], name: str) -> list[str]:
    """What could not be run, with the end of its last error, each system once."""
    ran = {entry[name] for entry in entries if "error" not in entry}
    found = {entry[name]: entry["error"] for entry in entries if entry[name] not in ran}
    return [f"`{system}` could not be run:\n\n```text\n{error.strip()[-SHOWN:]}\n```" for system, error in found.items()]


def _source(file: str, entries: Sequence[dict[str, Any]]) -> str:
    """Say where the numbers are from, and on what they were measured."""
    last = entries[-1]
    versions: dict[str, str] = {}
    for entry in entries:
        versions |= {name: version for name, version in entry["versions"].items() if version}
    shown = [f"{name} {versions[name]}" for name in ("feddkd", "flwr", "nvflare", "openfl", "pfl", "torch", "ray") if name in versions]
    loads = [entry["load_average_1min"] for entry in entries]
    machine = f"{last['cores']} cores, {last['cpu']}, {last['system']}; load average {min(loads)} to {max(loads)} at the start of a run"
    path = f"benchmarks/results/{file}"
    return f"{', '.join(shown)}. {last['date']}, {machine}. From [`{path}`](../{path}), which has the command of each line."


def _seconds(runs: Sequence[dict[str, Any]]) -> list[float]:
    return [value for run in runs for value in run["seconds"]]


def _median(runs: Sequence[dict[str, Any]], name: str) -> float:
    values: list[float] = [run[name] for run in runs]
    return statistics.median(values)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 0.1 else f"{seconds:,.2f} s"


def _size(size_bytes: float) -> str:
    return f"{size_bytes / 1e3:,.1f} kB" if size_bytes < 1e6 else f"{size_bytes / 1e6:,.1f} MB"


def _size_of_model(megabytes: float) -> str:
    return f"{megabytes:g} MiB" if megabytes >= 0.001 else f"{4 * int(megabytes * 2**20 / 4)} bytes"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sections(lines: Sequence[dict[str, Any]], result: dict[str, Any] | None) -> dict[str, str]:
    """Make all sections of the page."""
    return {
        "peers:exchange": exchange_tables(lines, EXCHANGE),
        "peers:dkd": exchange_tables(lines, DKD_ROUND),
        "peers:simulation": simulation_table(result),
    }


def main(arguments: Sequence[str] | None = None, page: Path = PAGE, results: Path = RESULTS) -> int:
    check = "--check" in (sys.argv[1:] if arguments is None else arguments)
    simulation = results / "peers_simulation.json"
    result = json.loads(simulation.read_text(encoding="utf-8")) if simulation.exists() else None
    found = sections(read_lines(results / "peers_exchange.jsonl"), result)
    return int(not write(page, found, check=check, script="benchmarks/peers/tables.py"))


if __name__ == "__main__":
    sys.exit(main())
