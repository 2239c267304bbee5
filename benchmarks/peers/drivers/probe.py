"""Measures a run of exchanges from inside a server, the same way for every system.

It uses the standard library alone, because it runs in the virtual environment of each peer. A server calls `start`
and `stop` around each exchange. The first exchange is warm-up. Processor time, bytes on the wire and memory are read
after the warm-up and after the last exchange, outside of the timed part. Linux only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

RUN = "FEDDKD_PEERS_RUN"
"""Environment variable that all processes of a run have: one JSON object, the arguments of `Probe`."""

TICKS = os.sysconf("SC_CLK_TCK")


class Probe:
    """Times exchanges, and reads what the processes of the run used for them."""

    def __init__(self, run: str | None = None) -> None:
        """Read the run's settings, by default from the environment.

        Raises:
            KeyError: this process is not part of a run.
        """
        run = run or os.environ[RUN]
        settings: dict[str, Any] = json.loads(run)
        self._tag = run.encode()
        self._rounds = int(settings["rounds"])
        self.wire = Wire(int(settings["port"]), Path(settings["wire"]))
        self._roles = {role: re.compile(settings[role]) for role in ("server", "client")}
        self._out = Path(settings["out"])
        self._spans: list[tuple[float, float]] = []
        self._started_s = 0.0
        self._before: dict[str, Any] = {}

    def start(self) -> None:
        """Begin an exchange."""
        if len(self._spans) == 1 and not self._before:
            self._before = self._used()
        self._started_s = time.perf_counter()

    def stop(self) -> None:
        """End it; after the last one write what was measured."""
        self._spans.append((self._started_s, time.perf_counter()))
        if len(self._spans) == self._rounds:
            self._write(self._used())

    def _write(self, after: dict[str, Any]) -> None:
        counted = self._rounds - 1
        spent = {
            name: (after[name] - self._before[name]) / counted
            for name in ("server_cpu_s", "client_cpu_s", "wire_bytes_down", "wire_bytes_up")
        }
        report = {"spans": self._spans, **spent, "server_peak_bytes": after["server_peak_bytes"]}
        part = self._out.with_suffix(".part")
        part.write_text(json.dumps(report), encoding="utf-8")
        part.rename(self._out)

    def _used(self) -> dict[str, Any]:
        """Read what the run's processes have used so far."""
        pids = self.processes()
        self.wire.read(pids["client"])
        return {
            "server_cpu_s": sum(map(cpu_s, pids["server"])),
            "client_cpu_s": sum(map(cpu_s, pids["client"])),
            "wire_bytes_down": self.wire.down,
            "wire_bytes_up": self.wire.up,
            "server_peak_bytes": sum(map(peak_bytes, pids["server"])),
        }

    def processes(self) -> dict[str, list[int]]:
        """Find the server's and the clients' processes of this run by what the environment and the command line say."""
        found: dict[str, list[int]] = {role: [] for role in self._roles}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._tag not in (folder / "environ").read_bytes():
                    continue
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended
                continue
            for role, pattern in self._roles.items():
                if pattern.search(command):
                    found[role].append(int(folder.name))
                    break
        return found


class Wire:
    """The bytes that clients have received and sent over TCP connections to a port, without the headers of TCP.

    The kernel counts them at the client's end, so that nothing on the loopback interface counts twice, and what
    processes of the server exchange among themselves does not count. What it counted of a connection is gone when that
    closes, so what was seen last of each is kept in a file, which the program that started the run updates every second.
    """

    def __init__(self, port: int, file: Path) -> None:
        self._port = port
        self._file = file
        self._seen: dict[str, list[int]] = {}

    @property
    def down(self) -> int:
        return sum(received for received, _ in self._seen.values())

    @property
    def up(self) -> int:
        return sum(sent for _, sent in self._seen.values())

    def read(self, clients: list[int]) -> None:
        """Read the counters of the connections that these processes have open."""
        if self._file.exists():
            self._seen |= json.loads(self._file.read_text(encoding="utf-8"))
        command = ["ss", "-tinpHO", f"dport = :{self._port}"]
        pids = [f"pid={pid}," for pid in clients]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            if any(pid in line for pid in pids):
                self._seen[line.split()[3]] = [_number(name, line) for name in ("bytes_received", "bytes_sent")]

    def write(self) -> None:
        """Write what was seen of all connections."""
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._seen), encoding="utf-8")
        part.rename(self._file)


def _number(name: str, line: str) -> int:
    """The number after a name in a line of `ss`; 0 where it is not there, as for a connection that has sent nothing."""
    match = re.search(rf"\b{name}:(\d+)", line)
    return int(match[1]) if match else 0


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and of those of its children that have ended; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS


def peak_bytes(pid: int) -> int:
    """Return the most resident memory that a process ever had; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(match[1]) if match else 0
