"""The steps of the Dockerfile lead to a feddkd that runs and answers the health check: all of it with what is installed here.

No package is fetched: the new environment finds those of this one, so pip has to be content with them under the
constraints. test_image.py does the same with packages from an index, and on a read-only root.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dockerfile
import pytest
from doc_pages import ROOT

from feddkd.bench.peers import free_port

PATIENCE_S = 100.0
PAUSE_S = 0.2
BUILD, IMAGE = dockerfile.stages()
FEW = ("rounds=1", "dkd.steps=1", "partition.clients=2", "partition.labels=5", "training.epochs=1")

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A folder in which the build stage has been carried out."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the package, is not installed")
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {**os.environ, **BUILD.arguments, **BUILD.environment, **offline}
    environment.pop("PYTHONPATH", None)
    for step in dockerfile.carry_out(BUILD, tmp_path, environment):
        if "-m venv" in step.command:
            # Python 3.11 puts an old setuptools there, which hides the one of this environment.
            pip = [str(tmp_path / "feddkd/bin/pip"), "uninstall", "--yes", "setuptools"]
            subprocess.run(pip, env=environment, check=True, capture_output=True)
            (site_packages,) = tmp_path.glob("feddkd/lib/python3.*/site-packages")
            (site_packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path


def eventually(what: str, holds: Callable[[], bool]) -> None:
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come about"
        pause.wait(PAUSE_S)


@pytest.fixture
def container(built: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], bool]]]:
    """A run with the entry point and the environment of the image, and the image's health check of it."""
    state, port = built / "state", free_port()
    state.mkdir()
    given = {**IMAGE.environment, "PATH": f"{built}/feddkd/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "examples" / "custom")}
    options = [word for setting in FEW for word in ("-o", setting)]
    metrics = ("--metrics-port", str(port), "--metrics-linger", str(PATIENCE_S))
    command = [*IMAGE.only("ENTRYPOINT").exec_form, "run", "--engine", "in-process", "--out", "run", *metrics, *options]
    check = [word.replace("9464", str(port)) for word in IMAGE.only("HEALTHCHECK").exec_form]
    process = subprocess.Popen(command, cwd=state, env=given)

    def healthy() -> bool:
        return subprocess.run(check, cwd=state, env=given, capture_output=True, check=False).returncode == 0

    try:
        yield process, healthy
    finally:
        process.kill()
        process.wait()


def test_the_steps_install_a_feddkd_that_runs_draws_its_report_and_is_healthy_for_as_long(
    built: Path, container: tuple[subprocess.Popen[bytes], Callable[[], bool]]
) -> None:
    process, healthy = container
    own = subprocess.run(
        [built / "feddkd" / "bin" / "python", "-c", "import feddkd; print(feddkd.__file__)"],
        cwd=built,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(own.stdout.strip()).is_relative_to(built / "feddkd"), "the package that was built, not the clone"
    eventually("health", lambda: process.poll() is not None or healthy())
    eventually("the report", lambda: process.poll() is not None or (built / "state" / "run" / "report.html").exists())
    assert process.poll() is None, "it serves its metrics for a while after the run"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0
    assert not healthy()
