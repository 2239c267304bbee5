"""Measure where the processor time of a large exchange over gRPC goes.

python benchmarks/transport_profile.py [--megabytes 100] [--clients 4] [--save FILE]

This process is the server of `feddkd.bench.transport`. After two exchanges py-spy (`pip install
py-spy`) samples it and its clients. A sample counts for the innermost function on its stack that is
named in WORK, or for the library that it is in; threads that wait are left out. The result is shares
of samples. A thread that waits for a processor is sampled too, so a busy machine moves them: the load
is in the file. Linux; needs the right to trace processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from feddkd.bench.environment import check_idle, environment
from feddkd.bench.transport import serve
from feddkd.bench.workload import Workload
from feddkd.exchange import Exchange, Outcome

SAMPLES_PER_S = 200
WARM_UP = 2
"""Exchanges before the first sample: memory and files are new in them."""

SERVER, CLIENTS = "server", "clients"

WORK = {
    "payload.py:Payload._prepare": "checksums",
    "payload.py:ChunkSequence.accept": "checksums",
    "payload.py:Assembly.add": "copies out of messages",
    "payload.py:copied": "copies out of messages",
    "spool.py:Spool.align": "copies out of messages",
    "frames.py:encode_chunk": "copies into messages",
    "payload.py:check_values": "looks at values",
    "mean.py:_GuardedReduction": "reduction",
    "spool.py:_FileBlock": "file of contributions",
    "transport.py:EchoWorker": "the clients' own arithmetic",
    "stream.py:Stream.write": "gRPC",
    "stream.py:Stream.read": "gRPC",
    "grpc/": "gRPC",
    "asyncio/": "asyncio",
    "concurrent/": "asyncio",
    "threading.py": "asyncio",
}
"""What a function, or a file of a library, does."""

OTHER, UNNAMED = "the rest of feddkd", "gRPC"
WAITS = ("EpollSelector.select", "Condition.wait", "_worker (concurrent", "Popen._try_wait")
"""Innermost frames of threads that wait."""


def work_of(stack: list[str]) -> str | None:
    """Name what a stack's frames, the innermost last, do; None for a thread that waits."""
    if any(mark in stack[-1] for mark in WAITS):
        return None
    for frame in reversed(stack):
        function, _, place = frame.partition(" (")
        file = place.rpartition(":")[0]
        name = f"{file.rpartition('/')[2]}:{function}"
        for mark, work in WORK.items():
            if mark in name or (mark.endswith(("/", "threading.py")) and mark in file):
                return work
    return OTHER if any("feddkd/" in frame for frame in stack) else UNNAMED


def shares_of(lines: Iterable[str], server: int) -> dict[str, dict[str, float]]:
    """Sum the samples of py-spy's raw format; returns shares of all by process and kind of work.

    Args:
        server: process id of the server.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for line in lines:
        stack, _, samples = line.rstrip().rpartition(" ")
        processes = [frame for frame in stack.split(";") if frame.startswith("process ")]
        frames = [frame for frame in stack.split(";") if not frame.startswith("process ")]
        work = work_of(frames) if frames else None  # without a frame: a thread that starts or ends
        if work is not None:
            counts[SERVER if processes[-1].startswith(f"process {server}:") else CLIENTS, work] += int(samples)
    total = counts.total()
    shares: dict[str, dict[str, float]] = {SERVER: {}, CLIENTS: {}}
    for (where, work), found in counts.most_common():
        shares[where][work] = round(found / total, 4)
    return shares


class Sampler:
    """Starts py-spy after the exchanges of the warm-up, and stops it after the last one."""

    def __init__(self, program: str, last: int, file: Path) -> None:
        self._command = [program, "record", "--pid", str(os.getpid()), "--subprocesses", "--nonblocking"]
        self._command += ["--format", "raw", "--rate", str(SAMPLES_PER_S), "--output", str(file)]
        self._last = last
        self._sampling: subprocess.Popen[bytes] | None = None

    def exchange_done(self, exchange: Exchange, _: Outcome) -> None:
        """Take in that one exchange is over."""
        number = exchange.id.round
        if number == WARM_UP:
            self._sampling = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        if number == self._last and self._sampling is not None:
            self._sampling.send_signal(signal.SIGINT)
            if self._sampling.wait() != 0:
                sys.exit("py-spy failed: as root, or after `sysctl kernel.yama.ptrace_scope=0`, it may trace this process")


def rows_of(shares: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Name each kind of work with its shares at server, clients and both, the largest first."""
    works = {work: sum(part.get(work, 0.0) for part in shares.values()) for part in shares.values() for work in part}
    return [
        (work, *(f"{part.get(work, 0.0):.0%}" for part in shares.values()), f"{whole:.0%}")
        for work, whole in sorted(works.items(), key=lambda item: -item[1])
    ]


def table_of(shares: dict[str, dict[str, float]]) -> Table:
    """Show the shares."""
    table = Table("work", *shares, "all")
    for row in rows_of(shares):
        table.add_row(*row)
    return table


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of the model")
    parser.add_argument("--clients", type=int, default=4, help="client processes")
    parser.add_argument("--rounds", type=int, default=14, help="exchanges")
    parser.add_argument("--py-spy", default=shutil.which("py-spy"), help="the program, if it is not on PATH")
    parser.add_argument("--save", type=Path, help="write the result as JSON to this file; refused on a busy machine")
    parser.add_argument("--busy", action="store_true", help="save it all the same, with the machine's load")
    options = parser.parse_args()
    if options.py_spy is None:
        parser.error("py-spy is not there: pip install py-spy, or give --py-spy")
    if options.save is not None and not options.busy:
        check_idle()
    workload = Workload(options.clients, options.rounds, options.megabytes, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples.txt"
        report = serve(workload, Sampler(options.py_spy, options.rounds, file).exchange_done)
        with file.open(encoding="utf-8") as lines:
            shares = shares_of(lines, os.getpid())
    Console().print(table_of(shares))
    if options.save is not None:
        save(options.save, workload, shares, report)


def save(file: Path, workload: Workload, shares: dict[str, dict[str, float]], report: dict[str, Any]) -> None:
    """Write the result with where it came from."""
    document = {
        "command": shlex.join(["python", *sys.argv]),
        **environment(),
        "megabytes": workload.megabytes,
        "clients": workload.clients,
        "server_cpu_s": round(report["server_cpu_s"], 4),
        "client_cpu_s": round(report["client_cpu_s"], 4),
        "shares": shares,
    }
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
