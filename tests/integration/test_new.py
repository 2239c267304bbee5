"""A project that `feddkd new` writes works from nothing, as its pages say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import feddkd

ROOT = Path(feddkd.__file__).parents[1]
PYTHON = (sys.executable, "-W", "error")
FEDDKD = (*PYTHON, "-m", "feddkd")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    "PYTHONPATH": str(ROOT),
    "MYPYPATH": str(ROOT),
}
TIMEOUT_S = 100


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command that succeeds."""
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def new(folder: Path, *options: str) -> Path:
    """The folder of a new project, my_project."""
    run(*FEDDKD, "new", "my_project", *options, cwd=folder)
    return folder / "my_project"


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


def test_a_new_project_passes_its_own_tests(tmp_path: Path) -> None:
    assert "3 passed" in run(*PYTHON, "-m", "pytest", "-q", cwd=new(tmp_path))


def test_what_a_new_project_holds_passes_the_linter_with_the_rules_of_feddkd(tmp_path: Path) -> None:
    project = new(tmp_path, "--sites", "north,south")
    ruff = (sys.executable, "-m", "ruff")
    run(*ruff, "format", "--no-cache", "--check", ".", cwd=project)
    run(*ruff, "check", "--no-cache", "--config", str(ROOT / "pyproject.toml"), ".", cwd=project)
    run("bash", "-n", "make_certificates.sh", cwd=project)


@pytest.mark.slow
def test_what_a_new_project_holds_has_types(tmp_path: Path) -> None:
    said = run(sys.executable, "-m", "mypy", ".", cwd=new(tmp_path, "--sites", "north,south"))
    assert "no issues found in 7 source files" in said


class Processes:
    """Commands that run side by side in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command of a page."""
        assert command[0] == "feddkd"
        pipe = subprocess.PIPE
        process = subprocess.Popen([*FEDDKD, *command[1:]], cwd=self.folder, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def kill(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path / "my_project")
    yield started
    started.kill()


def port_of(server: subprocess.Popen[str]) -> str:
    """The port that a server has taken; a watchdog ends the wait."""
    assert server.stderr is not None
    watchdog = threading.Timer(TIMEOUT_S, server.kill)
    watchdog.start()
    try:
        for line in server.stderr:
            if found := re.match(r"listening on \S+:(\d+), waiting for 3 clients", line):
                return found[1]
    finally:
        watchdog.cancel()
    raise AssertionError("the server ended without listening")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_page_for_sites_leads_to_three_sites_that_train_together(tmp_path: Path, processes: Processes) -> None:
    project = new(tmp_path, "--sites", "north,south,east")
    data, certificates, server_command, *others = commands_of(project / "SITES.md")
    site_commands = others[:3]
    run(*PYTHON, *data[1:], cwd=project)
    run(*certificates, cwd=project)
    fast = [part for key in ("rounds=1", "dkd.steps=2", "training.steps=2") for part in ("-o", key)]
    with_free_port = ["127.0.0.1:0" if part == "127.0.0.1:50061" else part for part in server_command]
    server = processes.start([*with_free_port, *fast, "--json"])
    port = port_of(server)
    clients = [processes.start([part.replace("50061", port) for part in command]) for command in site_commands]
    for client in clients:
        _, errors = client.communicate(timeout=TIMEOUT_S)
        assert client.returncode == 0, errors
    output, errors = server.communicate(timeout=TIMEOUT_S)
    assert server.returncode == 0, errors
    assert json.loads(output)["examples"] == {site: {"labelled": 48, "unlabelled": 540} for site in ("east", "north", "south")}
    models = {(project / "sites" / site / "state" / "model.safetensors").read_bytes() for site in ("east", "north", "south")}
    assert len(models) == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_certificates_name_the_server_and_are_never_replaced(tmp_path: Path) -> None:
    project = new(tmp_path, "--sites", "north,south")
    run("bash", "make_certificates.sh", "fed.example.org", "10.0.0.1", "fd00::1", cwd=project)
    names = run("openssl", "x509", "-in", "server/server.pem", "-noout", "-ext", "subjectAltName", cwd=project)
    for name in ("DNS:localhost", "IP Address:127.0.0.1", "DNS:fed.example.org", "IP Address:10.0.0.1", "IP Address:FD00:"):
        assert name in names
    run("openssl", "verify", "-CAfile", "sites/north/ca.pem", "sites/south/site.pem", cwd=project)
    before = {path: path.read_bytes() for path in project.rglob("*.pem")}
    assert len(before) == 7
    assert all(key.stat().st_mode & 0o077 == 0 for key in project.rglob("*.key"))
    (project / "sites" / "west").mkdir()
    run("bash", "make_certificates.sh", cwd=project)
    assert {path: path.read_bytes() for path in before} == before
    run("openssl", "verify", "-CAfile", "ca/ca.pem", "sites/west/site.pem", cwd=project)


@pytest.mark.slow
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    project = new(tmp_path)
    fast = [part for key in ("rounds=1", "dkd.steps=1", "training.steps=1") for part in ("-o", key)]
    commands = [command for command in commands_of(project / "README.md") if command[0] == "feddkd"]
    assert [command[1] for command in commands] == ["run", "data", "report", "compare", "run", "config", "compare"]
    for command in commands:
        output = run(*FEDDKD, *command[1:], *(fast if command[1] in ("run", "compare") else ()), cwd=project)
        if command[1] == "config":
            (project / "own.toml").write_text(output)
    assert "data:image/svg" in (project / "runs" / "first.html").read_text()
