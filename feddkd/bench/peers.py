"""Runs the transport benchmark in turn with its references and a peer: all under the same load, minutes apart at most."""

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

from feddkd.bench.workload import Workload
from feddkd.errors import RunError

OURS, RAW_GRPC, PLAIN_TCP, FLOWER = "feddkd", "raw gRPC", "plain TCP", "flower"

MODULES = {OURS: "feddkd.bench.transport", RAW_GRPC: "feddkd.bench.raw_grpc", PLAIN_TCP: "feddkd.bench.plain_tcp"}
"""Systems that run with this Python, the reference of all ratios second."""

FLOWER_PEER = Path(__file__).with_name("flower_peer.py")
RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One system on one workload, over all repetitions; the first exchange of each is warm-up and not counted.

    Attributes:
        seconds: of each counted exchange.
        server_peak_bytes: the most resident memory of the server process in any repetition.
        server_cpu_s: processor seconds of the server for an exchange, the median repetition; None where it does not say.
        client_cpu_s: likewise of all clients together.
    """

    system: str
    workload: Workload
    seconds: Sequence[float]
    server_peak_bytes: int
    server_cpu_s: float | None = None
    client_cpu_s: float | None = None

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
            **{name: round(value, 5) for name, value in self._cpu().items() if value is not None},
        }

    def _cpu(self) -> dict[str, float | None]:
        return {"server_cpu_s": self.server_cpu_s, "client_cpu_s": self.client_cpu_s}


def measure_in_turn(workload: Workload, repeats: int, flower_python: Path | None) -> Iterator[Measurement]:
    """Measure feddkd and its references, and Flower if there is a Python that has it, A B C A B C.

    Raises:
        RunError: a benchmark process failed; the message holds the end of what it printed.
    """
    commands = {system: [sys.executable, "-m", module] for system, module in MODULES.items()}
    if flower_python is not None:
        commands[FLOWER] = [str(flower_python), str(FLOWER_PEER)]
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in commands}
    for _ in range(repeats):
        for system, command in commands.items():
            port = ["--port", str(free_port())] if system == FLOWER else []
            results[system].append(_run([*command, "server", *workload.arguments, *port]))
    for system, found in results.items():
        yield _summarize(system, workload, found)


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
    peak_bytes = max(result["server_peak_bytes"] for result in results)
    return Measurement(system, workload, seconds, peak_bytes, _median_of(results, "server_cpu_s"), _median_of(results, "client_cpu_s"))


def _median_of(results: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [result[name] for result in results if name in result]
    return statistics.median(values) if values else None


def free_port() -> int:
    """Find a port for a program that cannot say which one it got for port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
