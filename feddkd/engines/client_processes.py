"""The processes of a simulation that host its clients over gRPC."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from feddkd.config import Config
from feddkd.data.partitions import client_ids
from feddkd.engines.early_processes import EarlyProcesses
from feddkd.engines.grpc import GrpcEngine

logger = logging.getLogger(__name__)


class ClientProcesses:
    """The processes that host the clients of a simulation; if too few of them are left, the run is aborted."""

    EXIT_TIMEOUT_S = 10.0
    OUTPUT_TIMEOUT_S = 1.0

    def __init__(
        self, config: Config, address: str, config_file: Path, state: Path, engine: GrpcEngine, early: EarlyProcesses | None = None
    ) -> None:
        """Deal the clients to processes, and tell these to take part.

        Args:
            early: processes that were started before; None for none.
        """
        clients = range(len(client_ids(config.partition.clients)))
        count = min(config.runtime.client_processes or os.cpu_count() or 1, len(clients))
        arguments = [str(config_file), "--server", address, "--state", str(state), "--end-with-stdin", "--clients"]
        early = early or EarlyProcesses()
        self.processes = [
            early.take([*arguments, *(str(client) for client in clients[first::count])], config.runtime.threads) for first in range(count)
        ]
        early.close()
        self._engine = engine
        self._num_clients = len(clients)
        self._quorum = config.scheduler.quorum
        self._clients_of = {process.pid: len(clients[first::count]) for first, process in enumerate(self.processes)}
        self.stopping = False
        self._watchers = [self._start(self._watch, process) for process in self.processes]
        self._printers = [self._start(self._pass_on, process) for process in self.processes]

    @staticmethod
    def _start(target: Callable[[subprocess.Popen[bytes]], None], process: subprocess.Popen[bytes]) -> threading.Thread:
        thread = threading.Thread(target=target, args=(process,), daemon=True)
        thread.start()
        return thread

    def _pass_on(self, process: subprocess.Popen[bytes]) -> None:
        """Print what a process says on standard error through this one's, which may have a live progress bar below it."""
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                with contextlib.suppress(OSError, ValueError):  # it is gone, or closed
                    print(line.decode(errors="replace"), end="", file=sys.stderr, flush=True)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """A run can go on without clients that it does not insist on, but not begin without them: they do not come back."""
        code = process.wait()
        if self.stopping or code == 0:  # it has heard the farewell
            return
        logger.warning("client process %d ended with exit code %d", process.pid, code)
        if self._engine.num_joined < self._num_clients:
            self._engine.abort(f"a client process ended with exit code {code} before its clients had joined")
            return
        left = sum(self._clients_of[other.pid] for other in self.processes if other.poll() is None)
        if left < self._quorum:
            self._engine.abort(f"a client process ended with exit code {code}: {left} clients are left, {self._quorum} are needed")

    def wait(self) -> None:
        """Wait for the processes to end after the farewell; those that do not, or have heard of no server, are killed."""
        self.stopping = True
        if self._engine.num_joined < self._num_clients:
            for process in self.processes:
                process.kill()
        for process in self.processes:
            try:
                process.wait(self.EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        for watcher in self._watchers:
            watcher.join()
        for printer in self._printers:
            # Whatever the user's code started in a client holds standard error too, and may outlive the client.
            printer.join(self.OUTPUT_TIMEOUT_S)
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
