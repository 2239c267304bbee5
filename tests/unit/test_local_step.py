"""Which local steps a CUDA graph may repeat, and that those give the same model when one does, on a stand-in for `torch.cuda`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import FakeRuntime

from feddkd.algorithms import local_step
from feddkd.config import Config
from feddkd.devices.cuda import Cuda
from feddkd.engines.simulation import run_federation

REPEATABLE: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedprox": {},
    "fedmax": {},
    "feddyn": {},
    "scaffold": {},
    "fednova": {"training": {"momentum": 0.9}},
    "feddkd": {"dkd": {"steps": 1}},
    "fedavg with adam": {"training": {"optimizer": "adam", "lr": 0.001}},
    "fedavg with a schedule over rounds": {"training": {"schedule": "cosine"}},
}
EAGER: dict[str, tuple[dict[str, Any], str]] = {
    "moon": ({}, "the local objective ModelContrast "),
    "fedntd": ({}, "the local objective NotTrueDistillation "),
    "semifl": ({"data": {"labelled_share": 0.5}, "algorithm": {"name": "semifl", "confidence": 0.1}}, "the local objective FixAndMix "),
    "fedavg clipped": ({"training": {"clip_norm": 1.0}}, "training.clip_norm = 1 "),
    "fedavg with a schedule over steps": ({"training": {"schedule": "cosine", "schedule_over": "steps"}}, "training.schedule = 'cosine' "),
    "fedavg with radam": ({"training": {"optimizer": "radam", "lr": 0.001}}, "training.optimizer = 'radam' "),
    "fedavg with a network of one's own": ({"model": {"name": "own_models:adapters"}}, "model 'own_models:adapters' "),
}


def config_of(name: str, tables: dict[str, Any]) -> Config:
    common = {"rounds": 2, "partition": {"name": "iid", "clients": 2}, "algorithm": {"name": name.split()[0]}}
    return Config.parse({**common, **tables, "training": {"steps": 22, "batch_size": 100, **tables.get("training", {})}})


def repeated_run(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Run with graphs; return the hash of the final model, and what was asked of the stand-in."""
    runtime = FakeRuntime()
    cuda = Cuda(torch.device("cpu"), runtime)
    with monkeypatch.context() as patched:
        patched.setattr(local_step, "device_for", lambda _: cuda)
        return run_federation(config, "in-process", folder).model.sha256(), runtime.calls


@pytest.mark.parametrize("name", REPEATABLE)
def test_a_graph_of_a_step_trains_to_the_same_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(name, REPEATABLE[name])
    found, calls = repeated_run(config, tmp_path / "graph", monkeypatch)
    assert found == run_federation(config, "in-process", tmp_path / "eager").model.sha256()
    assert calls.count("record") == 4  # two clients in two rounds
    assert calls.count("replay") > 4


@pytest.mark.usefixtures("importable_tests")
@pytest.mark.parametrize("name", EAGER)
def test_a_step_that_a_graph_would_get_wrong_is_not_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, why = EAGER[name]
    said: list[str] = []
    monkeypatch.setattr("feddkd.devices.cuda.say_once", said.append)
    found, calls = repeated_run(config_of(name, tables), tmp_path / "graph", monkeypatch)
    assert found == run_federation(config_of(name, tables), "in-process", tmp_path / "eager").model.sha256()
    assert "record" not in calls or name == "semifl"  # whose first exchange trains on labels alone, like FedAvg
    assert any(reason.startswith(why) for reason in said)
