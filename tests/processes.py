"""A `feddkd` command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from forking import CONTEXT
from witness import watch

import feddkd
from feddkd import cli
from feddkd.failpoints import planned

PATIENCE_S = 100.0
"""Seconds after which what has not ended counts as stuck (invariant 8)."""


class StuckError(AssertionError):
    """A process did not end, or ended as it should not."""


class Process:
    """A command, forked from a process that has imported feddkd already.

    Attributes:
        name: "server", or the client's id.
        log: the file that its standard error goes to, NAME.log.
        history: what it sees, NAME.history.
    """

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, failpoints: str = "", *, visits: bool = False) -> None:
        """Start `feddkd ARGUMENTS` in `folder`; `visits` says whether its history also has the failpoints that it comes to."""
        self.name = name
        self.log = folder / f"{name}.log"
        self.history = folder / f"{name}.history"
        self._lock = threading.Lock()
        self._process = CONTEXT.Process(target=_feddkd, args=(list(arguments), folder, self.log, self.history, failpoints, visits))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """A descriptor that is ready to be read once the process has ended."""
        return self._process.sentinel

    @property
    def exit_code(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it runs."""
        with self._lock:  # two threads that ask at once would both read the one message that says it
            return self._process.exitcode

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.join(PATIENCE_S)

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended, or so long."""
        wait([self.sentinel], timeout_s)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Return the exit code, once it has one. Raises StuckError after `timeout_s`."""
        self.join(timeout_s)
        if self.exit_code is None:
            raise StuckError(f"{self.name} still runs after {timeout_s:g} s\n{self.log.read_text()}")
        return self.exit_code


class SpawnedProcess(Process):
    """A command started from nothing, as a shell does it: slower, but with an environment of its own. Has no history."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.history = folder / f"{name}.history"
        with self.log.open("a") as log:
            command = [sys.executable, "-m", "feddkd", *arguments]
            path = {"PYTHONPATH": str(Path(feddkd.__file__).parents[1])}
            self._popen = subprocess.Popen(command, cwd=folder, env={**os.environ, **path, **environment}, stdout=log, stderr=log)
        self._sentinel = os.pidfd_open(self._popen.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def sentinel(self) -> int:
        return self._sentinel

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()


def _feddkd(arguments: list[str], folder: Path, log: Path, history: Path, failpoints: str, visits: bool) -> None:
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    watch(history, visits=visits)
    sys.argv = ["feddkd", *arguments]
    with planned(failpoints):
        cli.main()
