"""How long an exchange takes when nobody computes: down to N client processes, back up, reduced.

    python -m feddkd.bench.transport server --clients 4 --rounds 8 --megabytes 100 --tensors 1

prints one JSON object. The server is this process, so that its peak memory is its own; the clients are
processes of their own. Each client adds a constant of its own to every element, because a system may
notice an unchanged model and not send it back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch

from feddkd.bench.workload import Role, Stopwatch, Workload
from feddkd.client.constants import HeldConstants
from feddkd.client.process import take_part
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import Closing, ExampleCounts, Exchange, ExchangeId, Outcome, Reply, Task
from feddkd.scheduler.rule_book import RuleBook
from feddkd.tensors import Schema, Tensors, TensorSpec

STEP = 2.0**-10
"""Client k adds (k + 1) steps to every element: exact in float32, so the mean can be checked to the bit."""

DEADLINE_S = 120.0


def schema_of(workload: Workload) -> Schema:
    """Return the model of a workload."""
    return Schema(TensorSpec(f"tensor{index:03d}", torch.float32, (workload.elements_per_tensor,)) for index in range(workload.tensors))


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

Timer = Callable[[Sequence[int]], Stopwatch]
"""Makes what times the exchanges from the ids of the client processes."""


def serve(workload: Workload, keep: Kept | None = None, timer: Timer = Stopwatch, port: int = 0) -> dict[str, object]:
    """Run the exchanges and report on them, with the bytes of the last one.

    Args:
        keep: makes an outcome durable before clients are told that they may forget.
        timer: times and measures the exchanges.
        port: that the server listens on; 0 for a free one.
    """
    schema, rules = schema_of(workload), RuleBook(Config().aggregation)
    engine = GrpcEngine(Config(), "benchmark", schema)
    port = engine.start("127.0.0.1", port)
    command = [sys.executable, "-m", __spec__.name, "client", "--server", f"127.0.0.1:{port}", *workload.arguments]
    processes = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(workload.clients)]
    try:
        engine.wait_for_clients(workload.clients, DEADLINE_S)
        model, stopwatch = Tensors(schema), timer([process.pid for process in processes])
        for number in range(1, workload.rounds + 1):
            exchange = Exchange(
                id=ExchangeId("benchmark", number, 0, "echo", 0),
                clients=dict.fromkeys(engine.clients(), 1.0),
                payload=model,
                reply_schema=schema,
                rule=rules.rule("echo", schema, {}),
                closing=Closing(DEADLINE_S, enough=workload.clients),
            )
            stopwatch.start()
            outcome = engine.carry_out(exchange, partial(keep, exchange) if keep is not None else None)
            stopwatch.stop()
            assert outcome.reduced is not None, outcome.fault
            assert len(outcome.replies) == workload.clients, outcome.missing
            first = float(outcome.reduced.elements(schema.segments[0])[0])
            expected = float(model.elements(schema.segments[0])[0]) + STEP * (workload.clients + 1) / 2
            assert first == expected, f"the mean is {first}, not {expected}"
            model = outcome.reduced
            traffic = outcome.traffic
            del outcome, exchange
        report = stopwatch.report()
    finally:
        engine.finish(completed=True, reason="all exchanges are done")
        for process in processes:
            process.wait()
    return {
        **report,
        "wire_bytes_down": traffic.wire_bytes_down,
        "wire_bytes_up": traffic.wire_bytes_up,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the benchmark's processes."""
    role = Role.of(arguments)
    if role.server is None:
        print(json.dumps(serve(role.workload)))
    else:
        worker = EchoWorker(schema_of(role.workload), role.rank)
        take_part(role.server, {f"client-{role.rank}": worker}, retry_for_s=DEADLINE_S)


if __name__ == "__main__":
    main()
