"""Starts the processes of a run, waits for its report, and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from feddkd.errors import RunError
from peers.drivers.probe import RUN, Probe
from peers.systems import DRIVERS, Command, Run, System

PAUSE_S = 0.02
WATCH_S = 1.0
"""Between two readings of the counters; HTTP clients close a connection that has been idle for five seconds."""

ENDING_S = 5.0

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of all processes: one thread for arithmetic, and no telemetry."""


def report_of(system: System, run: Run, timeout_s: float) -> dict[str, Any]:
    """Run a system once and return what its probe measured.

    Raises:
        RunError: a process failed, or there is no report in time; the message has the ends of the logs.
    """
    out = run.folder / "report.json"
    tag = json.dumps(
        {
            "out": str(out),
            "port": run.port,
            "wire": str(run.folder / "wire.json"),
            "rounds": run.workload.rounds,
            "server": system.server.format(port=run.port),
            "client": system.client,
        }
    )
    environment = os.environ | ENVIRONMENT | {RUN: tag, "PATH": f"{run.scripts}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(DRIVERS), os.environ.get("PYTHONPATH") if system.environment is None else None])
    )
    processes: list[subprocess.Popen[bytes]] = []
    deadline = time.monotonic() + timeout_s
    try:
        for number, command in enumerate(system.commands(run)):
            processes.append(_start(command, environment, run.folder / f"{number}.log"))
            if command.opens_port:
                _wait_for(lambda: _listens(run.port), processes, run.folder, deadline)
        with _watching(Probe(tag)):
            _wait_for(out.exists, processes, run.folder, deadline)
    finally:
        end_all(tag, processes)
    report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return report


@contextlib.contextmanager
def _watching(probe: Probe) -> Iterator[None]:
    """Read the counters of connections in a thread, so that those of a connection that closes are not lost."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            probe.wire.read(probe.processes()["client"])
            probe.wire.write()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _start(command: Command, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        arguments = [str(argument) for argument in command.arguments]
        return subprocess.Popen(
            arguments,
            env=environment | command.environment,
            cwd=command.folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def _wait_for(happened: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], folder: Path, deadline: float) -> None:
    """Wait until something has happened.

    Raises:
        RunError: it did not in time, or a process has failed before.
    """
    while not happened():
        failed = [process for process in processes if process.poll() not in (None, 0)]
        ended = all(process.poll() is not None for process in processes)
        if (failed or ended or time.monotonic() > deadline) and not happened():
            what = f"exit code {failed[0].returncode}" if failed else "no report" if ended else "no report in time"
            raise RunError(f"{what}: {log_ends(folder)}")
        time.sleep(PAUSE_S)


def log_ends(folder: Path, characters: int = 600) -> str:
    """The ends of the logs that say something, the first process's first."""
    ends = {log.name: log.read_text(encoding="utf-8", errors="replace").strip()[-characters:] for log in sorted(folder.glob("*.log"))}
    return "\n".join(f"{name}: {end}" for name, end in ends.items() if end)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end_all(tag: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End all processes of a run, also those that its processes have started and left behind."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + ENDING_S
        for pid in tagged(tag):
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        while tagged(tag) and time.monotonic() < deadline:
            for process in processes:
                process.poll()
            time.sleep(PAUSE_S)
    for process in processes:
        process.wait()


def tagged(tag: str) -> list[int]:
    """The processes that carry a run's settings in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if tag.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found
