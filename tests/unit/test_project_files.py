"""What `feddkd new` writes, and what it refuses to write."""

from __future__ import annotations

import ast
import os
import re
import string
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.cli.project_files import GIT_IGNORE, OTHER_FOLDERS, check_name, check_sites, render_project, write_project
from feddkd.config import Config
from feddkd.config.toml import load_toml
from feddkd.errors import ConfigError

SITES = ["north", "south-2", "no"]
SHARED = "README.md federation.toml pyproject.toml tests/test_project.py mine/data.py mine/model.py mine/algorithm.py"


@pytest.mark.parametrize(
    ("name", "reason", "proposal"),
    [
        ("My-Project", "begins with a letter", "my_project"),
        ("9lives", "begins with a letter", "lives"),
        ("my project", "begins with a letter", "my_project"),
        ("größe", "begins with a letter", "gro_e"),
        ("ünicode", "begins with a letter", "unicode"),
        ("…", "begins with a letter", "my_project"),
        ("class", "keyword", "class_project"),
        ("json", "hide the module", "json_project"),
        ("torch", "hide the module", "torch_project"),
        ("feddkd", "hide the module", "feddkd_project"),
        ("sites", "another folder", "sites_project"),
        ("state", "git and the archives for sites leave out", "state_project"),
    ],
)
def test_a_name_that_no_package_can_have_is_refused_with_one_that_will_do(name: str, reason: str, proposal: str) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        check_name(name)
    assert str(refused.value).endswith(f"{proposal!r} would do")
    check_name(proposal)


@given(st.text(max_size=20) | st.text(string.ascii_letters + string.digits + "-_. ", max_size=20))
def test_the_proposed_name_is_always_one_that_is_accepted(name: str) -> None:
    try:
        check_name(name)
    except ConfigError as refused:
        found = re.search(r"'([a-z0-9_]+)' would do$", str(refused))
        assert found is not None
        check_name(found[1])


def test_folders_that_a_project_has_anyway_are_no_names_of_packages() -> None:
    written = {path.parts[0] for path in render_project("mine", SITES) if len(path.parts) > 1}
    assert written - {"mine"} <= OTHER_FOLDERS


IGNORED = [line.rstrip("/") for line in GIT_IGNORE.read_text().splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("pattern", IGNORED)
def test_no_package_and_no_site_has_a_name_that_git_and_the_archives_leave_out(pattern: str) -> None:
    name = pattern.replace("*", "some")
    with pytest.raises(ConfigError, match=r"would do$") as refused:
        check_name(name)
    assert f"; {name!r} would do" not in str(refused.value)
    with pytest.raises(ConfigError, match="--sites: "):
        check_sites(["north", name])


def test_what_the_archives_for_sites_leave_out_is_ignored_by_git_too() -> None:
    left_out = set(re.findall(r"--exclude=(\S+)", render_project("mine", SITES)[PurePosixPath("SITES.md")]))
    assert left_out <= set(IGNORED)


def test_modules_that_a_project_has_anyway_are_no_names_of_packages() -> None:
    """Nor are those that its tests import: they would find the package in their place."""
    files = render_project("mine", SITES)
    modules = {path.stem for path in files if path.suffix == ".py" and path.parts[0] != "mine"}
    nodes = [node for path, text in files.items() if path.suffix == ".py" for node in ast.walk(ast.parse(text))]
    imported = {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {"test_project", "make_site_data"} <= modules
    for name in (modules | imported | {"conftest", "pytest"}) - {"mine", "__future__"}:
        with pytest.raises(ConfigError, match=f"{name!r} cannot be the name of a project: .* would do"):
            check_name(name)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["North", "south"], "'North' is not 1 to 64 of a-z 0-9"),
        (["north", ""], "'' is not 1 to 64"),
        (["north", "../south"], "'../south' is not 1 to 64"),
        (["north", "server"], "'server' is the name of the server"),
        (["a", "b", "a"], "'a' is given twice"),
        (["alone"], "at least two sites"),
    ],
)
def test_sites_that_cannot_be_told_apart_or_named_are_refused(sites: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_sites(sites)


@pytest.mark.parametrize("sites", [[], SITES], ids=["one machine", "sites"])
def test_no_placeholder_is_left_and_every_file_is_what_its_name_says(sites: list[str], tmp_path: Path) -> None:
    files = render_project("mine", sites)
    assert set(SHARED.split()) <= set(map(str, files))
    for path, text in files.items():
        assert "@@" not in text, path
        assert not re.search(r"PACKAGE|SITE$", str(path))
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
        if path.suffix == ".py":
            ast.parse(text)
            assert len(max(text.splitlines(), key=len)) <= 100
    write_project(tmp_path / "mine", files)
    assert Config.load(tmp_path / "mine" / "federation.toml").data.name == "mine.data:load"


def test_every_site_gets_a_file_of_its_own_and_the_server_knows_them_all(tmp_path: Path) -> None:
    write_project(tmp_path, render_project("mine", SITES))
    assert Config.load(tmp_path / "server" / "server.toml").scheduler.clients == SITES
    for site in SITES:
        data = load_toml(tmp_path / "sites" / site / "site.toml")["data"]
        assert data == {"name": "mine.data:load", "root": f"sites/{site}/data", "unlabelled": "minus_one"}


def test_the_compose_file_has_a_service_for_the_server_and_each_site() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load(render_project("mine", SITES)[PurePosixPath("compose.yaml")])["services"]
    assert list(services) == ["server", *SITES]  # a site named "no" is no boolean
    for name, service in services.items():
        own = "server" if name == "server" else f"sites/{name}"
        assert service["volumes"] == ["./mine:/project/mine:ro", f"./{own}:/project/{own}"]
        for argument in service["command"]:
            path = argument.rpartition("=")[2]
            assert "/" not in path or path.startswith(f"{own}/"), "a container sees its own folder alone"


@pytest.mark.parametrize(
    "name", ["two words", "fed.example.org:50061", "10.0.0.1:50061", "1.2.3", "300.1.1.1", "a..b", "-x", "", "a,DNS:b"]
)
def test_what_cannot_be_a_host_is_named_and_no_certificate_is_made(name: str, tmp_path: Path) -> None:
    write_project(tmp_path / "mine", render_project("mine", SITES))
    command = ["bash", "make_certificates.sh", "fed.example.org", name]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, cwd=tmp_path / "mine", env={"PATH": path}, capture_output=True, text=True, check=False)
    said = f"feddkd: {name.split(',')[-1]!r} is neither a host name nor an address; no certificate was made\n"
    assert (done.returncode, done.stderr) == (2, said)
    assert not (tmp_path / "mine" / "server" / "server.pem").exists()


def test_a_folder_that_is_not_empty_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; nothing was written"):
        write_project(tmp_path, render_project("mine", []))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "mine")]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    files = render_project("mine", [])
    write_project(tmp_path, files)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(map(str, files))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot write .*mine: File exists"):
        write_project(tmp_path / "mine", render_project("mine", []))
    assert (tmp_path / "mine").read_text() == "a file"
