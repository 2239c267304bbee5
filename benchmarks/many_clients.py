"""Measure what one server spends on many live clients.

    python benchmarks/many_clients.py [--clients 10 100 500 1000 2000] [--exchanges 100] [--save FILE]

Every row is one server process and light client processes that hold several hundred agents each. The agents are
those of `feddkd client`, each with its own connection over loopback and its own stream; nobody trains: a client adds
a constant to each element of a small model. The reduced model of every exchange is checked to the bit. All processes
share one machine, so the time of an exchange is that of server and clients together; the processor time is the
server's own. The first exchanges are warm-up and are not counted. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.bench.environment import check_idle, environment
from feddkd.bench.transport import STEP, EchoWorker
from feddkd.bench.workload import peak_memory_bytes
from feddkd.cli.options import check_can_save, save_text
from feddkd.client.membership import Membership
from feddkd.client.process import take_part
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, Exchange, ExchangeId, Outcome
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.options import allow_connections

CLIENTS = (10, 100, 500, 1000, 2000)
EXCHANGES = 100
WARM_UP = 2
ELEMENTS = 1000
HOSTED = 250
"""Agents of one client process."""

PATIENCE_S = 300.0
SETTLE_S = 2.0
"""Seconds after the last join before the memory of idle clients is read."""

KIB = 1 << 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What one server process measures.

    Attributes:
        clients: live clients.
        exchanges: counted exchanges, after the warm-up.
        elements: float32 elements of the model.
        hosted: most agents of one client process.
    """

    clients: int
    exchanges: int
    elements: int = ELEMENTS
    hosted: int = HOSTED

    @property
    def schema(self) -> Schema:
        """Return the model."""
        return Schema([TensorSpec("weight", torch.float32, (self.elements,))])

    @property
    def arguments(self) -> list[str]:
        """The plan as options of a process."""
        numbers = {"clients": self.clients, "exchanges": self.exchanges, "elements": self.elements, "hosted": self.hosted}
        return [text for name, number in numbers.items() for text in (f"--{name}", str(number))]


# The server.


def serve(plan: Plan) -> dict[str, Any]:
    """Run the exchanges in this process and return one row of the result.

    Raises:
        RuntimeError: an exchange did not have its outcome, or a client process failed.
    """
    engine = GrpcEngine(Config(), "benchmark", plan.schema)
    port = engine.start("127.0.0.1", 0)
    process = psutil.Process()
    gc.collect()
    empty_bytes = process.memory_info().rss
    hosts: list[subprocess.Popen[str]] = []
    try:
        for first in range(0, plan.clients, plan.hosted):
            hosts.append(_start_host(plan, f"127.0.0.1:{port}", first))
            _wait_for(engine, min(first + plan.hosted, plan.clients))  # the next process then loads its code alone
        time.sleep(SETTLE_S)
        idle_bytes = process.memory_info().rss
        seconds, cpu_s, wire_bytes, missing = _exchange(engine, plan)
    finally:
        engine.finish(completed=True, reason="all exchanges are done")
        said = [json.loads(host.communicate(timeout=PATIENCE_S)[0] or "{}") for host in hosts]
    if any(host.returncode for host in hosts):
        raise RuntimeError("a client process failed")
    rounds = plan.exchanges * plan.clients
    return {
        "clients": plan.clients,
        "exchanges": plan.exchanges,
        "model_bytes": plan.schema.size_bytes,
        "median_s": round(statistics.median(seconds), 5),
        "quartiles_s": [round(quartile, 5) for quartile in statistics.quantiles(seconds, n=4)[::2]],
        "slowest_s": round(max(seconds), 5),
        "server_cpu_ms": round(1e3 * cpu_s / rounds, 4),
        "idle_kib": round((idle_bytes - empty_bytes) / KIB / plan.clients, 1),
        "server_peak_bytes": peak_memory_bytes(),
        "wire_bytes": wire_bytes,
        "errors": missing + sum(host["rejoins"] + host["warnings"] for host in said),
    }


def _wait_for(engine: GrpcEngine, clients: int) -> None:
    if not engine.wait_for_clients(clients, PATIENCE_S):
        raise RuntimeError(f"{len(engine.clients())} of {clients} clients connected within {PATIENCE_S:g} s")


def _start_host(plan: Plan, address: str, first: int) -> subprocess.Popen[str]:
    count = min(plan.hosted, plan.clients - first)
    options = ["--server", address, "--first", str(first), "--count", str(count)]
    return subprocess.Popen([sys.executable, __file__, "host", *plan.arguments, *options], stdout=subprocess.PIPE, text=True)


def _exchange(engine: GrpcEngine, plan: Plan) -> tuple[list[float], float, int, int]:
    """Return the seconds of each exchange, the processor seconds of all, the wire bytes of the last, and who was missing."""
    model, seconds, missing, wire_bytes, before_s = Tensors(plan.schema), [], 0, 0, 0.0
    for number in range(1, WARM_UP + plan.exchanges + 1):
        if number == WARM_UP + 1:
            before_s = time.process_time()
        started_s = time.perf_counter()
        outcome = engine.carry_out(_numbered(number, engine, model))
        if number > WARM_UP:
            seconds.append(time.perf_counter() - started_s)
        missing += plan.clients - len(outcome.replies)
        wire_bytes = outcome.traffic.wire_bytes
        model = _checked(outcome, model, plan)
    return seconds, time.process_time() - before_s, wire_bytes, missing


def _numbered(number: int, engine: GrpcEngine, model: Tensors) -> Exchange:
    clients = dict.fromkeys(engine.clients(), 1.0)
    return Exchange(
        id=ExchangeId("benchmark", number, 0, "echo", 0),
        clients=clients,
        payload=model,
        reply_schema=model.schema,
        rule=WeightedMean(),
        closing=Closing(PATIENCE_S, enough=len(clients)),
    )


def _checked(outcome: Outcome, model: Tensors, plan: Plan) -> Tensors:
    """Return the reduced model. Raises RuntimeError if it is not what the clients' constants make of the one before."""
    if outcome.reduced is None:
        raise RuntimeError(f"an exchange has no outcome: {outcome.fault}")
    (segment,) = plan.schema.segments
    found, expected = outcome.reduced.elements(segment), model.elements(segment) + STEP
    if len(outcome.replies) == plan.clients and not torch.equal(found, expected):
        raise RuntimeError(f"the mean is {float(found[0])}, not {float(expected[0])}")
    return outcome.reduced


# The clients.


class WarningCount(logging.Handler):
    """Counts the warnings of the agents: failures, and replies that did not count."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        print(self.format(record), file=sys.stderr)


def host(plan: Plan, address: str, first: int, count: int) -> dict[str, int]:
    """Take part as `count` clients until the farewell; return how often they joined again, and their warnings."""
    torch.set_num_threads(1)
    warnings = WarningCount()
    joins: list[str] = []  # a run's id for each
    logging.getLogger().addHandler(warnings)
    names = [f"client-{number:05d}" for number in range(first, first + count)]
    workers = {name: EchoWorker(plan.schema, 0) for name in names}
    memberships = {name: Membership(on_joined=joins.append) for name in names}
    take_part(address, workers, retry_for_s=PATIENCE_S, memberships=memberships)
    return {"rejoins": len(joins) - count, "warnings": warnings.count}


# The command.


def measure(plans: Sequence[Plan]) -> Iterator[dict[str, Any]]:
    """Measure each plan in a server process of its own, one after another. Raises CalledProcessError."""
    for plan in plans:
        command = [sys.executable, __file__, "serve", *plan.arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row: dict[str, Any] = json.loads(done.stdout)
        yield row


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Show one line for each number of clients."""
    titles = ("clients", "exchange", "quartiles", "slowest", "server CPU a client", "memory a client", "errors")
    table = Table(*titles)
    for row in rows:
        low, high = row["quartiles_s"]
        times = f"{1e3 * row['median_s']:.1f} ms", f"{1e3 * low:.1f} to {1e3 * high:.1f}", f"{1e3 * row['slowest_s']:.1f} ms"
        costs = f"{row['server_cpu_ms']:.3f} ms", f"{row['idle_kib']:.0f} KiB"
        table.add_row(f"{row['clients']:,}", *times, *costs, str(row["errors"]))
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", nargs="?", choices=["serve", "host"], help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS), help="live clients, one row each")
    parser.add_argument("--exchanges", type=int, default=EXCHANGES, help="counted exchanges of each row")
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="float32 elements of the model")
    parser.add_argument("--hosted", type=int, default=HOSTED, help="most agents of one client process")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the result as JSON; refused on a busy machine")
    parser.add_argument("--busy", action="store_true", help="save it all the same, with the machine's load")
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print one row for each number of clients."""
    options = _options()
    plans = [Plan(clients, options.exchanges, options.elements, options.hosted) for clients in options.clients]
    if options.role == "serve":
        print(json.dumps(serve(plans[0])))
        return
    if options.role == "host":
        print(json.dumps(host(plans[0], options.server, options.first, options.count)))
        return
    check_can_save(options.save)
    if options.save is not None and not options.busy:
        check_idle()
    allow_connections()  # for the client processes, which inherit it
    origin = {"command": shlex.join(["python", "benchmarks/many_clients.py", *sys.argv[1:]]), **environment()}
    rows = list(measure(plans))
    Console(width=120).print(table_of(rows))
    if options.save is not None:
        facts = {**origin, "warm_up": WARM_UP, "clients_of_a_process": options.hosted}
        save_text(json.dumps({**facts, "results": rows}, indent=1) + "\n", options.save)


if __name__ == "__main__":
    main()
