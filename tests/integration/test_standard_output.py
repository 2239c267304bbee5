"""Standard output is for the results of a command, whatever the user's code writes there and by which way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOISE = """
import logging, os, subprocess, sys, threading

def noise():
    print("by print")
    sys.stdout.write("by the stream\\n")
    sys.__stdout__.write("by the original stream\\n")
    os.write(1, b"by the descriptor\\n")
    subprocess.run(["echo", "by a process"], check=True)
    thread = threading.Thread(target=print, args=("by a thread",))
    thread.start()
    thread.join()
    logging.StreamHandler(sys.stdout).emit(logging.makeLogRecord({"msg": "by a log"}))
"""
WAYS = {"print", "the stream", "the original stream", "the descriptor", "a process", "a thread", "a log"}

MODULE = """
import torch
from torch import nn
from feddkd import FedAvg
from noise import noise

noise()

class Mine(FedAvg):
    pass

def load(root, train):
    noise()
    y = torch.arange(40) % 2
    return torch.ones(40, 4) * y[:, None], y

class Net(nn.Linear):
    def __init__(self, input_shape, num_classes):
        noise()
        super().__init__(4, num_classes)
"""

OWN = ["data.name=noisy:load", "model.name=noisy:Net", "algorithm.name=noisy:Mine", "data.input_shape=[4]", "data.num_classes=2"]
SMALL = ["rounds=1", "training.epochs=1", "partition.name=iid", "partition.clients=2"]
OPTIONS = [word for option in [*OWN, *SMALL] for word in ("-o", option)]

COMMANDS = {
    "run": ["run", "--engine", "in-process", "--no-report", "--out", "out"],
    "data show": ["data", "show"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_json_stands_alone_whatever_writes_beside_it(command: str, tmp_path: Path) -> None:
    (tmp_path / "noise.py").write_text(NOISE)
    (tmp_path / "noisy.py").write_text(MODULE)
    arguments = [sys.executable, "-m", "feddkd", *COMMANDS[command], "--json", *OPTIONS]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert {line.removeprefix("by ") for line in done.stderr.splitlines() if line.startswith("by ")} == WAYS


def test_help_is_a_result() -> None:
    done = subprocess.run([sys.executable, "-m", "feddkd", "run", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "Run a whole federation" in done.stdout
