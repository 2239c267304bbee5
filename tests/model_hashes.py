"""Runs that must always end with the same model: their sha256 hashes stand in model_hashes.json.

    scripts/model-hashes            print the hashes that the code gives
    scripts/model-hashes --diff     say which are not as listed
    scripts/model-hashes --update   write them to tests/model_hashes.json

Each run is a few rounds on digits, through the command line. The bits of a result depend on the
instructions of the CPU and on the version of torch. Therefore the runs compute with the same
instructions on every x86-64 machine, and the list names the version.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import nn
from typer.testing import CliRunner

import feddkd
from feddkd import cli

TESTS = Path(__file__).resolve().parent
LIST = TESTS / "model_hashes.json"

SAME_ON_EVERY_CPU = {
    "ATEN_CPU_CAPABILITY": "default",  # torch's kernels
    "MKL_CBWR": "COMPATIBLE",  # matrix products
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4",  # pow, exp and log
    "OMP_NUM_THREADS": "1",
}
"""Environment variables that fix the instructions of all that computes, but square roots."""

SMALL = ("rounds=2", "training.epochs=1", "dkd.steps=3", "runtime.client_processes=1")
ROUNDS_THAT_START_DIFFERENTLY = ("rounds=6",)  # in later rounds the average is not always better
BATCH_NORM = ("model.name=model_hashes:batch_norm", "training.batch_size=50")

ALGORITHMS: dict[str, tuple[str, ...]] = {
    "feddkd": ROUNDS_THAT_START_DIFFERENTLY,
    "feddkd from the average": (*ROUNDS_THAT_START_DIFFERENTLY, "dkd.start=average"),
    "feddkd from the previous model": (*ROUNDS_THAT_START_DIFFERENTLY, "dkd.start=previous"),
    "feddkd without labels": ("dkd.hard_label_weight=0", "dkd.optimizer=sgd", "dkd.tail=0"),
    "feddkd clipped": ("dkd.clip_norm=0.1", "dkd.divergence=js", "dkd.optimizer_state=reset"),
    "feddkd with fedntd": ("algorithm.local_objective=fedntd",),
    "feddkd with half of the clients": ("scheduler.cohort=0.5", "scheduler.weights=uniform"),
    "feddkd with batch norm": BATCH_NORM,
    "fedavg with batch norm": ("algorithm.name=fedavg", *BATCH_NORM),
    "fedavg": ("algorithm.name=fedavg",),
    "fedavg_sgd": ("algorithm.name=fedavg_sgd",),
    "fedprox": ("algorithm.name=fedprox",),
    "scaffold": ("algorithm.name=scaffold",),
    "fednova": ("algorithm.name=fednova",),
    "fedavgm": ("algorithm.name=fedavgm",),
    "fedadagrad": ("algorithm.name=fedadagrad",),
    "fedadam": ("algorithm.name=fedadam",),
    "fedyogi": ("algorithm.name=fedyogi",),
    "feddyn": ("algorithm.name=feddyn",),
    "moon": ("algorithm.name=moon",),
    "fedntd": ("algorithm.name=fedntd",),
    "fedmax": ("algorithm.name=fedmax",),
    "fedexp": ("algorithm.name=fedexp",),
}
PARTITIONS: dict[str, tuple[str, ...]] = {
    "one class a client": ("partition.clients=10", "partition.labels=1"),
    "two classes a client": ("partition.clients=5", "partition.labels=2"),
    "dirichlet": ("partition.name=dirichlet", "partition.clients=5"),
    "iid": ("partition.name=iid", "partition.clients=4"),
}
OVER_GRPC = (
    ("feddkd", "one class a client"),
    ("feddkd with batch norm", "iid"),
    ("feddkd with half of the clients", "dirichlet"),
    ("scaffold", "two classes a client"),
    ("fednova", "iid"),
)
"""Each of these takes seconds, because its clients are processes of their own."""


class Hashes(TypedDict):
    """What the list holds: the hashes by the names of the runs, and where they are valid."""

    torch: str
    machine: str
    model_sha256: dict[str, str]


def runs() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Name, engine and overrides of every run."""
    pairs = [(algorithm, partition) for algorithm in ALGORITHMS for partition in PARTITIONS]
    for engine, chosen in (("in-process", pairs), ("grpc", OVER_GRPC)):
        for algorithm, partition in chosen:
            overrides = (*SMALL, *PARTITIONS[partition], *ALGORITHMS[algorithm])
            yield f"{algorithm}, {partition}, {engine}", engine, overrides


def one_of_each_algorithm() -> list[str]:
    """Names of runs: each algorithm with one of the partitions in turn, and two that go over gRPC."""
    partitions = itertools.cycle(PARTITIONS)
    here = [f"{algorithm}, {next(partitions)}, in-process" for algorithm in ALGORITHMS]
    return [*here, *(f"{algorithm}, {partition}, grpc" for algorithm, partition in OVER_GRPC[:2])]


def listed() -> Hashes:
    """The committed list."""
    hashes: Hashes = json.loads(LIST.read_text())
    return hashes


def batch_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network with buffers of floats and of integers."""
    inputs = math.prod(input_shape)
    hidden = [nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, num_classes))


def reason_to_skip(expected: Hashes) -> str | None:
    """Why this machine may give other hashes than the list's; None where it must give the same."""
    here = {"torch": torch.__version__, "machine": platform.machine()}
    for key, there in (("torch", expected["torch"]), ("machine", expected["machine"])):
        if here[key] != there:
            return f"the list was made with {key} {there}, here is {here[key]}"
    return None


def compute(names: Sequence[str] = ()) -> Hashes:
    """Do the runs of these names, or all, in a process with `SAME_ON_EVERY_CPU`.

    Raises:
        CalledProcessError: the process ended with an error.
    """
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **SAME_ON_EVERY_CPU, "PYTHONPATH": path}
    command = [sys.executable, __file__, "--here", *names]
    # Client processes look for feddkd in the current directory first, which may hold another one.
    done = subprocess.run(command, env=environment, cwd=TESTS, stdout=subprocess.PIPE, check=True)
    hashes: Hashes = json.loads(done.stdout)
    return hashes


def round_square_roots() -> None:
    """Let torch round square roots correctly in this process.

    torch takes them from MKL, which rounds them as the CPU does it, whatever `MKL_CBWR` says.
    """

    def sqrt(elements: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.sqrt(elements.numpy(force=True)))

    torch.Tensor.sqrt = sqrt  # type: ignore[method-assign, assignment]


def compute_here(names: Sequence[str]) -> Hashes:
    """Do the runs of these names, or all, in this process; clients over gRPC in processes that it starts."""
    round_square_roots()
    hashes = {name: _model_hash(engine, overrides) for name, engine, overrides in runs() if not names or name in names}
    return {"torch": torch.__version__, "machine": platform.machine(), "model_sha256": hashes}


def _model_hash(engine: str, overrides: Sequence[str]) -> str:
    """The hash of the final model of one `feddkd run`, or how the run failed."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record")
        arguments = ["run", "--engine", engine, "--out", str(record), "--no-report", "--json"]
        options = [argument for override in overrides for argument in ("-o", override)]
        result = CliRunner().invoke(cli.app, [*arguments, *options])
        if result.exit_code != 0:
            return f"failed: {result.exception!r}"
        return str(json.loads((record / "summary.json").read_text())["model_sha256"])


def differences(expected: Hashes, found: Hashes) -> list[str]:
    """One line for each run whose hash is not the list's, or that only one of both has."""
    before, now = expected["model_sha256"], found["model_sha256"]
    return [
        f"{name}: {before.get(name, 'not on the list')} -> {now.get(name, 'no such run')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def main() -> None:
    about = "Print the hashes of the final models of many small runs."
    parser = argparse.ArgumentParser(prog="model-hashes", description=about)
    parser.add_argument("--update", action="store_true", help=f"write them to {LIST.name}")
    parser.add_argument("--diff", action="store_true", help=f"print what differs from {LIST.name}")
    parser.add_argument("--here", action="store_true", help="with the environment as it is")
    parser.add_argument("names", nargs="*", metavar="RUN", help="with --here: do only these runs")
    options = parser.parse_args()
    if options.here:
        # Before the first run does it: the stderr that a run sees is closed at its end.
        logging.basicConfig(level=logging.WARNING)
        print(f"feddkd of {Path(feddkd.__file__).parents[1]}", file=sys.stderr)
        print(json.dumps(compute_here(options.names)))
        return
    found = compute()
    if options.update:
        LIST.write_text(json.dumps(found, indent=2) + "\n")
    elif options.diff:
        changes = differences(listed(), found)
        print("\n".join(changes) or f"all {len(found['model_sha256'])} as listed")
        sys.exit(bool(changes))
    else:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
