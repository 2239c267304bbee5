"""The steps of the Dockerfile lead to a feddkd that runs: with packages from an index, and all of them in a chroot.

test_image_steps.py does the steps with the packages of this environment, in seconds.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import dockerfile
import pytest
from doc_pages import ROOT

TIMEOUT_S = 900
PROGRAMS = ("buildah", "bwrap", "debootstrap")

pytestmark = [pytest.mark.timeout(TIMEOUT_S), pytest.mark.slow]


def reaches(url: str) -> bool:
    """Whether the host of an URL is known here."""
    host = url.split("//")[1].split("/")[0]
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def sources() -> dict[str, str]:
    """Where packages come from: the Dockerfile's arguments, unless the environment has others or a host is out of reach."""
    arguments = dockerfile.stages()[0].arguments
    found = {name: os.environ.get(name, default) for name, default in arguments.items()}
    if not reaches(found["PIP_INDEX_URL"] or "https://pypi.org"):
        pytest.skip("there is no package index")
    if found["TORCH_INDEX"] and not reaches(found["TORCH_INDEX"]):
        found["TORCH_INDEX"] = ""
    return found


def test_the_steps_of_the_build_install_feddkd(tmp_path: Path) -> None:
    build, image = dockerfile.stages()
    environment = {**os.environ, **sources(), **build.environment}
    environment.pop("PYTHONPATH", None)
    assert len(list(dockerfile.carry_out(build, tmp_path, environment))) == 3

    (tmp_path / "state").mkdir()
    given = {**image.environment, "PATH": f"{tmp_path}/feddkd/bin:/usr/bin:/bin", "PYTHONPATH": str(ROOT / "examples" / "custom")}
    run = [*image.only("ENTRYPOINT").exec_form, "run", "--engine", "in-process", "--out", "run"]
    few = ("rounds=1", "dkd.steps=1", "partition.clients=2", "partition.labels=5")
    options = [word for setting in few for word in ("-o", setting)]
    subprocess.run([*run, *options], cwd=tmp_path / "state", env=given, check=True, capture_output=True)
    assert (tmp_path / "state" / "run" / "report.html").stat().st_size > 0  # the extra plot is there


@pytest.mark.root
def test_the_image_builds_and_runs_on_a_read_only_root(tmp_path: Path) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'}")
    environment = {**os.environ, **{name: value for name, value in sources().items() if name in ("TORCH_INDEX", "EXTRAS")}}
    done = subprocess.run([ROOT / "scripts" / "image", tmp_path], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ran it read-only as uid 10001" in done.stdout
