"""Run the same exchange of models through feddkd and its peers in turn; a cell that has a line is not run again.

    benchmarks/peers/setup
    python benchmarks/peers/exchange.py

A model goes down to N client processes, which change it, and comes back up to be averaged. Each run drops its first
exchange. `--system`, `--megabytes` and `--repeats` choose cells; the results are lines of
benchmarks/results/peers_exchange.jsonl. A peer that does not run leaves a line with its error, and is tried again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.bench.peers import free_port
from feddkd.bench.workload import MIB
from feddkd.errors import RunError
from peers.cells import DKD_STEPS, SIZES_MIB, Cell, all_cells, missing, read_lines, result_of, units_of
from peers.places import ENVIRONMENTS, RESULTS, about, check_installed, refuse_busy, version_of
from peers.running import report_of
from peers.systems import SYSTEMS, Run

LINES = RESULTS / "peers_exchange.jsonl"


def run_cell(cell: Cell, environments: Path, timeout_s: float) -> dict[str, Any]:
    """Run a cell; return its line, which has `error` where it failed."""
    system = SYSTEMS[cell.peer]
    scripts = system.scripts(environments)
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        run = Run(cell.workload(units_of(cell, system)), scripts, Path(folder), free_port())
        origin = about() | {"command": command_of(cell)}
        origin["versions"][system.package] = version_of(scripts / "python", system.package)
        try:
            check_installed(environments, system.environment)
            return result_of(cell, report_of(system, run, timeout_s)) | origin
        except (RunError, OSError, subprocess.SubprocessError) as error:
            return {name: getattr(cell, name) for name in Cell.__dataclass_fields__} | {"error": str(error)} | origin


def command_of(cell: Cell) -> str:
    """The command that runs a cell alone."""
    steps = cell.exchanges - 1
    options = f"--system '{cell.peer}' --megabytes {cell.megabytes:g} --clients {cell.clients} --tensors {cell.tensors} --steps {steps}"
    return f"python benchmarks/peers/exchange.py {options}"


def said_of(line: dict[str, Any]) -> str:
    """What is printed of a line."""
    label = f"{line['peer']}, {line['megabytes']:g} MiB, {line['work']} ({line['repeat']})"
    if "error" in line:
        return f"{label}: {line['error'][:500]}"
    wire = f"{line['wire_bytes_down'] / MIB:,.2f} MiB down, {line['wire_bytes_up'] / MIB:,.2f} up"
    cpu = f"CPU {line['server_cpu_s']:.2f} s and {line['client_cpu_s']:.2f} s"
    return f"{label}: {statistics.median(line['seconds']):.4f} s; {wire}; {cpu}; {line['server_peak_bytes'] / MIB:,.0f} MiB"


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SYSTEMS, action="append", help="may be given again; default: all")
    parser.add_argument("--megabytes", type=float, action="append", help="may be given again; default: 0.00004, 10 and 100")
    parser.add_argument("--clients", type=int, default=4, metavar="N")
    parser.add_argument("--tensors", type=int, default=1, metavar="T", help="that a model of at least 1 MiB is divided into")
    parser.add_argument("--steps", type=int, default=DKD_STEPS, metavar="J", help="of the emulated DKD round; 0: none")
    parser.add_argument("--repeats", type=int, default=2, help="runs of a cell at most")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="DIR", help="that setup has made")
    parser.add_argument("--results", type=Path, default=LINES, metavar="FILE")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of one run")
    parser.add_argument("--busy", action="store_true", help="measure even if the machine is not idle; the lines say its load")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    refuse_busy(options.busy)
    cells = all_cells(options.megabytes or SIZES_MIB, options.clients, options.tensors, options.steps, options.repeats)
    chosen = [cell for cell in cells if not options.system or cell.peer in options.system]
    failures = 0
    for cell in missing(chosen, read_lines(options.results)):
        line = run_cell(cell, options.environments, options.timeout)
        failures += "error" in line
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(said_of(line), flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
