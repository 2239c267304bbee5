"""The benchmark of a cohort's memory, in its smallest form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ("data.name=digits", "model.name=mlp", "training.steps=1", "dkd.steps=1")


def test_it_measures_few_and_many_clients(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "cohort_memory.py"), "--data", "nowhere", "--engines", "in-process"]
    command += ["--clients", "3", "12", "--cohort", "3", "--rounds", "1", "--busy", "--save", str(file)]
    command += [part for setting in SMALL for part in ("-o", setting)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["results"]
    assert [(row["clients"], row["cohort"]) for row in rows] == [(3, 3), (12, 3)]
    assert all(row["peak_pss_mib"] > 0 for row in rows)
    assert rows[1]["state_mib"] >= rows[0]["state_mib"]
