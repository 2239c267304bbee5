"""Runs one cell: a federation in this process with some hostile clients."""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.cells import DATA_ROOT, Cell
from attacks.clients import Plot, put_among
from attacks.known import ATTACKS
from feddkd import algorithms
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import describe, load_test
from feddkd.engines.in_process import InProcessEngine
from feddkd.exchange import DELIVER
from feddkd.models.registry import build_model
from feddkd.scheduler.records import ExchangeRecord, Observer
from feddkd.scheduler.rounds import Scheduler
from feddkd.tasks.chosen import task_of
from feddkd.tensors import Tensors

_TEST_BATCH = 1000


class Seen(Observer):
    """Counts, by client, the exchanges in which a contribution was left out or was an outlier."""

    def __init__(self) -> None:
        self.exchanges = 0
        self.refused: Counter[str] = Counter()
        self.outliers: Counter[str] = Counter()
        self.named: set[str] = set()

    def exchange_done(self, record: ExchangeRecord) -> None:
        if record.id.name != DELIVER:
            self.exchanges += 1
            self.refused.update(record.clients_missing.keys())
            self.outliers.update(client for client, in_a_row in record.outliers.items() if in_a_row)
            self.named.update(record.named_outliers)

    def line(self) -> dict[str, Any]:
        """Return what a result says of it."""
        return {
            "exchanges": self.exchanges,
            "refused": dict(sorted(self.refused.items())),
            "outliers": dict(sorted(self.outliers.items())),
            "named": sorted(self.named),
        }


def start_worker() -> None:
    """Prepare a process that runs cells: without this each refused reply is a line."""
    logging.getLogger("feddkd").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)


def run_cell(cell: Cell, data_root: Path = DATA_ROOT, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Run a cell.

    Args:
        data_root: the folder that has the folder mnist.
        extra: more overrides, for tests.

    Returns:
        What the result says: accuracy on the test split, or why there is none, and what became of
        contributions.
    """
    started, started_cpu = time.monotonic(), time.process_time()
    config = Config.load(overrides=[*cell.overrides(data_root), *extra])
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        workers = simulated_workers(config, Path(folder))
        most = config.scheduler.max_examples
        plot = Plot(ATTACKS[cell.attack], cell.on, len(workers), cell.attackers, config.rounds, most, cell.seed)
        clients, hostile = put_among(workers, plot)
        accuracy, failure = _outcome(config, clients, seen)
    return {
        **cell.line(),
        "accuracy": accuracy,
        "failure": failure,
        "hostile": list(hostile),
        **seen.line(),
        "seconds": round(time.monotonic() - started, 2),
        "cpu_s": round(time.process_time() - started_cpu, 2),
        "settings": [*cell.settings(), *extra],
    }


def _outcome(config: Config, clients: Mapping[str, Worker], observer: Observer) -> tuple[float | None, str | None]:
    """Return the accuracy of the final model, or why there is no useful one."""
    task = task_of(config)
    module = build_model(config.model, describe(config.data, task), config.seed, task)
    engine = InProcessEngine(clients, config.transport.chunk_bytes)
    scheduler = Scheduler(config, algorithms.build(config), engine, run_id="attack", observers=[observer])
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
    """Return the share of the test split that a model classifies correctly."""
    examples = load_test(config.data, config.seed, task_of(config))
    module.eval()
    correct = 0
    for indices in torch.split(torch.arange(len(examples)), _TEST_BATCH):
        inputs, labels = examples.gather(indices)
        correct += int((module(inputs).argmax(1) == labels).sum())
    return round(correct / len(examples), 6)
