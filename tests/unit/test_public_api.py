"""What `import feddkd` promises: these names, their documentation, and no time."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import feddkd

PUBLIC = [
    "Algorithm",
    "ClientSide",
    "Cohort",
    "Config",
    "ConfigError",
    "ExchangeKind",
    "ExchangeRecord",
    "FedAvg",
    "FedDKD",
    "FedDKDError",
    "LocalObjective",
    "Observer",
    "Reply",
    "RoundRecord",
    "Run",
    "RunError",
    "ServerOptimizer",
    "Site",
    "Table",
    "Task",
    "Tensors",
    "TrackedRun",
    "Tracker",
    "__version__",
    "load_run",
    "own_settings",
    "run",
    "train_locally",
]
PROGRAM = """
import json, sys
before = set(sys.modules)
import feddkd
imported = sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
print(json.dumps([imported, sorted(name for name in sys.modules if name.startswith("feddkd."))]))
"""


def output_of(program: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_public_names_are_these() -> None:
    assert feddkd.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(feddkd))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_a_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(feddkd, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_on_a_page_of_the_reference(name: str) -> None:
    reference = Path(__file__).parents[2] / "docs" / "reference"
    text = "".join((reference / page).read_text() for page in ("python.md", "extension.md"))
    (members,) = re.findall(r"members: \[(.*)\]", text)
    described = re.findall(r"^::: feddkd\.[\w.]*\.(\w+)$", text, re.MULTILINE)
    assert name in [*members.split(", "), *described, *re.findall(r"`feddkd\.(\w+)`", text)]


def test_public_methods_of_a_run_are_documented() -> None:
    members = [name for name in vars(feddkd.Run) if not name.startswith("_")]
    assert {"folder", "config", "status", "summary", "rounds", "exchanges", "to_pandas", "model", "report"} <= set(members)
    assert all(inspect.getdoc(inspect.getattr_static(feddkd.Run, name)) for name in members)


def test_type_checkers_see_every_name_where_it_is_imported_from() -> None:
    (block,) = [node for node in ast.parse(inspect.getsource(feddkd)).body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    assert sorted(seen) == [name for name in PUBLIC if name != "__version__"]
    assert {name: f"feddkd.{module}" for name, module in vars(feddkd)["_MODULE_OF"].items()} == seen


def test_importing_imports_nothing_else() -> None:
    assert json.loads(output_of(PROGRAM)) == [["feddkd"], []]


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'feddkd' has no attribute 'runs'"):
        getattr(feddkd, "runs")  # noqa: B009  # mypy knows as well that there is none
