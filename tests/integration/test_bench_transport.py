"""The benchmark of the transport runs to its end, and says what it has to; nothing here is about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feddkd.bench import environment
from feddkd.bench.peers import MODULES
from feddkd.bench.workload import Stopwatch, Workload
from feddkd.errors import ConfigError

TINY = Workload(clients=2, rounds=2, megabytes=0.0001, tensors=2)
FIELDS = {"seconds", "server_cpu_s", "client_cpu_s", "server_peak_bytes"}


def report_of(module: str, workload: Workload) -> dict[str, Any]:
    command = [sys.executable, "-m", module, "server", *workload.arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("module", MODULES.values())
def test_each_system_reports_every_exchange(module: str) -> None:
    report = report_of(module, TINY)
    assert report.keys() >= FIELDS
    assert len(report["seconds"]) == TINY.rounds
    assert report["server_peak_bytes"] > TINY.size_bytes


def test_a_model_of_several_messages_comes_back_whole() -> None:
    report = report_of(MODULES["raw gRPC"], Workload(clients=1, rounds=2, megabytes=2.5, tensors=1))
    assert len(report["seconds"]) == 2


def test_the_command_measures_all_systems_and_compares_them(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = ["--megabytes", "0.0001", "--clients", "1", "--clients", "2", "--rounds", "2", "--repeats", "1", "--busy", "--json"]
    command = [sys.executable, "-m", "feddkd", "bench", "transport", *options, "--save", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=True)
    document = json.loads(done.stdout)
    assert document == json.loads(file.read_text())
    measured = {(result["system"], result["clients"]) for result in document["results"]}
    assert measured == {(system, clients) for system in MODULES for clients in (1, 2)}
    assert all(result["exchanges"] == 1 for result in document["results"])


def test_a_busy_machine_saves_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "busy_share", lambda: 0.06)
    with pytest.raises(ConfigError, match=r"not idle, 6% .*--busy"):
        environment.check_idle()
    monkeypatch.setattr(environment, "busy_share", lambda: 0.05)
    environment.check_idle()


def test_the_share_of_processor_time_is_that_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(100, 1000), (130, 1100)])
    monkeypatch.setattr(environment, "_processor_ticks", lambda: next(looks))
    assert environment.busy_share(seconds=0) == pytest.approx(0.3)


def test_the_first_exchange_is_warm_up() -> None:
    stopwatch = Stopwatch([])
    for _ in range(3):
        stopwatch.start()
        stopwatch.stop()
    assert len(stopwatch.report()["seconds"]) == 3
    assert stopwatch.report()["client_cpu_s"] == 0


def test_a_workload_has_at_least_one_element_in_each_tensor() -> None:
    assert Workload(1, 1, 0.0, 3).size_bytes == 12
    assert Workload(1, 1, 100, 1).size_bytes == 100 << 20
