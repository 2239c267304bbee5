"""A project that `feddkd new` writes works from nothing, as its pages say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import free_port
from processes import Process

import feddkd

ROOT = Path(feddkd.__file__).parents[1]
PYTHON = (sys.executable, "-W", "error")
FEDDKD = (*PYTHON, "-m", "feddkd")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a script calls feddkd
    "PYTHONPATH": str(ROOT),
    "MYPYPATH": str(ROOT),
}
TIMEOUT_S = 250
SITES = ("east", "north", "south")


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new(folder: Path, *options: str) -> Path:
    """The folder of a new project, my_project."""
    run(*FEDDKD, "new", "my_project", *options, cwd=folder)
    return folder / "my_project"


def overrides(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def commands_of(page: Path) -> list[list[str]]:
    """The indented lines of a page, as commands; a redirection is left out."""
    lines = re.findall(r"^ {4,}(\S.*)$", page.read_text(), re.MULTILINE)
    return [shlex.split(line.partition(" > ")[0]) for line in lines]


def test_it_says_what_it_wrote_and_what_to_do_next(tmp_path: Path) -> None:
    said = run(*FEDDKD, "new", "some where/my_project", cwd=tmp_path).splitlines()
    written = said[1 : said.index("next, and README.md says more:")]
    assert said[0] == "wrote some where/my_project/"
    assert said[-2:] == ["  cd 'some where/my_project'", "  feddkd run federation.toml"]
    assert all((tmp_path / "some where" / "my_project" / line.strip()).is_file() for line in written)


@pytest.mark.timeout(300)  # about 7 s on an idle machine
def test_a_new_project_passes_its_own_tests(tmp_path: Path) -> None:
    assert "3 passed" in run(*PYTHON, "-m", "pytest", "-q", cwd=new(tmp_path))


def test_what_a_new_project_holds_passes_the_linter_with_the_rules_of_feddkd(tmp_path: Path) -> None:
    project = new(tmp_path, "--sites", "north,south")
    ruff = (sys.executable, "-m", "ruff")
    run(*ruff, "format", "--no-cache", "--check", ".", cwd=project)
    run(*ruff, "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".", cwd=project)
    run("bash", "-n", "make_certificates.sh", cwd=project)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_a_new_project_holds_has_types(tmp_path: Path) -> None:
    said = run(sys.executable, "-m", "mypy", ".", cwd=new(tmp_path, "--sites", "north,south"))
    assert "no issues found in 7 source files" in said


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str, list[str]], Process]]:
    """Starts commands in the folder of the project; what still runs at the end of the test is killed."""
    started: list[Process] = []

    def start_process(name: str, command: list[str]) -> Process:
        assert command[0] == "feddkd"
        started.append(Process(name, command[1:], tmp_path / "my_project"))
        return started[-1]

    yield start_process
    for process in started:
        process.kill()


def test_the_page_for_sites_leads_to_three_sites_that_train_together(tmp_path: Path, start: Callable[[str, list[str]], Process]) -> None:
    project = new(tmp_path, "--sites", "north,south,east")
    make_data, make_certificates, server, *others = commands_of(project / "SITES.md")
    run(*PYTHON, *make_data[1:], cwd=project)
    run(*make_certificates, cwd=project)
    fast = overrides("rounds=1", "dkd.steps=2", "training.steps=2")
    address = f"127.0.0.1:{free_port()}"
    commands = [[address if part == "127.0.0.1:50061" else part for part in command] for command in (server, *others[:3])]
    started = [start("server", [*commands[0], *fast, "--no-report"])]
    started += [start(command[command.index("--id") + 1], command) for command in commands[1:]]
    for process in started:
        assert process.wait() == 0, process.log.read_text()
    (summary,) = project.glob("server/state/*/summary.json")
    assert json.loads(summary.read_text())["examples"] == {site: {"labelled": 48, "unlabelled": 540} for site in SITES}
    assert len({(project / "sites" / site / "state" / "model.safetensors").read_bytes() for site in SITES}) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_name_the_server_and_are_never_replaced(tmp_path: Path) -> None:
    project = new(tmp_path, "--sites", "north,south")
    run("bash", "make_certificates.sh", "fed.example.org", "10.0.0.1", "fd00::1", cwd=project)
    names = run("openssl", "x509", "-in", "server/server.pem", "-noout", "-ext", "subjectAltName", cwd=project)
    for name in ("DNS:localhost", "IP Address:127.0.0.1", "DNS:fed.example.org", "IP Address:10.0.0.1", "IP Address:FD00:"):
        assert name in names
    run("openssl", "verify", "-CAfile", "sites/north/ca.pem", "sites/south/site.pem", cwd=project)
    before = {path: path.read_bytes() for path in project.rglob("*.pem")}
    assert len(before) == 10  # of the CA, three pairs with their CA, and a copy of each that the CA keeps
    assert all(key.stat().st_mode & 0o077 == 0 for key in project.rglob("*.key"))
    (project / "sites" / "west").mkdir()
    run("bash", "make_certificates.sh", cwd=project)
    assert {path: path.read_bytes() for path in before} == before
    run("openssl", "verify", "-CAfile", "ca/ca.pem", "sites/west/site.pem", cwd=project)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes on a busy machine
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    project = new(tmp_path)
    fast = overrides("rounds=1", "dkd.steps=1", "training.steps=1", "runtime.client_processes=1")
    commands = [command for command in commands_of(project / "README.md") if command[0] == "feddkd"]
    assert [command[1] for command in commands] == ["run", "data", "report", "compare", "run", "config", "compare"]
    for command in commands:
        output = run(*FEDDKD, *command[1:], *(fast if command[1] in ("run", "compare") else ()), cwd=project)
        if command[1] == "config":
            (project / "own.toml").write_text(output)
    assert "data:image/svg" in (project / "runs" / "first.html").read_text()
