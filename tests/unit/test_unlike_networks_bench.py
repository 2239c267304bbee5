"""The measurement of unlike networks: what the page says, and what the result file must show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "unlike_networks.py"
RUNS: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / "unlike_networks.json").read_text(encoding="utf-8"))["runs"]


def test_the_numbers_on_the_page_are_those_of_the_result_file() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_row_has_three_seeds() -> None:
    rows = {run["row"] for run in RUNS}
    assert len(rows) == 4
    assert sorted((run["row"], run["seed"]) for run in RUNS) == sorted((row, seed) for row in rows for seed in range(3))


@pytest.mark.parametrize("run", [run for run in RUNS if run["teachers"]], ids=lambda run: f"{run['row']}-{run['seed']}")
def test_the_shared_student_is_above_every_sites_own_network(run: dict[str, Any]) -> None:
    assert len(run["teachers"]) == 5
    assert run["student"] > max(run["teachers"].values())
