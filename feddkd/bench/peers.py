"""Runs the transport benchmark and, in turn with it, a peer's: both under the same load, minutes apart at most."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.bench.transport import Workload
from feddkd.errors import RunError

FLOWER_PEER = Path(__file__).with_name("flower_peer.py")
RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One system on one workload, over all repetitions; the first exchange of each is warm-up and not counted.

    Attributes:
        seconds: of each counted exchange.
        server_peak_bytes: the most resident memory of the server process in any repetition.
    """

    system: str
    workload: Workload
    seconds: Sequence[float]
    server_peak_bytes: int

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "clients": self.workload.clients,
            "megabytes": self.workload.megabytes,
            "tensors": self.workload.tensors,
            "median_s": round(self.median_s, 5),
            "min_s": round(min(self.seconds), 5),
            "max_s": round(max(self.seconds), 5),
            "exchanges": len(self.seconds),
            "server_peak_bytes": self.server_peak_bytes,
        }


def measure_in_turn(workload: Workload, repeats: int, flower_python: Path | None) -> Iterator[Measurement]:
    """Measure feddkd, and Flower if there is a Python that has it, A B A B.

    Raises:
        RunError: a benchmark process failed; the message holds the end of what it printed.
    """
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(repeats):
        ours.append(_run([sys.executable, "-m", "feddkd.bench.transport", "server", *_options(workload)]))
        if flower_python is not None:
            peer = [str(flower_python), str(FLOWER_PEER), "server", *_options(workload), "--port", str(free_port())]
            theirs.append(_run(peer))
    yield _summarize("feddkd", workload, ours)
    if theirs:
        yield _summarize("flower", workload, theirs)


def _run(command: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark server; its result is the last line on its standard output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env=environment, check=False)
    if done.returncode != 0:
        raise RunError(f"{command[0]} failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _summarize(system: str, workload: Workload, results: Sequence[dict[str, Any]]) -> Measurement:
    seconds = [value for result in results for value in result["seconds"][1:]]
    return Measurement(system, workload, seconds, max(result["server_peak_bytes"] for result in results))


def _options(workload: Workload) -> list[str]:
    return [
        *("--clients", str(workload.clients), "--rounds", str(workload.rounds)),
        *("--megabytes", str(workload.megabytes), "--tensors", str(workload.tensors)),
    ]


def free_port() -> int:
    """Find a port for a program that cannot say which one it got for port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
