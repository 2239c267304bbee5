"""The benchmark of many live clients runs, and its page says what its result says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from many_clients_page import ROOT, draw, section

ROW: dict[str, Any] = {
    "clients": 1000,
    "exchanges": 100,
    "model_bytes": 4000,
    "median_s": 0.5,
    "quartiles_s": [0.4, 0.7],
    "server_cpu_ms": 0.25,
    "idle_kib": 50.0,
    "errors": 0,
}
RESULT: dict[str, Any] = {
    "command": "python benchmarks/many_clients.py",
    "versions": {"grpcio": "1.85.1"},
    "cpu": "a processor",
    "cores": 2,
    "load_average_1min": 0.1,
    "results": [{**ROW, "clients": 10}, ROW],
}


def test_ten_clients_in_two_processes_complete_their_exchanges_without_an_error(tmp_path: Path) -> None:
    saved = tmp_path / "result.json"
    sizes = ["--clients", "10", "--exchanges", "2", "--hosted", "5", "--elements", "10"]
    command = [sys.executable, str(ROOT / "benchmarks" / "many_clients.py"), *sizes, "--busy", "--save", str(saved)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=100)
    result = json.loads(saved.read_text())
    (row,) = result["results"]
    assert (row["clients"], row["exchanges"], row["model_bytes"], row["errors"]) == (10, 2, 40, 0)
    assert set(ROW) <= set(row)
    assert set(RESULT) <= set(result)
    assert "10 | " in section(result)


def test_the_page_says_what_the_result_says() -> None:
    page = ROOT / "benchmarks" / "many_clients_page.py"
    done = subprocess.run([sys.executable, page, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_has_a_row_for_each_number_of_clients() -> None:
    text = section(RESULT)
    assert "| 1,000 | 500 ms (400 to 700) | 0.25 ms | 50 KiB | 0 |" in text
    assert "| 10 | 500 ms (400 to 700) |" in text
    assert "2 cores of a processor" in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(RESULT["results"], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
