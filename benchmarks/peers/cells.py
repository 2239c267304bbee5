"""The cells of the exchange's benchmark, and the file that has a line for each that has run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feddkd.bench.workload import Workload
from peers.systems import SYSTEMS, System

EXCHANGE, DKD_ROUND = "exchange", "DKD round"
SIZES_MIB = (0.00004, 10.0, 100.0)
"""The first is ten elements, 40 bytes: it costs messages, not bytes."""

DKD_STEPS = 20
DKD_MIB = 10.0
DKD_SYSTEMS = {"feddkd": 3, "flower grpc": 3, "flower deployment": 1}
"""Rounds that are counted; the deployment engine takes minutes for one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of one system.

    Attributes:
        work: `EXCHANGE`, or `DKD_ROUND`: the exchanges of local training and of J steps, one after the other.
        exchanges: that make up one unit of the work: 1, or J + 1.
        repeat: number of the run, from 1.
    """

    peer: str
    work: str
    megabytes: float
    clients: int
    tensors: int
    exchanges: int
    repeat: int

    def workload(self, units: int) -> Workload:
        """The exchanges of a run that measures so many units, the warm-up first."""
        return Workload(self.clients, 1 + units * self.exchanges, self.megabytes, self.tensors)


def all_cells(sizes: Sequence[float], clients: int, tensors: int, steps: int, repeats: int) -> Iterator[Cell]:
    """All cells, so that systems alternate; a system that takes long to start has fewer repeats."""
    for repeat in range(1, repeats + 1):
        for size in sizes:
            for system in SYSTEMS.values():
                if repeat <= system.repeats:
                    yield Cell(system.name, EXCHANGE, size, clients, tensors if size >= 1 else 1, 1, repeat)
    if steps:
        for name in DKD_SYSTEMS:
            yield Cell(name, DKD_ROUND, min(DKD_MIB, max(sizes)), clients, tensors, steps + 1, 1)


def units_of(cell: Cell, system: System) -> int:
    """Exchanges or rounds that one run counts."""
    return DKD_SYSTEMS[cell.peer] if cell.work == DKD_ROUND else system.exchanges


def result_of(cell: Cell, report: dict[str, Any]) -> dict[str, Any]:
    """The line of a cell: what it is, the seconds of each unit, and what one unit took.

    Args:
        report: of the probe; its first exchange is warm-up.
    """
    counted = report["spans"][1:]
    units = [counted[first : first + cell.exchanges] for first in range(0, len(counted), cell.exchanges)]
    return {
        **asdict(cell),
        "seconds": [round(unit[-1][1] - unit[0][0], 6) for unit in units],
        **{name: round(report[name] * cell.exchanges, 4) for name in ("server_cpu_s", "client_cpu_s")},
        **{name: round(report[name] * cell.exchanges) for name in ("wire_bytes_down", "wire_bytes_up")},
        "server_peak_bytes": report["server_peak_bytes"],
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def cell_of(line: dict[str, Any]) -> Cell:
    return Cell(**{name: line[name] for name in Cell.__dataclass_fields__})


def missing(cells: Iterable[Cell], lines: Iterable[dict[str, Any]]) -> list[Cell]:
    """The cells that have no result yet; one that failed is tried again."""
    done = {cell_of(line) for line in lines if "error" not in line}
    return [cell for cell in cells if cell not in done]
