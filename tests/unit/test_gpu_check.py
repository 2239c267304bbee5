"""The script that checks a GPU, with the CPU in its place; and its answer where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_check
from gpu_check import Workload, check_accuracy, main


def test_a_short_check_of_the_cpu_saves_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU all ways are the same one, so they agree to the last bit."""
    file = tmp_path / "result.json"
    assert main(["--device", "cpu", "--short", "--repeats", "1", "--save", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["command"].endswith(f"--save {file}")
    assert result["device"] == {"name": "cpu"}
    assert [part["workload"] for part in result["accuracy"]] == [part["workload"] for part in result["speed"]]
    assert all(part["accuracy"]["cpu"] == part["accuracy"]["device"] for part in result["accuracy"])
    assert [part["graph_apart"] for part in result["speed"]] == [0, 0]
    assert all(part["times_the_bare_loop"]["bare loop"]["median"] == 1 for part in result["speed"])
    assert "DOES NOT HOLD" not in capsys.readouterr().out


def test_another_accuracy_on_the_device_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    part = {"workload": "w", "accuracy": {"cpu": 0.9, "device": 0.8}, "holds": False}
    monkeypatch.setattr(gpu_check, "check", lambda *_, **__: {"device": {"name": "d"}, "accuracy": [part], "speed": []})
    assert main(["--device", "cpu"]) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out


@pytest.mark.parametrize(("apart", "holds"), [(0.019, True), (0.021, False)])
def test_accuracies_may_differ_a_little(apart: float, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Record:
        def __init__(self, accuracy: float) -> None:
            self.final_evaluation = type("Evaluation", (), {"accuracy": accuracy})

    accuracies = iter([0.9, 0.9 - apart])
    monkeypatch.setattr(gpu_check, "run_federation", lambda *_: Record(next(accuracies)))
    assert check_accuracy(Workload("w", ()), "cpu")["holds"] == holds


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gpu_check: runtime.device = 'cuda': this machine has no CUDA device")
    assert said.count("\n") == 1
