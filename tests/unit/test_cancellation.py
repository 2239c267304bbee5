"""A client whose exchange was closed stops before its next batch, whatever it is computing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import NETWORK, Federation, data
from harness import RUN_ID
from torch import nn

from feddkd.algorithms.features import Features
from feddkd.algorithms.feddkd import FedDKDClient
from feddkd.client.worker import Worker
from feddkd.data.examples import MemoryExamples
from feddkd.dkd import Distillation, distillation_gradient, teacher_logits
from feddkd.errors import CancelledError
from feddkd.evaluation import Check, evaluate
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors

EXAMPLES = 1100
"""Three batches of 512, the size of every batch outside of training."""


class Passes:
    """Counts a module's forward passes, and calls `at` when it reaches one of them."""

    def __init__(self, module: nn.Module, stop_at: int = 0, at: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self._stop_at, self._at = stop_at, at
        self._hook = module.register_forward_pre_hook(self._passed)

    def _passed(self, *_: object) -> None:
        self.count += 1
        if self.count == self._stop_at:
            self._at()

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


def worker_for(folder: Path, algorithm: str) -> Worker:
    federation = Federation(
        folder,
        {"name": algorithm},
        [data(2 * EXAMPLES, 1)],
        NETWORK,
        data={"holdout": 0.5, "test_set": False},
        dkd={"batch_size": 0},
        training={"epochs": 1, "batch_size": 400},
    )
    return federation.workers["client-0"]


def task_for(worker: Worker, exchange: str, number: int, evaluate: bool = False) -> Task:
    payload = Tensors.of_module(worker.site.module)
    return Task(ExchangeId(RUN_ID, number, 0, exchange, 0), payload, evaluate)


@pytest.mark.parametrize(
    ("algorithm", "exchange", "passes"),
    [
        ("fedavg", "local_train", 3),  # of training
        ("fedavg_sgd", "sgd_step", 3),  # of the gradient
        ("feddkd", "dkd_step", 3 + 3),  # of the teacher and of the student
        ("feddkd", "local_train", 3 + 3 + 3 + 3),  # of training, of the teacher held out and not, and of the model that was broadcast
        ("fedntd", "local_train", 3 + 3),  # of the global model, and of training
        ("fedmax", "local_train", 3),
        ("moon", "local_train", 3 + 3 + 3),  # of the global model, of the last local model, and of training
    ],
)
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_closed_exchange_stops_before_the_next_batch(tmp_path: Path, algorithm: str, exchange: str, passes: int, evaluated: bool) -> None:
    worker = worker_for(tmp_path, algorithm)
    passes += 3 * evaluated
    worker.carry_out(task_for(worker, "local_train", 1))
    for stop_at in range(1, passes + 1):
        number = 1 if exchange != "local_train" else 1 + stop_at  # a teacher is of this round, a memory of the one before
        if isinstance(worker._client_side, FedDKDClient):
            worker._client_side.distiller._cached = None
        task = task_for(worker, exchange, number, evaluated)
        with Passes(worker.site.module, stop_at, task.cancelled.set) as passed:
            if stop_at < passes:
                with pytest.raises(CancelledError):
                    worker.carry_out(task)
                assert passed.count == stop_at
            else:
                worker.carry_out(task)
                assert passed.count == passes


@pytest.mark.parametrize("batches", [0, 1, 2])
@pytest.mark.parametrize("computation", ["evaluate", "teacher_logits", "distillation_gradient", "features"])
def test_a_computation_ends_with_what_its_check_raises(computation: str, batches: int) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    module[1].eval()
    examples = MemoryExamples(torch.randn(EXAMPLES, 3), torch.zeros(EXAMPLES, dtype=torch.int64))
    cpu, order = torch.device("cpu"), torch.arange(EXAMPLES)
    hard = Distillation(hard_label_weight=1)
    compute: dict[str, Callable[[Check], Any]] = {
        "evaluate": lambda check: evaluate(module, examples, cpu, check),
        "teacher_logits": lambda check: teacher_logits(module, examples, cpu, check=check),
        "distillation_gradient": lambda check: distillation_gradient(module, examples, None, order, hard, cpu, check=check),
        "features": lambda check: Features(module).of_all(examples, cpu, check=check),
    }
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise CancelledError("closed")

    with Passes(module) as passed, pytest.raises(CancelledError, match="closed"):
        compute[computation](check)
    assert passed.count == batches
    assert (module.training, module[0].training, module[1].training) == (True, True, False)
