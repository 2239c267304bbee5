"""A process that the user's own code starts in a client may outlive the run, which does not wait for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import feddkd

ROOT = Path(feddkd.__file__).parents[1]
DATA = """
import os, subprocess
from pathlib import Path
import torch

def load(root, train):
    child = subprocess.Popen(["sleep", "1000"])  # it has the standard error of this process
    Path(f"child-{child.pid}").touch()
    labels = torch.arange(30) % 3
    return torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) + labels[:, None], labels
"""
SETTINGS = ("data.name=starting:load", "rounds=1", "partition.clients=2", "partition.name=iid", "training.epochs=1", "dkd.steps=1")


def test_a_run_ends_although_a_process_that_a_client_started_goes_on(tmp_path: Path) -> None:
    (tmp_path / "starting.py").write_text(DATA)
    options = [part for setting in (*SETTINGS, "runtime.client_processes=1") for part in ("-o", setting)]
    command = [sys.executable, "-m", "feddkd", "run", "--no-report", "--out", "record", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=90, check=False
        )
        assert done.returncode == 0
    finally:
        children = [int(found.name.partition("-")[2]) for found in tmp_path.glob("child-*")]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    assert children
