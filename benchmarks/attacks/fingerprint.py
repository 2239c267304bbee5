"""Says by which code and configuration a cell is decided, so that it runs again where they change."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from attacks.cells import FEDDKD, ROOT, Cell
from attacks.known import ATTACKS
from feddkd.config import Config
from feddkd.scheduler.rule_book import find_rule

OF_ALL = ("feddkd/scheduler/rule_book.py", "feddkd/scheduler/plan.py", "benchmarks/attacks/running.py", "benchmarks/attacks/clients.py")
"""Files that decide every cell: who reduces what, with which weights, and who attacks."""

OF_FEDDKD = ("feddkd/aggregator/server_optimizer.py",)
"""Files that decide FedDKD's steps."""

FOLLOWED = {"feddkd.aggregator": ROOT, "attacks": ROOT / "benchmarks"}
"""Packages whose imports count as part of a file, and where they are. The rest of the project is left out: it has
tests of its own, and a line says of which commit it is."""

_DIGITS = 12


def fingerprint(cell: Cell) -> str:
    """Return a hash of what decides a cell: its settings, how they are resolved, and the code of its rule and attack.

    Comments and docstrings do not count. The same code may have another hash under another version of
    Python, which writes it in another form.
    """
    rule, resolved = _resolved(tuple(cell.settings()))
    attack = inspect.getfile(type(ATTACKS[cell.attack]))
    own = [Path(rule), Path(attack), *(ROOT / path for path in OF_FEDDKD if cell.algorithm == FEDDKD)]
    files = with_imports(own) | {ROOT / path for path in OF_ALL}
    found = {str(path.relative_to(ROOT)): code_hash(path) for path in sorted(files)}
    text = json.dumps([cell.settings(), resolved, found], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


@cache
def _resolved(settings: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return the file of the rule, and the part of the configuration that it depends on, defaults included."""
    config = Config.load(overrides=settings)
    aggregation = config.aggregation.model_dump(mode="json", exclude={"outlier_exchanges"})
    rule = config.aggregation.rule_of("local_train")
    if not rule.is_mean:
        del aggregation["outlier_ratio"]  # only the mean acts on it
    scheduler = config.scheduler.model_dump(mode="json", include={"max_examples", "weights"})
    return inspect.getfile(find_rule(rule)), {**aggregation, **scheduler}


def with_imports(files: Iterable[Path]) -> set[Path]:
    """Return files and what they import from `FOLLOWED`, directly or through each other."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(path)
    return found


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    """Return the files that one imports from `FOLLOWED`."""
    names = {node.module for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom) and node.module}
    return tuple(
        FOLLOWED[package] / f"{name.replace('.', '/')}.py"
        for name in sorted(names)
        for package in FOLLOWED
        if name.startswith(f"{package}.")
    )


@cache
def code_hash(path: Path) -> str:
    """Return a hash of a file without its comments and docstrings."""
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
