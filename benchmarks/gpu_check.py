"""Check and measure `runtime.device = "cuda"` on a machine with a GPU, in less than ten minutes.

python benchmarks/gpu_check.py [--device cuda] [--repeats 7] [--short] [--save FILE]

First what has to hold: clients on the device train to the accuracy of clients on the CPU, and a
CUDA graph of a local step leads to the model that single steps lead to. Then what it costs: local
training as a bare PyTorch loop on the device, as clients do it step by step, and as they do it by a
graph, in turn in each repeat. A ratio is that of the times of one repeat. The exit code is 1 where
a check fails, and 2 on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from feddkd.bench.environment import environment
from feddkd.client.simulated import Simulation
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples
from feddkd.devices import cuda
from feddkd.devices.graphs import RepeatedStep
from feddkd.engines.simulation import run_federation
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeId, Task
from feddkd.models.device import find_device
from feddkd.tensors import Tensors

sys.path.insert(0, str(Path(__file__).resolve().parent))  # the clients import this file for its data

ACCURACY_APART = 0.02
"""Most that the accuracies on the CPU and on the device may differ: they round differently."""

GRAPH_APART = 1e-4
"""Most that the updates of a graph and of single steps may differ, relative to their norm."""

CLASSES, SHAPE = 10, (3, 32, 32)


def images(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """Make images of the shape of CIFAR-10, whose classes a small network tells apart."""
    del root  # nothing is read
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.arange(2000 if train else 500) % CLASSES
    patterns = torch.randn(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(2))
    return patterns[labels] + 3 * torch.randn(len(labels), *SHAPE, generator=generator), labels


@dataclass(frozen=True)
class Workload:
    """A federation to check, and its first client's local training to measure."""

    name: str
    overrides: tuple[str, ...]

    def config(self, device: str, *more: str) -> Config:
        return Config.load(overrides=[*self.overrides, f"runtime.device={device}", *more])


COMMON = ("partition.clients=4", "partition.name=iid", "training.batch_size=32", "training.lr=0.05")
WORKLOADS = (
    Workload("digits, MLP", ("rounds=8", *COMMON)),
    Workload("CIFAR-10's shape, CNN", ("rounds=4", "data.name=gpu_check:images", "model.name=niid_cnn", "dkd.steps=5", *COMMON)),
)
SHORT = ("rounds=1", "dkd.steps=1", "training.steps=2")


def check_accuracy(workload: Workload, device: str, *more: str) -> dict[str, Any]:
    """Train on the CPU and on the device, and compare the accuracies of the final models."""
    found = {}
    for name, place in (("cpu", "cpu"), ("device", device)):
        with tempfile.TemporaryDirectory() as folder:
            record = run_federation(workload.config(place, *more), "in-process", Path(folder) / "run")
        assert record.final_evaluation is not None
        assert record.final_evaluation.accuracy is not None
        found[name] = record.final_evaluation.accuracy
    apart = abs(found["cpu"] - found["device"])
    return {"workload": workload.name, "accuracy": found, "holds": apart <= ACCURACY_APART}


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Let clients of this process take their steps one by one."""
    with mock.patch.object(cuda, "FEWEST_STEPS", sys.maxsize):
        yield


def measure(workload: Workload, device: str, repeats: int, steps: int) -> dict[str, Any]:
    """Time one client's local training in three ways, and compare the updates of two of them."""
    config = workload.config(device, f"training.steps={steps}", "algorithm.name=fedavg")
    with tempfile.TemporaryDirectory() as folder:
        worker = Simulation(config, Path(folder)).build(0)
        payload = Tensors.copy_of(worker.model_schema, worker.site.module.state_dict())
        task = Task(ExchangeId("check", 1, 0, "local_train", 0), payload)
        updates: dict[str, Tensors] = {}

        def by_clients(name: str) -> None:
            updates[name] = _contribution(worker, task)

        def step_by_step() -> None:
            with without_graphs():
                by_clients("step by step")

        ways: dict[str, Callable[[], object]] = {
            "bare loop": lambda: bare_loop(worker, payload, steps),
            "step by step": step_by_step,
            "graph": lambda: by_clients("graph"),
        }
        with mock.patch.object(RepeatedStep, "_replay", autospec=True, side_effect=RepeatedStep._replay) as replay:
            seconds = alternated(ways, repeats)
    apart = (updates["graph"] - updates["step by step"]).norm() / updates["step by step"].norm()
    ratios = {
        name: median_and_spread([first / bare for first, bare in zip(seconds[name], seconds["bare loop"], strict=True)]) for name in ways
    }
    return {
        "workload": workload.name,
        "steps": steps,
        "seconds": {name: median_and_spread(found) for name, found in seconds.items()},
        "times_the_bare_loop": ratios,
        "replays": replay.call_count,
        "graph_apart": apart,
        "holds": apart <= GRAPH_APART and (replay.call_count > 0 or worker.site.device.type == "cpu"),
    }


def _contribution(worker: Worker, task: Task) -> Tensors:
    reply = worker.carry_out(task)
    assert isinstance(reply.contribution, Tensors)
    return reply.contribution


def bare_loop(worker: Worker, payload: Tensors, steps: int) -> Tensors:
    """Do the same local training as one would write it in PyTorch, with all data on the device."""
    site, training = worker.site, worker.site.config.training
    payload.load_into(site.module)
    assert isinstance(site.labelled, MemoryExamples)
    inputs, labels = (part.to(site.device) for part in site.labelled.gather(torch.arange(len(site.labelled))))
    optimizer = torch.optim.SGD(site.module.parameters(), lr=training.lr, momentum=training.momentum, fused=True)
    site.module.train()
    total, taken = torch.zeros((), device=site.device), 0
    while taken < steps:
        for index in torch.split(torch.randperm(len(labels)).to(site.device), training.batch_size)[: steps - taken]:
            optimizer.zero_grad()
            loss = F.cross_entropy(site.module(inputs[index]), labels[index])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
            taken += 1
    float(total)
    return site.model()


def alternated(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time each way once in each repeat, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, run in ways.items():
            begin = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_and_spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def described(device: torch.device) -> dict[str, Any]:
    """Say what the device is."""
    if device.type == "cpu":
        return {"name": "cpu"}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
    }


def check(device: str, repeats: int, *, short: bool) -> dict[str, Any]:
    """Do all checks and measurements. Raises ConfigError: there is no such device."""
    found = find_device(device)
    more, steps = (SHORT, 24) if short else ((), 400)
    return {
        "environment": environment(),
        "device": described(found),
        "accuracy": [check_accuracy(workload, device, *more) for workload in WORKLOADS],
        "speed": [measure(workload, device, repeats, steps) for workload in WORKLOADS],
    }


def say(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"device: {result['device']['name']}")
    for part in result["accuracy"]:
        accuracy = part["accuracy"]
        print(f"{part['workload']}: accuracy {accuracy['cpu']:.4f} on the CPU, {accuracy['device']:.4f} on the device{_verdict(part)}")
    for part in result["speed"]:
        times = ", ".join(f"{name} {found['median']:.2f}x" for name, found in part["times_the_bare_loop"].items())
        apart = f"{part['replays']} replays, {part['graph_apart']:.1e} apart"
        print(f"{part['workload']}, {part['steps']} steps: {times}; {apart}{_verdict(part)}")


def _verdict(part: dict[str, Any]) -> str:
    return "" if part["holds"] else "  <- DOES NOT HOLD"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script itself")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="a few steps of everything: the times mean nothing")
    parser.add_argument("--save", type=Path, help="write the result to this JSON file")
    given = parser.parse_args(arguments)
    try:
        result = check(given.device, given.repeats, short=given.short)
    except ConfigError as error:
        print(f"gpu_check: {error}; nothing was checked", file=sys.stderr)
        return 2
    say(result)
    if given.save is not None:
        command = shlex.join(["python", "benchmarks/gpu_check.py", *(sys.argv[1:] if arguments is None else arguments)])
        given.save.write_text(json.dumps({"command": command, **result}, indent=2) + "\n")
    return 0 if all(part["holds"] for part in (*result["accuracy"], *result["speed"])) else 1


if __name__ == "__main__":
    sys.exit(main())
