"""Runs one federation with a hostile client, once with every seed."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from attackers import ATTACKS, Attacker, ClientAround
from torch import nn

from feddkd import algorithms
from feddkd.client.simulated import simulated_workers
from feddkd.config import Config
from feddkd.data.datasets import describe, load_test
from feddkd.engines.in_process import InProcessEngine
from feddkd.exchange import DELIVER
from feddkd.models.registry import build_model
from feddkd.scheduler.records import ExchangeRecord, Observer
from feddkd.scheduler.rounds import Scheduler
from feddkd.tasks.chosen import task_of
from feddkd.tensors import Tensors

SEEDS = (0, 1, 2, 3, 4)
ROUNDS, CLIENTS, HOSTILE = 6, 10, "client-9"
ALGORITHMS = {"feddkd": "FedDKD", "fedavg": "FedAvg"}
PARTITIONS = {"iid": "IID", "c1": "one class each"}
Key = tuple[str, str, str, bool]
Ending = tuple[float | None, str | None]
Clients = Mapping[str, ClientAround]
_PARTITION_OVERRIDES = {
    "iid": ("partition.name=iid",),
    "c1": ("partition.name=labels_per_client", "partition.labels=1"),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured: one attack on one algorithm, over all seeds.

    Attributes:
        limited: the server limits what a client may contribute.
    """

    algorithm: str
    partition: str
    attack: str
    limited: bool = False

    @property
    def key(self) -> Key:
        return self.algorithm, self.partition, self.attack, self.limited

    @property
    def overrides(self) -> tuple[str, ...]:
        sizes = (f"rounds={ROUNDS}", f"partition.clients={CLIENTS}")
        algorithm = f"algorithm.name={self.algorithm}"
        return (algorithm, *sizes, *_PARTITION_OVERRIDES[self.partition])

    @property
    def undisturbed(self) -> Cell:
        """The same federation with honest clients and without limits."""
        return Cell(self.algorithm, self.partition, "none")


class LeftOut(Observer):
    """Counts the contributions of each client that were left out of an exchange."""

    def __init__(self) -> None:
        self.contributions: Counter[str] = Counter()

    def exchange_done(self, record: ExchangeRecord) -> None:
        if record.id.name != DELIVER:
            self.contributions.update(record.clients_missing.keys())

    def share(self, clients: Clients) -> float:
        """The share of these clients' contributions."""
        sent = sum(client.contributions for client in clients.values())
        return round(sum(self.contributions[name] for name in clients) / max(1, sent), 4)


def start_worker() -> None:
    """Prepare a process that runs cells: without this each refused reply is a line."""
    logging.getLogger("feddkd").setLevel(logging.ERROR)


def run_cell(cell: Cell, limits: Sequence[str]) -> dict[str, Any]:
    """Run a cell with every seed.

    Args:
        limits: overrides that limit what a client may contribute.

    Returns:
        What the result file says of the cell, lists in the order of `SEEDS`.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    runs = [_run(cell, (*cell.overrides, *limits), seed) for seed in SEEDS]
    return {
        "algorithm": cell.algorithm,
        "partition": cell.partition,
        "attack": cell.attack,
        "limited": cell.limited,
        "overrides": [*cell.overrides, *limits],
        **{key: [run[key] for run in runs] for key in runs[0]},
        "seconds": round(time.monotonic() - started, 1),
    }


def _run(cell: Cell, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """One run: its accuracy, or why there is none, and what was left out."""
    config = Config.load(overrides=[*overrides, f"seed={seed}"])
    left_out = LeftOut()
    with tempfile.TemporaryDirectory() as folder:
        workers = simulated_workers(config, Path(folder))
        clients = {name: ClientAround(worker) for name, worker in workers.items()}
        clients[HOSTILE] = Attacker(workers[HOSTILE], ATTACKS[cell.attack], config)
        accuracy, failure = _outcome(config, clients, left_out)
    hostile = {HOSTILE: clients.pop(HOSTILE)}
    return {
        "accuracy": accuracy,
        "failure": failure,
        "hostile_left_out": left_out.share(hostile),
        "honest_left_out": left_out.share(clients),
        "largest_norms": largest(client.largest_norms for client in clients.values()),
        "largest_count": max(client.counts.total for client in clients.values()),
    }


def _outcome(config: Config, clients: Clients, observer: Observer) -> Ending:
    """The accuracy of the final model, or why there is no useful one."""
    task = task_of(config)
    module = build_model(config.model, describe(config.data, task), config.seed, task)
    engine = InProcessEngine(clients, config.transport.chunk_bytes)
    algorithm = algorithms.build(config)
    scheduler = Scheduler(config, algorithm, engine, run_id="attack", observers=[observer])
    try:
        model = scheduler.run(Tensors.of_module(module)).model
    except Exception as error:  # noqa: BLE001  # any error that ends the run is a result
        return None, f"{type(error).__name__}: {error}"[:200]
    if not all(bool(tensor.isfinite().all()) for tensor in model.values()):
        return None, "the model is not finite"
    model.load_into(module)
    return _accuracy(config, module), None


@torch.no_grad()
def _accuracy(config: Config, module: nn.Module) -> float:
    """The share of the test split that a model classifies correctly."""
    examples = load_test(config.data, config.seed, task_of(config))
    inputs, labels = examples.gather(torch.arange(len(examples)))
    return round(float((module.eval()(inputs).argmax(1) == labels).double().mean()), 6)


def largest(norms: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest norm of each exchange name."""
    out: dict[str, float] = {}
    for each in norms:
        out.update({name: max(norm, out.get(name, 0.0)) for name, norm in each.items()})
    return {name: round(norm, 4) for name, norm in sorted(out.items())}


def mean_accuracy(result: Mapping[str, Any]) -> float | None:
    """The mean over the seeds whose runs ended with a finite model; None if there is none."""
    found = [accuracy for accuracy in result["accuracy"] if accuracy is not None]
    return statistics.fmean(found) if found else None
