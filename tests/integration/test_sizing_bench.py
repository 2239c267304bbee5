"""The benchmark of what a federation takes, in its smallest form, and the page that shows its result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_it_measures_memory_bytes_and_disk(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, str(BENCHMARKS / "sizing.py"), "--mib", "1", "--clients", "2", "--save", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    sent = row["exchanges_per_round"] * row["clients"] * row["model_bytes"]
    for direction in ("down", "up"):
        assert row[f"wire_bytes_{direction}"] == pytest.approx(sent, rel=0.02)
    assert row["model_bytes"] == pytest.approx(row["mib"] << 20, rel=0.02)
    for process in ("server", "client"):
        assert row[f"{process}_peak_bytes"] > 50 * row["model_bytes"]
        assert row[f"{process}_state_bytes"] > row["model_bytes"]


def test_the_page_shows_the_result() -> None:
    subprocess.run([sys.executable, str(BENCHMARKS / "sizing_page.py"), "--check"], check=True)


def test_the_rules_of_thumb_of_the_page_hold_for_every_row() -> None:
    for row in json.loads((BENCHMARKS / "results" / "sizing.json").read_text())["rows"]:
        model = row["model_bytes"]
        assert 340e6 < row["server_peak_bytes"] < 350e6 + 10.5 * model + 220e6
        assert 310e6 < row["client_peak_bytes"] < 320e6 + 7 * model + 20e6
        assert row["server_state_bytes"] == pytest.approx((2 + row["exchanges_per_round"]) * model, rel=0.02)
        assert row["client_state_bytes"] == pytest.approx(2 * model, rel=0.02)
