"""Honest simulated clients in a process of their own, which compute when they are told to.

    python honest_clients.py CONFIG ADDRESS STATE

For each exchange that begins, it prints the exchange as JSON, and computes once it reads a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from feddkd.client.constants import HeldConstants
from feddkd.client.process import take_part
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.exchange import ExampleCounts, ExchangeId, Reply, Task
from feddkd.tensors import Schema


class Gate:
    """Holds the first client of each exchange; the others compute after it, in the same thread."""

    def __init__(self) -> None:
        self._last: ExchangeId | None = None

    def enter(self, exchange: ExchangeId) -> None:
        if exchange != self._last:
            self._last = exchange
            print(json.dumps(dataclasses.asdict(exchange)), flush=True)
            sys.stdin.readline()


class GatedWorker(Worker):
    """An honest client."""

    def __init__(self, worker: Worker, gate: Gate) -> None:
        self._worker = worker
        self._gate = gate

    @property
    def counts(self) -> ExampleCounts:
        return self._worker.counts

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._worker.class_names

    @property
    def model_schema(self) -> Schema:
        return self._worker.model_schema

    @property
    def constants(self) -> HeldConstants:
        return self._worker.constants

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._worker.broadcast_schema(exchange)

    def carry_out(self, task: Task) -> Reply:
        self._gate.enter(task.id)
        return self._worker.carry_out(task)


def main() -> int:
    config, address, state = sys.argv[1:]
    gate = Gate()
    workers = simulated_workers(Config.load(Path(config)), Path(state))
    gated = {client: GatedWorker(worker, gate) for client, worker in workers.items()}
    return 0 if take_part(address, gated, retry_for_s=60).completed else 1


if __name__ == "__main__":
    sys.exit(main())
