"""Measure what one client's computing costs, as a multiple of a bare PyTorch loop that computes the same.

python benchmarks/local_training.py [--cases mlp mnist-cnn cifar-cnn] [--examples 640] [--repeats 9] [--save FILE [--busy]]

A case is a network and one client's examples, random, in the shapes of digits, MNIST or CIFAR-10. Two parts are measured:
"local training" is a client's reply to the first exchange of FedAvg, "DKD steps" are its replies to the steps of one
round of FedDKD. The bare loops hold tensors, gather rows by index, and call the network, the loss and torch.optim; the
teacher's logits are computed once a round. No bytes travel, and nothing is evaluated. The weights and gradients of both
are compared first, bit for bit. Each repeat runs both in turn, on one thread; a ratio is that of the times of one repeat.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from feddkd.bench.environment import check_idle, environment
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import DataInfo
from feddkd.data.examples import MemoryExamples
from feddkd.data.inputs import network_inputs
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors

CLASSES = 10
SEED = 11


@dataclass(frozen=True)
class Case:
    """A network, and one client's examples.

    Attributes:
        is_bytes: inputs are images of uint8, which ours keeps as they are and the bare loop converts once.
        steps: DKD steps of a round.
        drawn: examples of one DKD step.
    """

    model: str
    input_shape: tuple[int, ...]
    is_bytes: bool
    examples: int = 640
    batch_size: int = 32
    epochs: int = 2
    steps: int = 10
    drawn: int = 256

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Draw inputs [n, ...] and labels int64 [n]."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (self.examples, *self.input_shape)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (self.examples,), generator=generator)
        return pixels if self.is_bytes else pixels.float() / 255, labels

    def config(self, algorithm: str) -> Config:
        tables: dict[str, Any] = {
            "algorithm": {"name": algorithm},
            "data": {"holdout": 0},
            "model": {"name": self.model},
            "training": {"batch_size": self.batch_size, "epochs": self.epochs},
            "runtime": {"threads": 1},
        }
        if algorithm == "feddkd":
            tables["dkd"] = {"start": "average", "hard_label_weight": 0, "steps": self.steps, "batch_size": self.drawn}
        return Config.parse(tables)


CASES = {
    "mlp": Case("mlp", (1, 8, 8), is_bytes=False),
    "mnist-cnn": Case("niid_cnn", (1, 28, 28), is_bytes=True),
    "cifar-cnn": Case("niid_cnn", (3, 32, 32), is_bytes=True, batch_size=64),
}


class Client:
    """One client as a federation has it, and what the bare loops need to compute the same."""

    def __init__(self, case: Case, algorithm: str, folder: Path) -> None:
        self.case = case
        self.config = case.config(algorithm)
        inputs, self.labels = case.tensors()
        self.inputs = network_inputs(inputs, "auto")
        info = DataInfo(case.input_shape, CLASSES, torch.float32)
        store = StateDir(folder / algorithm, "client", durable=False)
        self.worker = Worker(self.config, "client", MemoryExamples(inputs, self.labels), store, info)
        self.module: nn.Module = self.worker.site.module
        self.start = Tensors.of_module(self.module)
        self.round = 0

    def task(self, exchange: str, step: int = 0) -> Task:
        return Task(ExchangeId("run", self.round, 0, exchange, step), self.start)

    def train(self) -> Tensors:
        """Reply to local training; returns the update."""
        return _contribution(self.worker, self.task("local_train"))

    def train_bare(self) -> Tensors:
        """Train from the same weights on the same batches; returns the update."""
        module, training = self.module, self.config.training
        generator = self.worker.site.generator(self.task("local_train").id)
        torch.randint(2**62, (), generator=generator)  # the seed of dropout
        module.load_state_dict(self.start)
        module.train()
        optimizer = torch.optim.SGD(
            module.parameters(), lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay, fused=True
        )
        for _ in range(training.epochs):
            for index in torch.split(torch.randperm(len(self.labels), generator=generator), training.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(module(self.inputs[index]), self.labels[index])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return Tensors.of_module(module) - self.start

    def new_teacher(self) -> None:
        """Begin a round, and store its teacher."""
        self.round += 1
        self.train()

    def steps(self) -> list[Tensors]:
        """Reply to the DKD steps of the round; returns the gradients."""
        return [_contribution(self.worker, self.task("dkd_step", step)) for step in range(self.case.steps)]

    def steps_bare(self) -> list[Tensors]:
        """Compute the same gradients; returns them."""
        module, size = self.module, self.config.eval_batch_size
        teacher = self.worker.site.store.load("teacher", self.start.schema, f"run/{self.round}/0")
        assert teacher is not None
        module.load_state_dict(teacher)
        module.eval()
        with torch.no_grad():
            logits = torch.cat([module(rows) for rows in torch.split(self.inputs, size)])
        return [self._step_bare(logits, step) for step in range(self.case.steps)]

    def _step_bare(self, logits: Tensor, step: int) -> Tensors:
        module = self.module
        module.load_state_dict(self.start)
        total, drawn = len(self.labels), torch.arange(len(self.labels))
        if self.case.drawn < total:
            generator = self.worker.site.generator(self.task("dkd_step", step).id)
            drawn = torch.randperm(total, generator=generator)[: self.case.drawn]
        parameters = dict(module.named_parameters())
        sums = [torch.zeros_like(parameter) for parameter in parameters.values()]
        for index in torch.split(drawn, self.config.eval_batch_size):
            soft, student = F.log_softmax(logits[index], 1), F.log_softmax(module(self.inputs[index]), 1)
            loss = F.kl_div(student, soft, reduction="batchmean", log_target=True)
            for summed, gradient in zip(sums, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                summed.add_(gradient, alpha=len(index) / len(drawn))
        return Tensors.copy_of(self.start.schema, dict(zip(parameters, sums, strict=True)))


def _contribution(worker: Worker, task: Task) -> Tensors:
    found = worker.carry_out(task).contribution
    assert found is not None
    return found


def same(ours: list[Tensors], bare: list[Tensors]) -> bool:
    """Tell whether all tensors are equal, bit for bit."""
    return len(ours) == len(bare) and all(torch.equal(first.block, second.block) for first, second in zip(ours, bare, strict=True))


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Return processor time and wall-clock time."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def nothing() -> None:
    """Prepare nothing."""


def compared(
    ours: Callable[[], object], bare: Callable[[], object], repeats: int, prepare: Callable[[], object] = nothing
) -> dict[str, Any]:
    """Run both in turn, each repeat prepared; return the medians, and the ratios of each repeat."""
    pairs = []
    for repeat in range(repeats):
        prepare()
        first, second = (ours, bare) if repeat % 2 else (bare, ours)
        times = seconds(first), seconds(second)
        pairs.append(times if repeat % 2 else times[::-1])
    found: dict[str, Any] = {}
    for position, clock in enumerate(("cpu", "wall")):
        mine, other = ([pair[side][position] for pair in pairs] for side in (0, 1))
        ratios = sorted(a / b for a, b in zip(mine, other, strict=True))
        found |= {
            f"ours_{clock}_ms": round(1000 * statistics.median(mine), 2),
            f"bare_{clock}_ms": round(1000 * statistics.median(other), 2),
            f"{clock}_ratio": round(statistics.median(ratios), 3),
            f"{clock}_ratio_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return found


def measure(name: str, case: Case, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Measure both parts of one case. Raises SystemExit where the results of both loops differ."""
    trained, distilled = Client(case, "fedavg", folder / name), Client(case, "feddkd", folder / name)
    if not same([trained.train()], [trained.train_bare()]):
        raise SystemExit(f"{name}: the weights after local training differ from those of the bare loop")
    distilled.new_teacher()
    if not same(distilled.steps(), distilled.steps_bare()):
        raise SystemExit(f"{name}: the gradients of the DKD steps differ from those of the bare loop")

    about = {"case": name, "model": case.model, "examples": case.examples, "batch_size": case.batch_size}
    return [
        {**about, "part": "local training", **compared(trained.train, trained.train_bare, repeats)},
        {**about, "part": "DKD steps", **compared(distilled.steps, distilled.steps_bare, repeats, distilled.new_teacher)},
    ]


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("case", "part", "bare CPU ms", "ours CPU ms", "CPU ratio", "wall ratio", title="median, lowest and highest ratio")
    for row in rows:
        ratios = ("{} ({}, {})".format(row[f"{clock}_ratio"], *row[f"{clock}_ratio_spread"]) for clock in ("cpu", "wall"))
        table.add_row(row["case"], row["part"], str(row["bare_cpu_ms"]), str(row["ours_cpu_ms"]), *ratios)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--examples", type=int, default=640, help="of the client")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--busy", action="store_true", help="save a result even if other programs use the machine")
    options = parser.parse_args()
    if options.save is not None and not options.busy:
        check_idle()
    about = {"command": shlex.join(["python", "benchmarks/local_training.py", *sys.argv[1:]]), **environment()}
    with tempfile.TemporaryDirectory() as folder:
        cases = {name: dataclasses.replace(CASES[name], examples=options.examples) for name in options.cases}
        rows = [row for name, case in cases.items() for row in measure(name, case, options.repeats, Path(folder))]
    show(rows)
    if options.save is not None:
        text = json.dumps({**about, "threads": 1, "repeats": options.repeats, "rows": rows}, indent=1)
        options.save.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
