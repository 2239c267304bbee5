"""The benchmark of local training computes the same as its bare loops; nothing here is about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "local_training.py"


@pytest.mark.parametrize("case", ["mlp", "mnist-cnn", "cifar-cnn"])
def test_a_client_computes_what_the_bare_loops_compute_bit_for_bit(case: str, tmp_path: Path) -> None:
    saved = tmp_path / "local_training.json"
    command = [sys.executable, str(SCRIPT), "--cases", case, "--examples", "70", "--repeats", "1", "--save", str(saved), "--busy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr  # it ends with an error where weights or gradients differ
    found = json.loads(saved.read_text(encoding="utf-8"))
    assert [row["part"] for row in found["rows"]] == ["local training", "DKD steps"]
    assert {"command", "date", "versions", "cpu", "cores"} <= found.keys()
