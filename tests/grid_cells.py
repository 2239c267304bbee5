"""Cells of the benchmarks' grid that run in this process, and are small."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from feddkd.bench import runs
from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.observability.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]

TINY = [
    "data.name=digits",
    "model.name=mlp",
    "data.subset=300",
    "partition.clients=5",
    "partition.labels=2",
    "dkd.steps=1",
    "training.epochs=1",
]
"""Overrides that make a cell small."""


def run_here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let runs be carried out in this process instead of one of their own, and always by its engine; those of seed 13 fail.

    Returns:
        Grows by a line for each run: its folder, and the engine it was to run on if that is another.
    """
    started: list[str] = []

    def carry_out(self: Any, command: list[str], **options: Any) -> int:
        config, folder = Config.load(Path(command[4])), Path(command[command.index("--out") + 1])
        assert folder.is_absolute()
        engine = command[command.index("--engine") + 1]
        started.append(folder.name if engine == "in-process" else f"{folder.name} on {engine}")
        if config.seed == 13:
            return 1
        with contextlib.closing(Ledger(folder, config)) as ledger:
            run_federation(config, "in-process", folder, [ledger])
        return 0

    monkeypatch.setattr(runs._Processes, "run", carry_out)
    return started
