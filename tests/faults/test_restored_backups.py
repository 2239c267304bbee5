"""A copy of the state directories, put back at another place after the machine was lost, resumes the run to the same model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from run_history import RunHistory, record_folder

Undisturbed = Callable[[str], RunHistory]
DIES = "scheduler.exchange.after_append=kill@{}"


class Moved(Federation):
    """A federation whose state directories can be put elsewhere.

    Attributes:
        home: holds the state directories.
    """

    home = Path("first")

    @property
    def state(self) -> Path:
        return self.folder / self.home / "server-state"

    def client_state(self, name: str) -> Path:
        return self.folder / self.home / f"state-{name}"

    def move(self, home: Path) -> None:
        """Copy all state directories, and lose the first ones."""
        shutil.copytree(self.folder / self.home, self.folder / home)
        shutil.rmtree(self.folder / self.home)
        self.home = home


def final_hash(history: RunHistory) -> str:
    assert history.summary is not None
    found: str = history.summary["model_sha256"]
    return found


def kill_all(federation: Federation) -> None:
    federation.processes[SERVER].wait()
    for name in federation.names:
        federation.processes[name].kill()


def test_a_copy_of_everything_resumes_elsewhere(tmp_path: Path, undisturbed: Undisturbed) -> None:
    with Moved(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.start({SERVER: DIES.format(5)})
        kill_all(federation)
        federation.move(Path("second"))
        federation.finish()
        assert federation.starts[SERVER] == 2
        check(federation, undisturbed("feddkd"))


def test_a_copy_of_the_servers_state_alone_resumes_elsewhere(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """The sites live, and keep retrying."""
    with Moved(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.start({SERVER: DIES.format(3)})
        federation.processes[SERVER].wait()
        shutil.copytree(federation.state, tmp_path / "copy")
        shutil.rmtree(federation.state)
        shutil.move(tmp_path / "copy", federation.state)
        federation.finish()
        check(federation, undisturbed("feddkd"))


@pytest.mark.parametrize(("first", "second"), [pytest.param(2, 4, marks=pytest.mark.slow), (2, 6)])
def test_a_copy_of_a_running_server_resumes_where_its_tensors_were_copied(
    first: int, second: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """`blobs/` is copied first and the journal later, so it names tensors that the copy lacks; its lines are cut off."""
    with Moved(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.start({SERVER: [DIES.format(first), DIES.format(second - first)]})
        federation.processes[SERVER].wait()
        shutil.copytree(record_folder(federation.state) / "blobs", tmp_path / "blobs")
        federation.restart(SERVER).wait()
        shutil.rmtree(record_folder(federation.state) / "blobs")
        shutil.copytree(tmp_path / "blobs", record_folder(federation.state) / "blobs")
        federation.finish()
        assert "were cut off" in federation.logs([SERVER])
        assert final_hash(federation.history()) == final_hash(undisturbed("feddkd")), federation.logs()
