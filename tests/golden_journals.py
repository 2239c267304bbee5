"""Two runs of this version whose journals are committed, so that a later version that cannot read them is noticed.

    scripts/golden-journals         say how the committed ones are
    scripts/golden-journals --write make them again, in tests/golden

One run has finished; the other was killed in its second round, right after an exchange was done. They compute
with the same instructions on every x86-64 machine, as in model_hashes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from model_hashes import SAME_ON_EVERY_CPU, TESTS, round_square_roots
from torch import nn

from feddkd import cli
from feddkd.cli.replay import as_object, replayed
from feddkd.failpoints import VARIABLE

GOLDEN = TESTS / "golden"
FINISHED = GOLDEN / "finished"
CRASHED = GOLDEN / "crashed"
LIST = GOLDEN / "golden.json"

OVERRIDES = (
    "rounds=2",
    "partition.clients=3",
    "partition.labels=4",
    "training.epochs=1",
    "communication.preset=frugal",
    "dkd.steps=2",
    "model.name=golden_journals:small",
)
FAULT = "scheduler.exchange.after_append=kill@3"
"""The first of the two exchanges of round 2 is in the journal."""

NOT_KEPT = ("status.json", "report.html", "lock")
"""Files that say something of a process that has gone."""

TOLD = ("model_sha256", "rounds_done", "goes_on", "exchanges", "total_wire_bytes_down", "total_wire_bytes_up", "payload_bytes_down")
"""What the list holds of each journal."""


def small(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network of 682 parameters, with a buffer."""
    inputs = int(torch.Size(input_shape).numel())
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, num_classes))


def run(*arguments: str, variables: Mapping[str, str] | None = None) -> int:
    """Carry out `feddkd run` with these arguments in a process that computes as on any other machine; returns its exit code."""
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, **SAME_ON_EVERY_CPU, "PYTHONPATH": path, **(variables or {})}
    command = [sys.executable, __file__, "--here", *arguments]
    return subprocess.run(command, env=environment, cwd=TESTS, stdout=subprocess.DEVNULL, check=False).returncode


def go_on(folder: Path) -> int:
    """Go on with the run in a folder; returns the exit code."""
    return run("--resume", str(folder))


def write() -> None:
    """Make both journals and the list again."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    options = [option for override in OVERRIDES for option in ("-o", override)]
    for folder, fault, code in ((FINISHED, "", 0), (CRASHED, FAULT, -signal.SIGKILL)):
        found = run("--out", str(folder), *options, variables={VARIABLE: fault} if fault else {})
        if found != code:
            sys.exit(f"{folder}: the run ended with {found}, not {code}")
        for name in NOT_KEPT:
            for file in folder.rglob(name):
                file.unlink()
    shutil.rmtree(FINISHED / "clients")  # nobody goes on with it
    where = {"torch": torch.__version__, "machine": platform.machine()}
    LIST.write_text(json.dumps(where | {folder.name: look(folder) for folder in (FINISHED, CRASHED)}, indent=2) + "\n")


def look(folder: Path) -> dict[str, Any]:
    """What a journal holds, as far as the list says it."""
    found = as_object(replayed(folder, folder))
    return {key: found[key] for key in TOLD}


def listed() -> dict[str, Any]:
    """The committed list."""
    found: dict[str, Any] = json.loads(LIST.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="golden-journals", description="Show or make the journals that are committed.")
    parser.add_argument("--write", action="store_true", help=f"make them again, in {GOLDEN}")
    parser.add_argument("--here", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        round_square_roots()
        sys.argv = ["feddkd", "run", "--engine", "in-process", "--no-report", *options.here]
        cli.main()
    if options.write:
        write()
    print(json.dumps({folder.name: look(folder) for folder in (FINISHED, CRASHED)}, indent=2))


if __name__ == "__main__":
    main()
