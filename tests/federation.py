"""A federation of processes: `feddkd server` and `feddkd client`, as a user starts them, and killed as a user never would.

    with Federation(folder, CONFIGS["feddkd"]) as federation:
        federation.run({SERVER: "journal.append.before_fsync=kill@3"})
    check(federation, undisturbed("feddkd"))

A process that was killed is started again with the same command, without its failpoints.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from processes import PATIENCE_S, Process, StuckError
from run_history import RunHistory, differences, record_folder, violations

from feddkd.cli.replay import replayed
from feddkd.config import Config
from feddkd.engines.simulation import LOOPBACK
from feddkd.observability.run_folder import EXCHANGES

SERVER = "server"
"""The name of the server's process; the others are named as the clients."""

FAREWELL_S = 1.0
"""Seconds after a server's end by which its clients have ended too, unless they were killed at a bad moment."""

LINGER_S = 15
"""Seconds that the server of a finished run then stays for these: longer than a client waits between two tries."""

SMALL = (
    "rounds=2",
    "data.subset=300",
    "training.epochs=1",
    "dkd.steps=3",
    "scheduler.clients=3",
    "scheduler.reconnect_grace_s=20",
    "runtime.threads=1",
    "transport.chunk_bytes=4096",
)

CONFIGS: Mapping[str, Sequence[str]] = {
    "fedavg": (*SMALL, "algorithm.name=fedavg"),
    "feddkd": SMALL,
    "frugal": (*SMALL, "communication.preset=frugal", "dkd.batch_size=32"),
    "scaffold": (*SMALL, "rounds=3", "algorithm.name=scaffold"),
    "topk": (*SMALL, "rounds=3", "communication.up=topk:0.05"),
}
"""The tiny federations that every fault is tried on, as overrides of the default configuration; a model is nine chunks."""


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


class Federation:
    """The processes of one run, and the folder with all that they leave behind.

    Attributes:
        folder: holds the configuration, the state directories, the logs and the clients' histories.
        port: where the server listens.
        names: the clients' ids.
        processes: those that were started last, by name.
        starts: how often each was started.
        tolerated: exit codes after which a process is started again.
    """

    def __init__(self, folder: Path, overrides: Sequence[str], *, clients: int = 3, visits: bool = False) -> None:
        """Write the configuration; `visits` lets the histories say which failpoints the processes come to."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Of a simulation's tables only the partition matters: `feddkd client` deals the data by it.
        config = Config.load(overrides=[f"partition.clients={clients}", "partition.labels=4", *overrides])
        (folder / "config.toml").write_text(config.to_toml())
        self.port = free_port()
        self.names = [f"client-{index}" for index in range(clients)]
        self.processes: dict[str, Process] = {}
        self.starts = dict.fromkeys([SERVER, *self.names], 0)
        self.tolerated = {-signal.SIGKILL}
        self._visits = visits
        self._lingering: list[str] = []
        self._addresses: dict[str, str] = {}
        self._failpoints: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def state(self) -> Path:
        """The server's state directory."""
        return self.folder / "server-state"

    def client_state(self, name: str) -> Path:
        return self.folder / f"state-{name}"

    def reach_server_at(self, name: str, address: str) -> None:
        """Let a client connect to this address instead of the server's."""
        self._addresses[name] = address

    def start(self, failpoints: Mapping[str, str | Sequence[str]] = {}) -> None:
        """Start all processes.

        Args:
            failpoints: by the process's name; several for its first starts one after another.
        """
        for name, texts in failpoints.items():
            self.plan(name, *([texts] if isinstance(texts, str) else texts))
        for name in (SERVER, *self.names):
            self.restart(name)

    def plan(self, name: str, *failpoints: str) -> None:
        """Let the next starts of a process have these failpoints."""
        self._failpoints[name] = [*failpoints]

    def restart(self, name: str) -> Process:
        """Start a process with the command of before, and with the failpoints that are planned for this start."""
        planned = self._failpoints.get(name)
        process = Process(name, self.command(name), self.folder, planned.pop(0) if planned else "", visits=self._visits)
        self.put(process)
        return process

    def run(self, failpoints: Mapping[str, str | Sequence[str]] = {}) -> None:
        """Start all processes, and return once the run is over for all of them. Raises StuckError."""
        self.start(failpoints)
        self.finish()

    def command(self, name: str) -> list[str]:
        """The arguments of a process's command."""
        if name == SERVER:
            return ["-v", "server", "config.toml", "--listen", self.address, "--state", str(self.state), "--no-report", *self._lingering]
        place = ["--server", self._addresses.get(name, self.address), "--state", str(self.client_state(name))]
        return ["-v", "client", "--id", name, "--partition-index", str(self.names.index(name)), *place]

    def put(self, process: Process) -> None:
        """Take in a process that was started in another way."""
        self.processes[process.name] = process
        self.starts[process.name] += 1

    def finish(self, patience_s: float = PATIENCE_S) -> None:
        """Start again whatever is killed or ends as is tolerated, until all have ended with exit code 0.

        A client that is killed when the run is over for the others finds no server. Then the server is started
        again, with `--linger`, and serves the final model.

        Raises:
            StuckError: that took too long, or a process ended in another way.
        """
        until_s = time.monotonic() + patience_s
        while running := self._running():
            is_over = self.processes[SERVER].exit_code == 0
            left_s = until_s - time.monotonic()
            if not wait([process.sentinel for process in running], min(left_s, FAREWELL_S) if is_over else left_s):
                if not is_over or left_s <= FAREWELL_S:
                    raise StuckError(f"{[process.name for process in running]} still run after {patience_s:g} s\n{self.logs()}")
                self._lingering = ["--linger", str(LINGER_S)]
                self.restart(SERVER)
            self._check_exit_codes()
            for process in running:
                if process.exit_code in self.tolerated:
                    self.restart(process.name)

    def wait_for_exchanges(self, count: int) -> None:
        """Return once the record has lines of so many exchanges. Raises StuckError."""
        self._wait(lambda: self._exchanges() >= count, f"{count} exchanges")

    def wait_for_log(self, name: str, text: str) -> None:
        """Return once a process has said something. Raises StuckError."""
        log = self.processes[name].log
        self._wait(lambda: log.exists() and text in log.read_text(), f"{text!r} of {name}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        until_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
        while not condition():
            self._check_exit_codes()
            if time.monotonic() > until_s:
                raise StuckError(f"no {what} after {PATIENCE_S:g} s\n{self.logs()}")
            pause.wait(0.005)

    def _check_exit_codes(self) -> None:
        """Raises StuckError if a process ended otherwise than well or as is tolerated."""
        for process in self.processes.values():
            if process.exit_code not in (None, 0, *self.tolerated):
                raise StuckError(f"{process.name} ended with exit code {process.exit_code}\n{self.logs()}")

    def _exchanges(self) -> int:
        with contextlib.suppress(OSError):
            return (record_folder(self.state) / EXCHANGES).read_text().count("\n")
        return 0

    def _running(self) -> list[Process]:
        """The processes that have not ended well."""
        return [process for process in self.processes.values() if process.exit_code != 0]

    def history(self) -> RunHistory:
        """What the run left behind."""
        return RunHistory.read(record_folder(self.state), {name: self.folder / f"{name}.history" for name in self.starts})

    def logs(self, names: Iterable[str] | None = None) -> str:
        """What the processes wrote to standard error."""
        logs = [self.folder / f"{name}.log" for name in names or self.starts]
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs if log.exists())


def problems_of(federation: Federation, undisturbed: RunHistory) -> list[str]:
    """Promises that the run broke, and differences of its result and its record from the run that nothing disturbed."""
    history = federation.history()
    replay = replayed(history.folder, history.folder)
    return [*violations(history), *differences(undisturbed, history), *replay.problems]


def check(federation: Federation, undisturbed: RunHistory) -> None:
    """Assert that there are no problems."""
    problems = problems_of(federation, undisturbed)
    assert not problems, "\n".join([*problems, federation.logs()])
