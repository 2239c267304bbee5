"""Run the cells of the attack laboratory. A finished one is run again only where its rule, its attack
or their settings have changed. Lines of cells that no table shows any more are left out.

    python benchmarks/attacks/run.py                            everything that is missing
    python benchmarks/attacks/run.py --only rule=median --only attack=alie       a part of it
    python benchmarks/attacks/run.py --list                     only count what is missing

Each finished cell is one line of benchmarks/results/attacks.jsonl; benchmarks/attacks/page.py makes
the page of them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench.grid import main_guard

from attacks.cells import DATA_ROOT, ROOT, Cell, all_cells
from attacks.fingerprint import fingerprint
from attacks.results import RESULTS, Results
from attacks.running import run_cell, start_worker
from feddkd.bench.environment import cpu_model, environment, source_commit

CODE = ("feddkd", "benchmarks/attacks")


def chosen(only: Sequence[str], cells: Sequence[Cell]) -> list[Cell]:
    """Select cells by KEY=VALUE; of several values of one key any will do.

    Raises:
        ValueError: a key is not of a cell.
    """
    wanted: dict[str, set[str]] = {}
    for pair in only:
        key, _, value = pair.partition("=")
        if key not in Cell.__dataclass_fields__:
            raise ValueError(f"--only {pair}: a cell has {', '.join(Cell.__dataclass_fields__)}")
        wanted.setdefault(key, set()).add(value)
    return [cell for cell in cells if all(str(getattr(cell, key)) in values for key, values in wanted.items())]


def measure(results: Results, cells: Sequence[Cell], jobs: int, data_root: Path, about: dict[str, Any]) -> None:
    """Run cells in their order, and store each as it is finished with the code that is there now; an
    interrupt ends those that are under way.
    """
    marks = {cell: fingerprint(cell) for cell in cells}
    with ProcessPoolExecutor(jobs, get_context("spawn"), start_worker) as pool:
        runs = [pool.submit(partial(run_cell, cell, data_root)) for cell in cells]
        try:
            for number, run in enumerate(as_completed(runs), start=1):
                line = run.result()
                results.store({**line, **about, "fingerprint": marks[Cell.of(line)]})
                print(f"{number}/{len(cells)} {told(line)}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise


def told(line: dict[str, Any]) -> str:
    """Say in a line what came of a cell."""
    names = " ".join(str(line[name]) for name in Cell.__dataclass_fields__)
    outcome = line["failure"] if line["accuracy"] is None else f"{100 * line['accuracy']:.1f}"
    return f"{names}: {outcome} ({line['cpu_s']} s)"


def about_now(command: str) -> dict[str, Any]:
    """Say how and where cells are run."""
    now = environment()
    versions = {name: now["versions"][name] for name in ("feddkd", "python", "torch", "numpy") if name in now["versions"]}
    return {
        "command": command,
        "commit": source_commit(ROOT, CODE),
        "date": now["date"],
        "versions": versions,
        "cpu": cpu_model(),
        "cpu_capability": now["cpu_capability"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the cells of the attack laboratory.")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE", help="of a cell: rule=median")
    parser.add_argument("--again", action="store_true", help="run finished cells too, and replace their lines")
    parser.add_argument("--jobs", type=int, default=2, help="processes that run cells")
    parser.add_argument("--data-root", type=Path, default=DATA_ROOT, metavar="DIR", help="has a folder mnist; default: data")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="only count the cells that are missing")
    options = parser.parse_args()
    results = Results(options.results)
    try:
        cells = chosen(options.only, all_cells())
    except ValueError as error:
        parser.error(str(error))
    missing = [cell for cell in cells if options.again or not results.is_current(cell)]
    print(f"{len(missing)} of {len(cells)} cells are missing", flush=True)
    if not options.list:
        results.keep(set(all_cells()))
        command = shlex.join(["python", "benchmarks/attacks/run.py", *sys.argv[1:]])
        measure(results, missing, options.jobs, options.data_root, about_now(command))
    return 0


if __name__ == "__main__":
    main_guard(main)
