"""The file with a line for each cell that has run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attacks.cells import ROOT, Cell

RESULTS = ROOT / "benchmarks" / "results" / "attacks.jsonl"


class Results:
    """One line of JSON a cell; every change replaces the file whole, so no reader meets half a
    line.
    """

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._lines = {Cell.of(line): line for line in map(json.loads, text.splitlines())}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._lines.values())

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """Return what came of a cell; None if it has not run."""
        return self._lines.get(cell)

    def is_current(self, cell: Cell) -> bool:
        """Tell whether a cell has run with the settings that it has today."""
        line = self.of(cell)
        return line is not None and line["settings"] == cell.settings()

    def store(self, line: dict[str, Any]) -> None:
        """Add the line of a cell, in place of the one it had."""
        self._lines[Cell.of(line)] = line
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(each) + "\n" for each in self._lines.values()), encoding="utf-8")
        partial.replace(self.path)
