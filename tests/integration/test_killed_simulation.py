"""`feddkd run` that is killed: its client processes go with it, so that another one can go on at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killed_runs import OVERRIDES

from feddkd.failpoints import VARIABLE


def run(*arguments: str, fault: str = "") -> int:
    """Carry out `feddkd run` in a process of its own; returns its exit code."""
    command = [sys.executable, "-m", "feddkd", "run", "--no-report", *arguments]
    return subprocess.run(command, env=os.environ | {VARIABLE: fault}, stderr=subprocess.DEVNULL, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["grpc", "in-process"])
def test_a_simulation_that_was_killed_goes_on_at_once(engine: str, tmp_path: Path) -> None:
    """On either engine, with what the clients of the first one had left over."""
    options = [option for override in (*OVERRIDES, "communication.up=topk:0.05") for option in ("-o", override)]
    folder = tmp_path / "killed"
    assert run("--out", str(folder), *options, fault="scheduler.exchange.before_append=kill@4") == -signal.SIGKILL
    assert run("--resume", str(folder), "--engine", engine) == 0
    assert run("--out", str(tmp_path / "whole"), *options, "--engine", "in-process") == 0
    hashes = [json.loads((record / "summary.json").read_text())["model_sha256"] for record in (folder, tmp_path / "whole")]
    assert hashes[0] == hashes[1]
