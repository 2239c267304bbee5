"""Measure how many models the server side of an algorithm holds in memory during a round.

python benchmarks/server_memory.py [--mib 64] [--steps 4]

Each row is a separate process. It runs one round to warm up, reads its resident memory between two
rounds (the global model and what the algorithm carries to the next round), and then the peak of a
second round. The clients are simulated: every exchange returns constants in a new block of memory.
As in a run, a snapshot of the algorithm's state is kept in case the round has to start again. Linux
only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from feddkd import algorithms
from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.snapshot import Snapshot
from feddkd.config import Config
from feddkd.exchange import ExchangeKind
from feddkd.tensors import Schema, Tensors, TensorSpec

MIB = 1 << 20
LAYERS = 8

CASES: dict[str, list[str]] = {
    "feddkd": [],
    "feddkd, moments reset each round": ["dkd.optimizer_state=reset"],
    "feddkd, clipped": ["dkd.clip_norm=0.001"],
    "feddkd, starts at the average": ["dkd.start=average"],
    "feddkd with Yogi": ["dkd.optimizer=yogi"],
    "fedavg_sgd": ["algorithm.name=fedavg_sgd"],
    "fedavg": ["algorithm.name=fedavg"],
    "scaffold": ["algorithm.name=scaffold"],
    "fednova": ["algorithm.name=fednova"],
    "fedavgm": ["algorithm.name=fedavgm"],
    "fedadam": ["algorithm.name=fedadam"],
    "feddyn": ["algorithm.name=feddyn"],
    "fedexp": ["algorithm.name=fedexp"],
}


class ConstantCohort:
    """Answers every exchange at once with tensors of constants."""

    weights, share, most_examples = (1.0, 1.0), 1.0, 1
    loss: float | None = 0.02  # above the previous model's: the steps start over from that

    def __init__(self, model: Schema, kinds: Mapping[str, ExchangeKind]) -> None:
        self._model = model
        self._kinds = kinds
        self.sent = Tensors(model)

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        self.sent = model
        return model

    def note(self, name: str, value: float) -> None:
        """There is no record."""

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        self.sent = payload
        schema = self._kinds[name].reply
        assert schema is not None
        answer = Tensors.empty(schema(self._model))
        for name, tensor in answer.items():
            # The lower previous_loss makes FedDKD's steps start over from the previous model.
            number = 0.5 if name.startswith("previous_loss") else 1
            tensor.fill_(1e-3 if tensor.ndim else number)
        return answer


def network(size_bytes: int, with_buffers: bool) -> Schema:
    """A model of equal float32 layers, with or without buffers between them."""
    specs = []
    for layer in range(LAYERS):
        specs.append(TensorSpec(f"{layer}.weight", torch.float32, (size_bytes // (4 * LAYERS),)))
        if with_buffers:
            specs.append(TensorSpec(f"{layer}.running_mean", torch.float32, (64,), trainable=False))
    return Schema(specs)


def run_round(algorithm: Algorithm, model: Tensors) -> Tensors:
    cohort = ConstantCohort(model.schema, algorithm.exchanges(algorithm.config))
    with Snapshot(algorithm.state_dict()):
        return algorithm.run_round(cohort, model)


def status(field: str) -> int:
    """A size in bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure(mib: int, with_buffers: bool, overrides: list[str]) -> dict[str, float]:
    """Models at rest and at the peak of a round, of this process."""
    config = Config.load(overrides=overrides)
    # With a small model first: optimizers import much of torch at their first step.
    run_round(algorithms.build(config), Tensors(network(MIB, with_buffers)))
    empty = status("VmRSS")
    algorithm = algorithms.build(config)
    model = run_round(algorithm, Tensors(network(mib * MIB, with_buffers)))
    rest = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
    model = run_round(algorithm, model)
    peak = status("VmHWM")
    unit = model.schema.size_bytes
    return {"rest": (rest - empty) / unit, "peak": (peak - rest) / unit}


def run_case(arguments: list[str]) -> dict[str, float]:
    """Measure in a new process, whose freed blocks go back to the operating system at once."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, float] = json.loads(done.stdout)
    return row


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--mib", type=int, default=64, help="size of the model")
    parser.add_argument("--steps", type=int, default=4, help="DKD steps of a round")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--buffers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        overrides = [f"dkd.steps={options.steps}", *CASES[options.case]]
        print(json.dumps(measure(options.mib, options.buffers, overrides)))
        return
    title = f"models of {options.mib} MiB"
    table = Table("algorithm", "buffers", "at rest", "peak above rest", title=title)
    sizes = ["--mib", str(options.mib), "--steps", str(options.steps)]
    for case in CASES:
        for buffers in (False, True):
            row = run_case([*sizes, "--case", case, *["--buffers"] * buffers])
            numbers = f"{row['rest']:.1f}", f"{row['peak']:.1f}"
            table.add_row(case, "yes" if buffers else "no", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
