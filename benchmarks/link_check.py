"""Check the estimate of `feddkd report --uplink --downlink --rtt` against real runs through throttled lines.

    python benchmarks/link_check.py [--clients 3] [--rounds 3] [-o KEY=VALUE] [--namespaces] [--save FILE]

Each run is a `feddkd server` and one `feddkd client` process for each client. The first run has nothing in between:
its record is what the estimate is made from. Then the same federation runs again for each setting, with a line of
its own between each client and the server: a TCP proxy that limits the rate and delays, or, with `--namespaces`
(root, Linux), a network namespace whose virtual cable `tc tbf` limits. What is compared is the time that the rounds
took, without start-up, the first round, in which processes still load code, and the final delivery.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from namespaces import cabled

from feddkd.bench.environment import environment
from feddkd.bench.peers import free_port
from feddkd.bench.throttle import LOOPBACK, throttled
from feddkd.cli.options import check_can_save, save_text
from feddkd.config import Config
from feddkd.exchange import DELIVER
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link, Parts, parts_by_round

HERE = Path(__file__).resolve().parent
MBIT = 1e6
PATIENCE_S = 300.0
RETRY_FOR_S = 30.0
TOLERANCE = 0.15
WARM_UP_ROUNDS = 1

SETTINGS = {
    "slow uplink": Link(4 * MBIT, 50 * MBIT, 0.02),
    "slow both ways": Link(5 * MBIT, 5 * MBIT, 0.02),
    "long round trip": Link(50 * MBIT, 50 * MBIT, 0.3),
}

CABLES = {"slow uplink": Link(4 * MBIT, 50 * MBIT, 0.0), "slow both ways": Link(5 * MBIT, 5 * MBIT, 0.0)}
"""The same with `tc tbf`, which limits and does not delay."""

OVERRIDES = (
    *("model.name=link_check:wide_mlp", "partition.name=iid", "data.subset=300", "data.holdout=0", "data.test_set=false"),
    *("training.epochs=1", "dkd.steps=3"),
)


def wide_mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network of half a megabyte that computes in next to no time."""
    assert input_shape == (1, 8, 8)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, num_classes))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, and how clients reach the server from there.

    Attributes:
        command: what stands before a command to run it there.
        server: HOST:PORT as it is seen from there.
    """

    command: Sequence[str]
    server: str


@contextmanager
def places(link: Link | None, clients: int, port: int, *, namespaces: bool) -> Iterator[list[Place]]:
    """The place of the server, and then that of each client, on lines of the given kind; None for no line at all."""
    local = Place((), f"{LOOPBACK}:{port}")
    if link is None:
        yield [local] * (clients + 1)
    elif namespaces:
        with cabled(link, clients) as found:
            yield [Place(command, f"{address}:{port}") for command, address in found]
    else:
        with throttled(local.server, [link] * clients) as addresses:
            yield [local, *(Place((), address) for address in addresses)]


def run(config: Config, link: Link | None, *, namespaces: bool) -> RunFolder:
    """Run the federation over lines of the given kind, and read its record.

    Raises:
        subprocess.CalledProcessError: a process failed; what it said is on standard error.
    """
    clients = config.partition.clients
    with tempfile.TemporaryDirectory() as folder, places(link, clients, free_port(), namespaces=namespaces) as found:
        home = Path(folder)
        (home / "config.toml").write_text(config.to_toml())
        feddkd = [sys.executable, "-m", "feddkd"]
        listen = ["--listen", found[0].server, "--state", str(home / "server"), "--out", str(home / "out"), "--no-report", "--insecure"]
        commands = []
        for index, place in enumerate(found[1:]):
            own = ["--id", f"client-{index}", "--state", str(home / f"client-{index}"), "--partition-index", str(index), "--insecure"]
            own += ["--retry-for", f"{RETRY_FOR_S:g}", "-o", f"model.name={config.model.name}"]
            commands.append([*place.command, *feddkd, "client", "--server", place.server, *own])
        _run_all([*commands, [*found[0].command, *feddkd, "server", str(home / "config.toml"), *listen]])
        return RunFolder.load(home / "out")


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run processes side by side to their end; the first ones give up where the others fail."""
    search = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    with tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(command, env=env, stdout=said, stderr=said)) for command in commands]
        try:
            for process, command in zip(processes, commands, strict=True):
                if process.wait(PATIENCE_S):
                    raise subprocess.CalledProcessError(process.returncode, command)
        except BaseException:
            for process in processes:
                process.kill()
            said.seek(0)
            sys.stderr.buffer.write(said.read())
            raise


def measured_s(record: RunFolder) -> float:
    """Seconds of the rounds after the first; the final delivery is in none of them."""
    return sum(line.seconds for line in record.rounds[WARM_UP_ROUNDS:])


def estimate(record: RunFolder, link: Link) -> Parts:
    """What the rounds of a record would take; without the final delivery, which a round's clock does not see either."""
    exchanges = [line for line in record.exchanges if line.exchange != DELIVER]
    rounds = parts_by_round(RunFolder(record.path, record.config, record.rounds, exchanges, record.summary, record.partition), link)
    assert rounds is not None
    return sum(list(rounds.values())[WARM_UP_ROUNDS:], Parts())


def check(config: Config, *, namespaces: bool) -> Iterator[dict[str, Any]]:
    """Run each setting and compare; the record of a run without lines comes first and is what is estimated from."""
    local = run(config, None, namespaces=namespaces)
    for name, link in (CABLES if namespaces else SETTINGS).items():
        parts = estimate(local, link)
        real = run(config, link, namespaces=namespaces)
        yield {
            "setting": name,
            "line": str(link),
            "through": "tc tbf" if namespaces else "proxy",
            "local_s": round(measured_s(local), 3),
            "estimated_s": round(parts.total, 3),
            "measured_s": round(measured_s(real), 3),
            "estimated_over_measured": round(parts.total / measured_s(real), 4),
            "parts_s": {part: round(getattr(parts, part), 3) for part in ("trips", "down", "compute", "up", "server")},
            "measured_exchanges_s": [round(line.seconds, 3) for line in real.exchanges],
        }


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Estimated against measured seconds of each setting, and what the estimate is made of."""
    table = Table("setting", "estimated", "measured", "ratio", "trips", "down", "compute", "up", "server")
    for row in rows:
        numbers = f"{row['estimated_s']:.2f} s", f"{row['measured_s']:.2f} s", f"{row['estimated_over_measured']:.3f}"
        table.add_row(row["setting"], *numbers, *(f"{seconds:.2f}" for seconds in row["parts_s"].values()))
    return table


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="override a key of the configuration")
    parser.add_argument("--namespaces", action="store_true", help="network namespaces and tc in place of the proxy; needs root")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the result as JSON")
    options = parser.parse_args()
    check_can_save(options.save)
    if options.rounds <= WARM_UP_ROUNDS:
        parser.error(f"--rounds {options.rounds}: the first is not counted, so it takes two")
    sizes = (f"partition.clients={options.clients}", f"scheduler.clients={options.clients}", f"rounds={options.rounds}")
    config = Config.load(overrides=[*OVERRIDES, *sizes, *options.override])
    origin = {"command": shlex.join(["python", "benchmarks/link_check.py", *sys.argv[1:]]), **environment()}
    console, rows = Console(width=100), []
    for row in check(config, namespaces=options.namespaces):
        rows.append(row)
        console.print(f"{row['setting']}: {row['line']}, through {row['through']}", highlight=False)
    console.print(table_of(rows))
    if options.save is not None:
        save_text(json.dumps({**origin, "tolerance": TOLERANCE, "results": rows}, indent=2) + "\n", options.save)
    return 0 if all(abs(row["estimated_over_measured"] - 1) <= TOLERANCE for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
