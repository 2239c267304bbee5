import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from feddkd import extras
from feddkd.extras import PACKAGES, install_command

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("extra", PACKAGES)
def test_packages_are_those_of_the_extra(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"][extra]
    assert {Requirement(text).name for text in requirements} == set(PACKAGES[extra])


def test_a_clone_is_installed_by_its_own_script() -> None:
    setting, script, extra = shlex.split(install_command("vision"))
    assert setting == f"PYTHON={sys.executable}"
    assert Path(script) == ROOT / "scripts" / "install"
    assert extra == "vision"


def test_another_installation_gets_the_packages_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_root", lambda: tmp_path)
    monkeypatch.setattr(sys, "executable", "/a place/python")
    assert install_command("plot") == "'/a place/python' -m pip install matplotlib jinja2"


def test_no_text_names_an_extra_that_pip_would_look_up_on_pypi() -> None:
    sources = [
        *ROOT.glob("feddkd/**/*.py"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.toml"),
        *ROOT.glob("examples/**/*.md"),
        ROOT / "README.md",
    ]
    on_pypi = re.compile(r"""\bfeddkd\[[\w,]+\]['"]""")  # without a path or an address behind it
    named = [path for path in sources if on_pypi.search(path.read_text())]
    assert named == [ROOT / "feddkd" / "extras.py"]
