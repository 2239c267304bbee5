"""The benchmark beside other systems, without any of them: feddkd's own cells, the shared work, and the page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from peers import exchange, simulation, tables  # noqa: E402
from peers.cells import DKD_ROUND, EXCHANGE, Cell, all_cells, missing, read_lines, result_of  # noqa: E402
from peers.drivers.simulation_work import Work, train  # noqa: E402
from peers.simulators import CHECKED, SIMULATORS, Simulation  # noqa: E402
from peers.systems import SYSTEMS  # noqa: E402
from peers.work import Shape, write_work  # noqa: E402

from feddkd.errors import RunError  # noqa: E402

ABOUT = {
    "date": "2026-01-02",
    "versions": {"feddkd": "1", "flwr": "2"},
    "cpu": "a processor",
    "cores": 2,
    "system": "Linux",
    "load_average_1min": 0.1,
    "command": "python ...",
}


def line(peer: str, seconds: list[float], **changed: Any) -> dict[str, Any]:
    found = {
        "peer": peer,
        "work": EXCHANGE,
        "megabytes": 10.0,
        "clients": 4,
        "tensors": 1,
        "exchanges": 1,
        "repeat": 1,
        "seconds": seconds,
        "server_cpu_s": 0.25,
        "client_cpu_s": 0.5,
        "wire_bytes_down": 42_000_000,
        "wire_bytes_up": 43_000_000,
        "server_peak_bytes": 400_000_000,
        **ABOUT,
    }
    return found | changed


# The exchange


def test_a_tiny_cell_of_feddkd_runs_and_is_not_run_again(tmp_path: Path) -> None:
    results = tmp_path / "lines.jsonl"
    options = ["--busy", "--system", "feddkd", "--megabytes", "0.01", "--clients", "2", "--repeats", "1", "--steps", "2"]
    options += ["--results", str(results)]
    assert exchange.main(options) == 0
    lines = read_lines(results)
    assert [(found["work"], len(found["seconds"])) for found in lines] == [(EXCHANGE, 7), (DKD_ROUND, 3)]
    model_bytes = 4 * int(0.01 * 2**20 / 4)
    for found in lines:
        least = 2 * model_bytes * found["exchanges"]
        for way in ("down", "up"):
            assert least < found[f"wire_bytes_{way}"] < 2 * least
        assert found["server_peak_bytes"] > 0
        assert found["command"].startswith("python benchmarks/peers/exchange.py --system 'feddkd'")
    assert exchange.main(options) == 0
    assert read_lines(results) == lines


def test_a_peer_that_is_not_installed_leaves_a_line_with_what_the_installation_said(tmp_path: Path) -> None:
    (tmp_path / "openfl.log").write_text("no such release", encoding="utf-8")
    results = tmp_path / "lines.jsonl"
    options = ["--busy", "--system", "openfl", "--megabytes", "0.01", "--repeats", "1", "--steps", "0"]
    assert exchange.main([*options, "--environments", str(tmp_path), "--results", str(results)]) == 1
    (found,) = read_lines(results)
    assert "no such release" in found["error"]
    assert len(missing([Cell("openfl", EXCHANGE, 0.01, 4, 1, 1, 1)], [found])) == 1


def test_the_systems_alternate_and_those_that_start_slowly_have_fewer_repeats() -> None:
    cells = list(all_cells([0.01, 10.0], clients=4, tensors=5, steps=20, repeats=2))
    assert [cell.peer for cell in cells[: len(SYSTEMS)]] == list(SYSTEMS)
    for system in SYSTEMS.values():
        mine = [cell for cell in cells if cell.peer == system.name and cell.work == EXCHANGE]
        assert len(mine) == 2 * min(2, system.repeats)
    assert {cell.tensors for cell in cells if cell.megabytes < 1} == {1}
    assert {cell.exchanges for cell in cells if cell.work == DKD_ROUND} == {21}


def test_a_round_of_several_exchanges_lasts_from_its_first_start_to_its_last_end() -> None:
    cell = Cell("feddkd", DKD_ROUND, 10.0, 4, 1, exchanges=2, repeat=1)
    spans = [[0.0, 50.0], [60.0, 61.0], [62.0, 64.0], [70.0, 71.0], [71.5, 73.5]]
    report = {"spans": spans, "server_cpu_s": 1, "client_cpu_s": 2, "wire_bytes_down": 3, "wire_bytes_up": 4, "server_peak_bytes": 5}
    found = result_of(cell, report)
    assert found["seconds"] == [4.0, 3.5]
    assert (found["server_cpu_s"], found["wire_bytes_up"], found["server_peak_bytes"]) == (2, 8, 5)


# The simulation


def test_a_bare_loop_over_the_shared_work_ends_with_feddkds_weights(tmp_path: Path) -> None:
    results = tmp_path / "result.json"
    shape = ["--clients", "3", "--cohort", "2", "--samples", "20", "--rounds", "2", "--repeats", "1"]
    assert simulation.main(["--busy", "--system", CHECKED, *shape, "--results", str(results)]) == 0
    (row,) = json.loads(results.read_text(encoding="utf-8"))["results"]
    assert (row["system"], len(row["seconds"])) == (CHECKED, 1)
    assert row["peak_bytes"] > 0

    path = tmp_path / "work.npz"
    write_work(path, Shape(3, 2, 20, 2), None)
    work = Work(path)
    for index in range(2):
        states = []
        for position in range(work.cohort):
            module = work.model()
            train(module, *work.data(index, position))
            states.append(module.state_dict())
        work.weights = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    own = tmp_path / "run"
    own.mkdir()
    run = Simulation(path, own, Shape(3, 2, 20, 2), tmp_path, 120.0)
    found = simulation.run_once(SIMULATORS[CHECKED], run, watched=False)
    assert simulation.difference({name: tensor.numpy() for name, tensor in work.weights.items()}, found["weights"]) < 1e-6


def test_other_weights_are_refused() -> None:
    expected = {"w": np.zeros(3, dtype=np.float32)}
    for value in (1e-3, np.nan):
        with pytest.raises(RunError, match="differ"):
            simulation.difference({"w": np.array([0, 0, value], dtype=np.float32)}, expected)
    with pytest.raises(RunError, match="not \\['w'\\]"):
        simulation.difference({"v": expected["w"]}, expected)


# The page


def test_a_table_has_medians_ratios_and_the_errors_of_what_did_not_run() -> None:
    lines = [
        line("feddkd", [0.1, 0.3]),
        line("feddkd", [0.2], repeat=2),
        line("flower grpc", [1.0]),
        line("nvflare", [], error="a long log\nRuntimeError: no"),
        line("openfl", [], error="busy"),
        line("openfl", [2.0]),
    ]
    text = tables.sections(lines, None)["peers:exchange"]
    assert "| feddkd | 0.20 s | 0.10 s to 0.30 s, 3 | 1.0 | 42.0 MB | 43.0 MB | 0.25 s | 0.50 s | 400.0 MB |" in text
    assert "| flower grpc | 1.00 s | 1.00 s to 1.00 s, 1 | 5.0 |" in text
    assert "`nvflare` could not be run:\n\n```text\na long log\nRuntimeError: no\n```" in text
    assert "`openfl` could not" not in text
    assert "flwr 2" in text
    assert "2026-01-02" in text


def test_the_table_of_simulations_has_the_difference_of_the_weights() -> None:
    rows = [
        {"system": CHECKED, "processes_asked": 1, "seconds": [2.0, 2.0], "peak_bytes": 1e9},
        {"system": "pfl", "processes_asked": 1, "seconds": [1.0, 3.0, 3.0], "peak_bytes": 2e9, "difference": 3e-8},
        {"system": "flower on Ray", "processes_asked": 2, "error": "no Ray"},
    ]
    result = {"clients": 9, "cohort": 3, "samples": 5, "data": "CIFAR-10", "results": rows, **ABOUT}
    text = tables.sections([], result)["peers:simulation"]
    assert "| pfl | 1 | 3.00 s | 1.00 s to 3.00 s, 3 | 1.50 | 2,000.0 MB | 3e-08 |" in text
    assert "no Ray" in text


def test_a_page_that_is_not_what_the_results_say_is_found(tmp_path: Path) -> None:
    page = tmp_path / "peers.md"
    page.write_text(tables.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "peers_exchange.jsonl").write_text(json.dumps(line("feddkd", [0.5])) + "\n", encoding="utf-8")
    assert tables.main(["--check"], page, tmp_path) == 1
    assert tables.main([], page, tmp_path) == 0
    assert tables.main(["--check"], page, tmp_path) == 0
    assert "0.50 s" in page.read_text(encoding="utf-8")


def test_the_page_is_what_the_committed_results_say() -> None:
    assert tables.main(["--check"]) == 0
