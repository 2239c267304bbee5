"""Measure the memory and the time of a simulation whose rounds ask a few of many clients.

python benchmarks/cohort_memory.py --data DIR [--clients 20 1000] [--cohort 20] [--engines in-process grpc ray] [--rounds 5]

Each row is one `feddkd run` on MNIST, in processes of its own. The memory is the largest sum over the run's
processes that was seen: the resident set of each (RSS), which counts a page once for each process that uses it, and
the proportional one (PSS), which counts it once in all. Every client takes the same number of training steps, however
many examples it has, so rounds of the same cohort are the same work. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from feddkd.bench.environment import check_idle, environment

MIB = 1 << 20
PAUSE_S = 0.2
SETTINGS = (
    *("data.name=mnist", "data.holdout=0", "partition.name=iid", "training.steps=10", "training.batch_size=32"),
    *("dkd.steps=3", "dkd.batch_size=32", "model.name=niid_cnn", "scheduler.reconnect_grace_s=0"),
)


class PeakMemory:
    """Watches the memory of a process and of all that it starts, in a thread of its own.

    Attributes:
        rss_bytes: largest sum of resident sets so far.
        pss_bytes: largest sum of proportional sets so far.
        processes: most processes at a time so far.
    """

    def __init__(self, pid: int) -> None:
        """Begin to watch."""
        self.rss_bytes = self.pss_bytes = self.processes = 0
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(PAUSE_S):
            try:
                processes = [self._process, *self._process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            found = [memory for process in processes if (memory := _memory(process)) is not None]
            self.rss_bytes = max(self.rss_bytes, sum(rss for rss, _ in found))
            self.pss_bytes = max(self.pss_bytes, sum(pss for _, pss in found))
            self.processes = max(self.processes, len(found))

    def stop(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()


def _memory(process: psutil.Process) -> tuple[int, int] | None:
    """Read the resident and the proportional set; None for a process that has ended."""
    try:
        found = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    return found.rss, found.pss


def measure(engine: str, clients: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one simulation and return its row."""
    settings = [*SETTINGS, f"data.root={arguments.data}", f"partition.clients={clients}", f"scheduler.cohort={arguments.cohort}"]
    settings += [f"rounds={arguments.rounds}", f"algorithm.name={arguments.algorithm}", f"runtime.client_processes={arguments.processes}"]
    options = [part for setting in (*settings, *arguments.override) for part in ("-o", setting)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [sys.executable, "-m", "feddkd", "run", "--engine", engine, "--out", str(out), "--no-report", "--json", *options]
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as running:
            peak = PeakMemory(running.pid)
            _, said = running.communicate(timeout=arguments.timeout)
            peak.stop()
        if running.returncode != 0:
            raise SystemExit(f"{engine}, {clients} clients: {said.decode()[-2000:]}")
        wall_s = time.monotonic() - started
        seconds = [json.loads(line)["seconds"] for line in (out / "rounds.jsonl").read_text().splitlines()]
        state_bytes = sum(file.stat().st_size for file in (out / "clients").rglob("*") if file.is_file())
        summary = json.loads((out / "summary.json").read_text())
    return {
        "engine": engine,
        "clients": clients,
        "cohort": arguments.cohort,
        "peak_rss_mib": round(peak.rss_bytes / MIB),
        "peak_pss_mib": round(peak.pss_bytes / MIB),
        "processes": peak.processes,
        "round_s": round(statistics.median(seconds[1:] or seconds), 3),
        "wall_s": round(wall_s, 1),
        "state_mib": round(state_bytes / MIB, 1),
        "model_sha256": summary["model_sha256"],
    }


def main() -> None:
    """Print one row for each engine and number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data.root of MNIST")
    parser.add_argument("--clients", type=int, nargs="+", default=[20, 1000])
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--engines", nargs="+", default=["in-process", "grpc", "ray"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="that compute for clients")
    parser.add_argument("--algorithm", default="fedavg")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one run")
    parser.add_argument("-o", dest="override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--save", type=Path, help="write the rows as JSON to this file; refused on a busy machine")
    parser.add_argument("--busy", action="store_true", help="write them all the same, with the machine's load")
    arguments = parser.parse_args()
    if arguments.save and not arguments.busy:
        check_idle()
    rows = [measure(engine, clients, arguments) for engine in arguments.engines for clients in arguments.clients]
    table = Table(*(name.replace("_", " ") for name in rows[0] if name != "model_sha256"))
    for row in rows:
        table.add_row(*(str(value) for name, value in row.items() if name != "model_sha256"))
    Console().print(table)
    if arguments.save:
        document = {"command": shlex.join(["python", *sys.argv]), **environment(), "results": rows}
        arguments.save.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
