"""How long an exchange takes when nobody computes: down to N client processes, back up, reduced.

    python -m feddkd.bench.transport server --clients 4 --rounds 8 --megabytes 100 --tensors 1

prints one JSON object. The server is this process, so that its peak memory is its own; the clients are
processes of their own. Each client adds a constant of its own to every element, because a system may
notice an unchanged model and not send it back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.client.constants import HeldConstants
from feddkd.client.process import take_part
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, ExampleCounts, Exchange, ExchangeId, Outcome, Reply, Task
from feddkd.tensors import Schema, Tensors, TensorSpec

STEP = 2.0**-10
"""Client k adds (k + 1) steps to every element: exact in float32, so the mean can be checked to the bit."""

DEADLINE_S = 120.0


@dataclass(frozen=True, slots=True)
class Workload:
    """`tensors` float32 tensors of `megabytes` MiB in all, `clients` client processes, `rounds` exchanges."""

    clients: int
    rounds: int
    megabytes: float
    tensors: int

    @property
    def schema(self) -> Schema:
        numel = max(1, int(self.megabytes * 2**20 / 4 / self.tensors))
        return Schema(TensorSpec(f"tensor{index:03d}", torch.float32, (numel,)) for index in range(self.tensors))


class EchoWorker:
    """Answers every exchange with the broadcast plus its constant."""

    counts = ExampleCounts(1)
    class_names = ()

    def __init__(self, schema: Schema, rank: int) -> None:
        self.model_schema = schema
        self.constants = HeldConstants()
        self._constant = (rank + 1) * STEP

    def broadcast_schema(self, exchange: str) -> Schema:  # one kind of exchange only
        return self.model_schema

    def carry_out(self, task: Task) -> Reply:
        for segment in self.model_schema.segments:
            task.payload.elements(segment).add_(self._constant)
        return Reply(contribution=task.payload)


Kept = Callable[[Exchange, Outcome], None]


def serve(workload: Workload, keep: Kept | None = None) -> dict[str, object]:
    """Run the exchanges and return their times in seconds, byte counts, and this process's peak memory in bytes.

    Args:
        keep: makes an outcome durable before clients are told that they may forget.
    """
    schema = workload.schema
    engine = GrpcEngine(Config(), "benchmark", schema)
    port = engine.start("127.0.0.1", 0)
    command = [sys.executable, "-m", __spec__.name, "client", "--server", f"127.0.0.1:{port}", *_arguments(workload)]
    processes = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(workload.clients)]
    try:
        engine.wait_for_clients(workload.clients, DEADLINE_S)
        model = Tensors(schema)
        seconds = []
        for number in range(1, workload.rounds + 1):
            exchange = Exchange(
                id=ExchangeId("benchmark", number, 0, "echo", 0),
                clients=dict.fromkeys(engine.clients(), 1.0),
                payload=model,
                reply_schema=schema,
                rule=WeightedMean(),
                closing=Closing(DEADLINE_S, enough=workload.clients),
            )
            started = time.perf_counter()
            outcome = engine.carry_out(exchange, partial(keep, exchange) if keep is not None else None)
            seconds.append(time.perf_counter() - started)
            assert outcome.reduced is not None, outcome.fault
            assert len(outcome.replies) == workload.clients, outcome.missing
            first = float(outcome.reduced.elements(schema.segments[0])[0])
            expected = float(model.elements(schema.segments[0])[0]) + STEP * (workload.clients + 1) / 2
            assert first == expected, f"the mean is {first}, not {expected}"
            model = outcome.reduced
            traffic = outcome.traffic
            del outcome, exchange
    finally:
        engine.finish(completed=True, reason="all exchanges are done")
        for process in processes:
            process.wait()
    return {
        "seconds": seconds,
        "server_peak_bytes": peak_memory_bytes(),
        "wire_bytes_down": traffic.wire_bytes_down,
        "wire_bytes_up": traffic.wire_bytes_up,
    }


def peak_memory_bytes() -> int:
    """The most resident memory this process ever had, the interpreter and its libraries included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _arguments(workload: Workload) -> list[str]:
    fields = ("clients", "rounds", "megabytes", "tensors")
    return [text for field in fields for text in (f"--{field}", str(getattr(workload, field)))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the benchmark's processes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--megabytes", type=float, required=True)
    parser.add_argument("--tensors", type=int, required=True)
    parser.add_argument("--server")
    parser.add_argument("--rank", type=int)
    options = parser.parse_args(arguments)
    workload = Workload(options.clients, options.rounds, options.megabytes, options.tensors)
    if options.role == "server":
        print(json.dumps(serve(workload)))
    else:
        take_part(options.server, {f"client-{options.rank}": EchoWorker(workload.schema, options.rank)}, retry_for_s=DEADLINE_S)


if __name__ == "__main__":
    main()
