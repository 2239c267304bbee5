"""What is exchanged in a benchmark of the transport, and what one of its servers reports."""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Workload:
    """`tensors` float32 tensors of `megabytes` MiB in all, `clients` client processes, `rounds` exchanges."""

    clients: int
    rounds: int
    megabytes: float
    tensors: int

    @property
    def elements_per_tensor(self) -> int:
        """Elements of each tensor, at least one."""
        return max(1, int(self.megabytes * MIB / 4 / self.tensors))

    @property
    def size_bytes(self) -> int:
        """Bytes of the model."""
        return 4 * self.elements_per_tensor * self.tensors

    @property
    def arguments(self) -> list[str]:
        """The workload as options of a benchmark's process."""
        return [text for name, value in asdict(self).items() for text in (f"--{name}", str(value))]


@dataclass(frozen=True, slots=True)
class Role:
    """What one process of a benchmark does.

    Attributes:
        server: HOST:PORT to connect to; None for the server itself.
        rank: of a client.
    """

    workload: Workload
    server: str | None
    rank: int

    @classmethod
    def of(cls, arguments: Sequence[str] | None = None) -> Role:
        """Read the options of a process."""
        parser = argparse.ArgumentParser()
        parser.add_argument("role", choices=["server", "client"])
        parser.add_argument("--clients", type=int, required=True)
        parser.add_argument("--rounds", type=int, required=True)
        parser.add_argument("--megabytes", type=float, required=True)
        parser.add_argument("--tensors", type=int, required=True)
        parser.add_argument("--server")
        parser.add_argument("--rank", type=int, default=0)
        options = parser.parse_args(arguments)
        workload = Workload(options.clients, options.rounds, options.megabytes, options.tensors)
        return cls(workload, options.server, options.rank)


class Stopwatch:
    """Times exchanges, and counts the processor time that server and clients take for them.

    The first exchange is warm-up: its time is noted, and left out by who reads the report; its
    processor time is not counted.
    """

    def __init__(self, clients: Sequence[int]) -> None:
        """Watch the processes with these ids, and this one, the server."""
        self._clients = clients
        self._seconds: list[float] = []
        self._started_s = 0.0
        self._cpu_before = (0.0, 0.0)

    def start(self) -> None:
        """Begin an exchange."""
        if len(self._seconds) == 1:
            self._cpu_before = self._cpu_s()
        self._started_s = time.perf_counter()

    def stop(self) -> None:
        """End it."""
        self._seconds.append(time.perf_counter() - self._started_s)

    def report(self) -> dict[str, Any]:
        """Return the times of the exchanges in seconds, processor seconds per exchange, and the server's peak memory.

        Call it while the clients still run.
        """
        counted = max(len(self._seconds) - 1, 1)
        server_s, clients_s = (now - before for now, before in zip(self._cpu_s(), self._cpu_before, strict=True))
        return {
            "seconds": self._seconds,
            "server_cpu_s": server_s / counted,
            "client_cpu_s": clients_s / counted,
            "server_peak_bytes": peak_memory_bytes(),
        }

    def _cpu_s(self) -> tuple[float, float]:
        return time.process_time(), sum(map(_cpu_s_of, self._clients))


def peak_memory_bytes() -> int:
    """Return the most resident memory this process ever had, the interpreter and its libraries included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the parent had when it forked
        peak = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(peak.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _cpu_s_of(process: int) -> float:
    """Return the processor seconds of another process, of user and system; 0 where /proc does not say."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = fields[11:13]
    return (int(user) + int(system)) / CLOCK_TICKS
