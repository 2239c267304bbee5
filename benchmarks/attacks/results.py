"""The file with a line for each cell that has run."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from attacks.cells import ROOT, Cell
from attacks.fingerprint import fingerprint

RESULTS = ROOT / "benchmarks" / "results" / "attacks.jsonl"


_OF_A_MACHINE = re.compile(r" --(data-root|jobs|results)[ =]\S+")
"""Options that say nothing of a result."""


class Results:
    """One line of JSON a cell; every change replaces the file whole, so no reader meets half a
    line. The commands in it have no paths of the machine.
    """

    def __init__(self, path: Path = RESULTS) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._lines = {Cell.of(line): _portable(line) for line in map(json.loads, text.splitlines())}

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._lines.values())

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """Return what came of a cell; None if it has not run."""
        return self._lines.get(cell)

    def is_current(self, cell: Cell) -> bool:
        """Tell whether a cell has run with the settings and with the code that it has today."""
        line = self.of(cell)
        return line is not None and line.get("fingerprint") == fingerprint(cell)

    def store(self, line: dict[str, Any]) -> None:
        """Add the line of a cell, in place of the one it had."""
        self._lines[Cell.of(line)] = _portable(line)
        self._write()

    def keep(self, cells: Container[Cell]) -> None:
        """Leave out the lines of all other cells."""
        self._lines = {cell: line for cell, line in self._lines.items() if cell in cells}
        self._write()

    def _write(self) -> None:
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(each) + "\n" for each in self._lines.values()), encoding="utf-8")
        partial.replace(self.path)


def _portable(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "command": _OF_A_MACHINE.sub("", line["command"])}
