"""Measure what one hostile client of ten does to the final model, and write docs/attacks.md.

python benchmarks/attacks.py [--name NAME] [--again] [--jobs N] [--check]

Cells that are in the result file already are not run again. With `--check` nothing runs; the page
must be what the file says.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from attack_cells import (
    ALGORITHMS,
    CLIENTS,
    PARTITIONS,
    ROUNDS,
    SEEDS,
    Cell,
    Key,
    largest,
    mean_accuracy,
    run_cell,
    start_worker,
)
from attackers import ATTACKS
from niid_bench.markdown import MISSING, table
from niid_bench.pages import write

from feddkd.bench.environment import environment, source_commit
from feddkd.config import Config

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "attacks.json"
PAGE = ROOT / "docs" / "attacks.md"
CODE = ("feddkd", "benchmarks/attacks.py", "benchmarks/attack_cells.py", "benchmarks/attackers.py")

NOW, BEFORE = "now", "before"
MARGIN = 1.5
"""The limits are so many times what the honest clients need."""


class Measured:
    """The cells that were measured under one name, kept in the result file."""

    def __init__(self, name: str, path: Path = RESULTS) -> None:
        self._path = path
        self._file: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.about: dict[str, Any] = self._file.setdefault(name, {"cells": []})

    @property
    def cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = self.about["cells"]
        return cells

    def describe(self, about: Mapping[str, Any]) -> None:
        """Say how and where the cells are measured."""
        cells = self.about.pop("cells")
        self.about.clear()
        self.about.update({**about, "cells": cells})

    def of(self, cell: Cell) -> dict[str, Any] | None:
        """What was measured of a cell; None if nothing was."""
        return next((found for found in self.cells if _key(found) == cell.key), None)

    def store(self, result: dict[str, Any]) -> None:
        """Add a cell to the file, which is replaced as a whole."""
        self.cells.append(result)
        order = [cell.key for cell in all_cells()]
        self.cells.sort(key=lambda found: order.index(_key(found)))
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._file, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


def _key(result: Mapping[str, Any]) -> Key:
    return result["algorithm"], result["partition"], result["attack"], result["limited"]


def all_cells() -> Iterator[Cell]:
    """All cells in the order of the tables, those with limits last."""
    federations = [(algorithm, partition) for algorithm in ALGORITHMS for partition in PARTITIONS]
    for limited in (False, True):
        for name, attack in ATTACKS.items():
            for algorithm, partition in federations:
                if attack.only_for in (None, algorithm) and limited >= attack.needs_limits:
                    yield Cell(algorithm, partition, name, limited)


def have_limits() -> bool:
    """Whether this code has the settings that limit a client."""
    return "aggregation" in Config.model_fields


def limits_of(undisturbed: Mapping[str, Any]) -> list[str]:
    """Overrides that limit a client to a little more than the honest ones need."""
    norms = largest(undisturbed["largest_norms"])
    limits = [f"aggregation.max_norm.{name}={MARGIN * norm:.3g}" for name, norm in norms.items()]
    return [*limits, f"scheduler.max_examples={int(MARGIN * max(undisturbed['largest_count']))}"]


def measure(measured: Measured, jobs: int) -> None:
    """Run the cells that are missing; first those without limits, which the limits follow from."""
    for limited in (False, True) if have_limits() else (False,):
        cells = [cell for cell in all_cells() if cell.limited == limited]
        missing = [cell for cell in cells if measured.of(cell) is None]
        with ProcessPoolExecutor(jobs, get_context("spawn"), start_worker) as pool:
            runs = [pool.submit(run_cell, cell, _limits(measured, cell)) for cell in missing]
            for number, run in enumerate(as_completed(runs), start=1):
                result = run.result()
                measured.store(result)
                name = " ".join(map(str, _key(result)))
                print(f"{number}/{len(missing)} {name}: {_cell(result)}", flush=True)


def _limits(measured: Measured, cell: Cell) -> list[str]:
    if not cell.limited:
        return []
    undisturbed = measured.of(cell.undisturbed)
    assert undisturbed is not None, "cells without limits are measured first"
    return limits_of(undisturbed)


def page_sections(file: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by the names of their places."""
    about = file.get(NOW) or file[BEFORE]
    return {
        "attacks:defaults": _table([cell for cell in about["cells"] if not cell["limited"]]),
        "attacks:limits": _table([cell for cell in about["cells"] if cell["limited"]]),
        "attacks:source": _source(about),
    }


def _table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Final accuracy in percent: a row for each attack, a column for each federation."""
    found = {_key(cell)[:3]: cell for cell in cells}
    pairs = [(algorithm, partition) for algorithm in ALGORITHMS for partition in PARTITIONS]
    titles = [f"{ALGORITHMS[algorithm]}, {PARTITIONS[partition]}" for algorithm, partition in pairs]
    rows = []
    for name, attack in ATTACKS.items():
        results = [found.get((*pair, name)) for pair in pairs]
        if any(results):
            texts = [_cell(result) if result else MISSING for result in results]
            rows.append([attack.title, *texts])
    return table(["the hostile client", *titles], rows) if rows else "Not measured yet."


def _cell(result: Mapping[str, Any]) -> str:
    """Mean and lowest accuracy, how runs failed, and whose contributions were left out."""
    accuracy = mean_accuracy(result)
    failed = sum(failure is not None for failure in result["failure"])
    parts = []
    if accuracy is not None:
        lowest = min(found for found in result["accuracy"] if found is not None)
        parts.append(f"{100 * accuracy:.1f} ({100 * lowest:.1f})")
    if failed:
        useless = "the model is not finite" in result["failure"]
        what = "no finite model" if useless else "the run fails"
        parts.append(what if failed == len(SEEDS) else f"{what}, {failed} of {len(SEEDS)}")
    share = sum(result["hostile_left_out"]) / len(SEEDS)
    marks = "†" if share > 0.99 else "‡" if share > 0 else ""
    marks += "§" if any(result["honest_left_out"]) else ""
    return " ".join([", ".join(parts), marks]).strip()


def _source(about: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, about["seeds"]))
    versions, path = about["versions"], RESULTS.relative_to(ROOT)
    return (
        f"Seeds {seeds}; feddkd {versions['feddkd']} at commit {about['commit']}, "
        f"torch {versions['torch']}, {about['cpu']} ({about['cpu_capability']}). "
        f"From [`{path}`](../{path}): `{about['command']}`."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure attacks, and write docs/attacks.md.")
    parser.add_argument("--name", default=NOW, help=f"key of the cells; the page shows {NOW!r}")
    parser.add_argument("--again", action="store_true", help="measure all cells again")
    parser.add_argument("--jobs", type=int, default=2, help="processes that run cells")
    parser.add_argument("--check", action="store_true", help="only compare page and results")
    options = parser.parse_args()
    if not options.check:
        measured = Measured(options.name)
        if options.again:
            measured.cells.clear()
        measured.describe(about(shlex.join(["python", "benchmarks/attacks.py", *sys.argv[1:]])))
        measure(measured, options.jobs)
    file = json.loads(RESULTS.read_text(encoding="utf-8"))
    sections, script = page_sections(file), "benchmarks/attacks.py"
    return int(not write(PAGE, sections, check=options.check, script=script))


def about(command: str) -> dict[str, Any]:
    """How and where cells are measured."""
    return {
        "command": command,
        "seeds": list(SEEDS),
        "rounds": ROUNDS,
        "clients": CLIENTS,
        "commit": source_commit(ROOT, CODE),
        **environment(),
    }


if __name__ == "__main__":
    sys.exit(main())
