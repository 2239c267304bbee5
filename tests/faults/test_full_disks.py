"""A server whose disk is full or broken ends with one line, its clients wait, and the next one goes on with the run."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from run_history import RunHistory
from subsets import slow

Undisturbed = Callable[[str], RunHistory]
PROBLEMS = {"enospc": "No space left on device", "eio": "Input/output error"}


def ended_in_order(federation: Federation) -> str:
    """The last line of a server that cannot write; its clients are still there."""
    process = federation.processes[SERVER]
    assert process.wait() == 1
    said = process.log.read_text()
    assert all(federation.processes[name].exit_code is None for name in federation.names)
    return said.splitlines()[-1]


PLACES = [
    ("journal.append.before_write", 4),
    ("journal.append.before_fsync", 4),
    ("blobs.write.before_write", 2),
    ("blobs.write.before_fsync", 2),
    ("blobs.write.before_fsync", 5),  # the model of round 1
]
IN_TURN = {(problem, *place) for problem, place in zip(itertools.cycle(PROBLEMS), PLACES, strict=False)}
"""Each place with one of the problems."""


@pytest.mark.parametrize(
    ("problem", "point", "visit"),
    [*sorted(IN_TURN), *slow(*sorted({(problem, *place) for problem in PROBLEMS for place in PLACES} - IN_TURN))],
)
def test_a_file_that_cannot_be_written_pauses_the_run(
    problem: str, point: str, visit: int, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """A failed fsync counts as a failed write: what of it is on the disk is not known, so nobody is told that it is there."""
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.start({SERVER: f"{point}={problem}@{visit}"})
        line = ended_in_order(federation)
        assert line.startswith("feddkd: cannot write ")
        assert PROBLEMS[problem] in line
        federation.restart(SERVER)
        federation.finish()
        check(federation, undisturbed("feddkd"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "run" / "server-state"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("size", ["64k", "128k", "192k"])
def test_a_run_goes_on_once_there_is_room_on_the_disk(size: str, small_disk: Path, undisturbed: Undisturbed) -> None:
    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)

    resize(size)
    with Federation(small_disk.parent, CONFIGS["feddkd"]) as federation:
        federation.start()
        assert "No space left on device" in ended_in_order(federation)
        resize("8m")
        federation.restart(SERVER)
        federation.finish()
        check(federation, undisturbed("feddkd"))
