"""The files around the code agree with the code and with each other."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import feddkd

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(text)
    for text in PROJECT["dependencies"] + [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    if Requirement(text).name != PROJECT["name"]
]
SCRIPTS = sorted([*(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"])


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt is name==version"
    found: dict[str, Version] = {canonicalize_name(name): Version(version) for name, version in pairs}
    assert len(found) == len(lines), "no name is pinned twice"
    return found


def copied_by_dockerfile() -> list[str]:
    instructions = re.findall(r"^COPY (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    own = [shlex.split(arguments)[:-1] for arguments in instructions if not arguments.startswith("--from=")]
    return [source for sources in own for source in sources]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_constraints_pin_every_dependency_to_a_version_that_it_allows(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_a_dependency_has_a_lower_bound(requirement: Requirement) -> None:
    assert any(part.operator == ">=" for part in requirement.specifier)


def test_ci_installs_every_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (own,) = [Requirement(text) for text in extras["dev"] if Requirement(text).name == PROJECT["name"]]
    installed = re.findall(r"scripts/install (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert own.extras.union(*(names.split(",") for names in installed)) == extras.keys()


def test_constraints_suit_every_platform() -> None:
    assert not [name for name, version in pins().items() if version.local]


def test_changelog_has_this_version() -> None:
    assert re.search(rf"^## \[{re.escape(feddkd.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    sources = copied_by_dockerfile()
    assert "feddkd" in sources
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignore, source


def test_dockerfile_and_makefile_use_a_python_that_the_project_allows() -> None:
    requires = SpecifierSet(PROJECT["requires-python"])
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=python:([\d.]+)-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (oldest,) = re.findall(r"sys\.version_info < \((\d+, \d+)\)", (ROOT / "Makefile").read_text())
    assert requires.contains(image)
    assert requires == SpecifierSet(">=" + oldest.replace(", ", "."))


def test_dockerfile_uses_no_moving_latest_tag() -> None:
    images = re.findall(r"^(?:FROM|ARG PYTHON_IMAGE)[ =](\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert images
    assert all(image == "${PYTHON_IMAGE}" or (":" in image and not image.endswith(":latest")) for image in images)


def test_generated_code_runs_with_the_oldest_protobuf_that_the_project_allows() -> None:
    (protobuf,) = [requirement for requirement in REQUIREMENTS if requirement.name == "protobuf"]
    (oldest,) = [Version(part.version) for part in protobuf.specifier if part.operator == ">="]
    generated = sorted((ROOT / "feddkd" / "transport" / "pb").glob("*_pb2.py"))
    assert generated
    for path in generated:
        (needed,) = re.findall(r"^# Protobuf Python Version: (\S+)$", path.read_text(), re.MULTILINE)
        assert Version(needed) <= oldest, path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_scripts_are_executable_bash(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
