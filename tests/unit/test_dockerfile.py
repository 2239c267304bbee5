"""The Dockerfile: what it copies is there for it, what it builds with can come from elsewhere, what it runs as."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import dockerfile
import pytest
from doc_pages import ROOT

from feddkd import __version__

BUILD, IMAGE = dockerfile.stages()
MIRRORS = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CERT", "TORCH_INDEX", "EXTRAS"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    copied = [source for each in BUILD.all("COPY") for source in each.rest.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in admitted, source


def test_all_that_the_package_is_built_from_is_copied() -> None:
    copied = {source for each in BUILD.all("COPY") for source in each.rest.split()[:-1]}
    assert {"feddkd", "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]} <= copied


def test_every_source_of_packages_can_be_replaced_and_no_secret_is_an_argument() -> None:
    assert BUILD.arguments.keys() >= MIRRORS
    assert BUILD.arguments["TORCH_INDEX"].endswith("/cpu")
    installs = [each for each in BUILD.all("RUN") if "pip install" in each.rest]
    assert len(installs) == 2
    for each in installs:
        assert "--mount=type=secret,id=pip_conf" in each.rest
        assert "--mount=type=secret,id=ca" in each.rest
    assert BUILD.environment["PIP_CONFIG_FILE"] == "/run/secrets/pip_conf"


def test_the_extras_exist_and_draw_the_report() -> None:
    extras = BUILD.arguments["EXTRAS"].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    assert "plot" in extras


def test_the_image_says_its_version_and_runs_as_its_own_user() -> None:
    assert IMAGE.arguments["VERSION"] == __version__
    assert IMAGE.only("USER").rest == "10001:10001"
    assert IMAGE.only("ENTRYPOINT").exec_form == ["feddkd"]
    assert IMAGE.only("VOLUME").rest == IMAGE.only("WORKDIR").rest == "/state"
    users = next(each.rest for each in IMAGE.all("RUN") if "useradd" in each.rest)
    assert "--uid 10001" in users


def test_nothing_that_a_program_caches_is_outside_of_tmp() -> None:
    caches = {name: value for name, value in IMAGE.environment.items() if name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")}
    assert len(caches) == 2
    assert all(value.startswith("/tmp/") for value in caches.values())
    assert IMAGE.environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_check_of_health_is_a_program_that_runs() -> None:
    check = IMAGE.only("HEALTHCHECK").exec_form
    compile(check[2], "healthcheck", "exec")
    assert check[:2] == ["python3", "-c"]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_line_that_is_no_instruction_is_found(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch\nRUN one \\\n  # a comment\n  two\nand three\n")
    with pytest.raises(ValueError, match="and three"):
        dockerfile.stages(file)
    file.write_text("FROM scratch\nRUN one \\\n  # a comment\n  two\n")
    assert dockerfile.stages(file)[0].only("RUN").command == "one two"
