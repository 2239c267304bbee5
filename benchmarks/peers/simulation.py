"""Run the same FedAvg simulation through pfl, Flower's simulation and feddkd; first check that the final weights are equal.

    benchmarks/peers/setup
    python benchmarks/peers/simulation.py [--data-root DIR]

The work: the CNN of pfl's CIFAR-10 benchmark without dropout, 100 clients of 50 images, 10 of them in a round, one
epoch, batches of 10, SGD at 0.1. Clients, initial weights and the order of the batches are drawn by feddkd and given to
all. After two rounds every system must have feddkd's weights within 1e-5; then rounds are timed, the systems in turn.
--data-root has CIFAR-10 as torchvision leaves it; without it, images are random numbers of the same shape.
The result is benchmarks/results/peers_simulation.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

import numpy as np
from cohort_memory import PeakMemory

from feddkd.errors import RunError
from peers.places import ENVIRONMENTS, RESULTS, about, check_installed, refuse_busy, version_of
from peers.simulators import CHECKED, SIMULATORS, Simulation, Simulator, Weights, result_of
from peers.work import Shape, write_work

RESULT = RESULTS / "peers_simulation.json"
CHECKED_ROUNDS = 2
TOLERANCE = 1e-5


def run_once(simulator: Simulator, simulation: Simulation, *, watched: bool) -> dict[str, Any]:
    """Run a simulation once.

    Args:
        watched: measure the memory of all its processes, which takes processor time from them.

    Returns:
        `seconds` of each round but the first, `weights` by name, and `peak_bytes` where watched.

    Raises:
        RunError: it failed; the message has the end of what it printed.
    """
    log = simulation.folder / "log"
    command = simulator.command(simulation)
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [str(part) for part in command], env=simulator.environment_of(simulation), stdout=file, stderr=subprocess.STDOUT
        ) as running,
    ):
        memory = PeakMemory(running.pid) if watched else None
        code = running.wait(simulation.timeout_s)
        if memory is not None:
            memory.stop()
    if code != 0:
        raise RunError(f"exit code {code}: {log.read_text(errors='replace').strip()[-1500:]}")
    ends_s, weights = result_of(simulation)
    found: dict[str, Any] = {"seconds": np.diff(ends_s).round(5).tolist(), "weights": weights}
    return found if memory is None else found | {"peak_bytes": memory.pss_bytes, "processes": memory.processes}


def check(simulator: Simulator, simulation: Simulation, expected: Weights | None) -> dict[str, Any]:
    """Run two rounds, and compare the weights with those of the first system.

    Raises:
        RunError: it failed, or the weights differ.
    """
    check_installed(simulation.environments, simulator.environment)
    found = run_once(simulator, simulation, watched=True)
    if expected is not None:
        found["difference"] = difference(found["weights"], expected)
    return found


def difference(weights: Weights, expected: Weights) -> float:
    """Return the largest difference between weights.

    Raises:
        RunError: it is above the tolerance, or the names differ.
    """
    if weights.keys() != expected.keys():
        raise RunError(f"the weights are {sorted(weights)}, not {sorted(expected)}")
    largest = max(float(np.abs(weights[name] - expected[name]).max()) for name in expected)
    if not largest <= TOLERANCE:  # not a number fails too
        raise RunError(f"the weights differ from those of {CHECKED} by up to {largest:.1e} after {CHECKED_ROUNDS} rounds")
    return largest


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check all systems, then time those that passed, in turn."""
    shape = Shape(options.clients, options.cohort, options.samples, max(options.rounds, CHECKED_ROUNDS))
    write_work(folder / "work.npz", shape, options.data_root)
    chosen = [SIMULATORS[name] for name in options.system or SIMULATORS]
    rows: dict[str, dict[str, Any]] = {}
    expected: Weights | None = None
    for simulator in chosen:
        try:
            found = check(simulator, _simulation(options, folder, f"{simulator.name} check", CHECKED_ROUNDS), expected)
        except (RunError, OSError, subprocess.SubprocessError) as error:
            rows[simulator.name] = {"error": str(error)}
            print(f"{simulator.name}: {error}", flush=True)
            continue
        expected = expected or found["weights"]
        rows[simulator.name] = {name: value for name, value in found.items() if name not in ("weights", "seconds")} | {"seconds": []}
        print(f"{simulator.name}: weights differ by {found.get('difference', 0.0):.1e}, {found['peak_bytes'] / 1e6:,.0f} MB", flush=True)
    for repeat in range(1, options.repeats + 1):
        for simulator in chosen:
            if "error" not in rows[simulator.name]:
                found = run_once(simulator, _simulation(options, folder, f"{simulator.name} {repeat}", options.rounds), watched=False)
                rows[simulator.name]["seconds"] += found["seconds"]
                print(f"{simulator.name} ({repeat}): {np.median(found['seconds']):.3f} s a round", flush=True)
    return {"results": [{"system": name, "processes_asked": SIMULATORS[name].processes} | row for name, row in rows.items()]}


def _simulation(options: argparse.Namespace, folder: Path, name: str, rounds: int) -> Simulation:
    own = folder / name.replace(" ", "-")
    own.mkdir()
    shape = Shape(options.clients, options.cohort, options.samples, rounds)
    return Simulation(folder / "work.npz", own, shape, options.environments, options.timeout)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SIMULATORS, action="append", help="may be given again; default: all")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="of CIFAR-10; default: random numbers")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=10)
    parser.add_argument("--samples", type=int, default=50, help="of each client")
    parser.add_argument("--rounds", type=int, default=8, help="of a timed run; the first is warm-up")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, metavar="DIR", help="that setup has made")
    parser.add_argument("--results", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of one run")
    parser.add_argument("--busy", action="store_true", help="measure even if the machine is not idle; the result says its load")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    refuse_busy(options.busy)
    origin = about()
    for simulator in SIMULATORS.values():
        if simulator.environment is not None:
            origin["versions"][simulator.package] = version_of(simulator.python(options.environments), simulator.package)
    work = {name: getattr(options, name) for name in ("clients", "cohort", "samples", "rounds", "repeats")}
    work["data"] = "random numbers" if options.data_root is None else "CIFAR-10"
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        result = measure(options, Path(folder))
    command = " ".join(["python", "benchmarks/peers/simulation.py", *(sys.argv[1:] if arguments is None else arguments)])
    options.results.write_text(json.dumps({"command": command, **origin, **work, **result}, indent=2) + "\n", encoding="utf-8")
    return int(any("error" in row for row in result["results"]))


if __name__ == "__main__":
    sys.exit(main())
