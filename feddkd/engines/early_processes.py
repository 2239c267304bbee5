"""Starts client processes before it is known what they shall do: importing torch is most of a short run's start."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

COMMAND = (sys.executable, "-m", "feddkd.client.process")


class EarlyProcesses:
    """Client processes that import what they need, and wait to be told their arguments.

    A process that is not told anything ends when this one does.

    Attributes:
        threads: for numerical work, of each process.
    """

    def __init__(self, count: int = 0, threads: int = 1) -> None:
        """Start `count` processes now."""
        self.threads = threads
        self._waiting = [_started(threads) for _ in range(count)]

    def take(self, arguments: Sequence[str], threads: int) -> subprocess.Popen[bytes]:
        """Tell a process its command line; one that waits, or a new one where none with so many threads does.

        Returns:
            The process, with pipes: it ends with its standard input, and prints on its standard error.
        """
        process = self._waiting.pop(0) if self._waiting and threads == self.threads else _started(threads)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(list(arguments)).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:  # it has ended already, which its exit code tells
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        return process

    def close(self) -> None:
        """End the processes that nobody took."""
        for process in self._waiting:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stderr):
                assert pipe is not None
                pipe.close()
        self._waiting = []


@contextlib.contextmanager
def early_processes(count: int, threads: int) -> Iterator[EarlyProcesses]:
    """Start processes, and end those that nobody took when the context ends."""
    processes = EarlyProcesses(count, threads)
    try:
        yield processes
    finally:
        processes.close()


def _started(threads: int) -> subprocess.Popen[bytes]:
    # One thread pool a process: clients compute one at a time, so more OpenMP threads would only fight for cores.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    # They import what this process can: a script's folder is on its path, and not on that of `python -m`.
    environment["PYTHONPATH"] = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return subprocess.Popen(
        [*COMMAND, "--told-by-stdin"],
        env=environment,
        stdin=subprocess.PIPE,  # after its arguments nothing is written: it ends when this process does
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a signal to the whole group of this process is for this one, which says farewell
    )
