import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from feddkd import torchvision_compat
from feddkd.errors import DataError
from feddkd.extras import install_command
from feddkd.torchvision_compat import import_torchvision

FakePackage = Callable[[str], Path]


@pytest.fixture
def fake_package(tmp_path: Path) -> FakePackage:
    """Writes a package called torchvision with a submodule; gives the folder to put on the import path."""

    def write(init: str) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(init)
        (package / "part.py").write_text("import torch\nmade_with_operators = hasattr(torch.ops.torchvision, 'nms')\n")
        return tmp_path

    return write


@pytest.fixture
def no_torchvision_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # makes monkeypatch restore the entry whatever the test imports
    monkeypatch.delitem(sys.modules, "torchvision")


def run_python(code: str, *path: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*path, Path(__file__).parents[2])))}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_installed_torchvision_imports_in_a_fresh_process_and_builds_a_model() -> None:
    code = (
        "from feddkd.torchvision_compat import import_torchvision\n"
        "first = import_torchvision()\n"
        "import torchvision\n"
        "assert first is torchvision is import_torchvision()\n"
        "print(len(list(first.models.resnet18(weights=None).parameters())))"
    )
    assert run_python(code) == "62"


def test_missing_operators_are_declared_and_half_imported_modules_forgotten(fake_package: FakePackage) -> None:
    folder = fake_package(
        "import torch\nfrom torchvision import part\n"
        "if not hasattr(torch.ops.torchvision, 'nms'):\n    raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    code = (
        "from feddkd.torchvision_compat import import_torchvision\n"
        "import gc, torch\n"
        "package = import_torchvision()\n"
        "gc.collect()\n"
        "print(package.part.made_with_operators, torch.ops.torchvision.nms.default._schema, torch.ops.torchvision.qnms.default._schema)"
    )
    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert run_python(code, folder) == f"True torchvision::nms{schema} torchvision::qnms{schema}"


@pytest.mark.usefixtures("no_torchvision_yet")
def test_a_torchvision_that_imports_is_left_alone(fake_package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(fake_package("answer = 42\n")))
    before = len(torchvision_compat._libraries)
    assert import_torchvision().answer == 42
    assert len(torchvision_compat._libraries) == before


@pytest.mark.usefixtures("no_torchvision_yet")
def test_another_failure_of_the_import_is_not_hidden(fake_package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(fake_package("raise RuntimeError('the disk is on fire')\n")))
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        import_torchvision()


@pytest.mark.usefixtures("no_torchvision_yet")
def test_a_module_that_torchvision_misses_is_not_taken_for_torchvision(fake_package: FakePackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(fake_package("import no_such_dependency\n")))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        import_torchvision()


def test_without_torchvision_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=re.escape(install_command("vision"))):
        import_torchvision()
