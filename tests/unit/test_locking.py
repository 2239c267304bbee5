"""One process holds a directory, and no longer than it lives."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feddkd.errors import StateError
from feddkd.locking import LOCK, DirectoryLock

HOLD = """
import sys
from pathlib import Path
from feddkd.locking import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def other_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_kept_out_until_the_first_is_killed(tmp_path: Path) -> None:
    with other_process(tmp_path) as process:
        for attempt in (DirectoryLock, DirectoryLock.of_this_process):
            with pytest.raises(BlockingIOError):
                attempt(tmp_path)
        process.kill()
        process.wait()
        DirectoryLock(tmp_path)  # would raise


def test_an_object_keeps_others_of_its_process_out_until_it_is_released(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path)
    with pytest.raises(BlockingIOError):
        DirectoryLock(tmp_path)
    first.release()
    DirectoryLock(tmp_path)


def test_a_lock_that_nobody_uses_any_more_is_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    del lock
    gc.collect()
    DirectoryLock(tmp_path)


def test_a_process_can_share_its_lock(tmp_path: Path) -> None:
    first = DirectoryLock.of_this_process(tmp_path)
    assert DirectoryLock.of_this_process(tmp_path / ".." / tmp_path.name) is first


def test_a_directory_that_was_made_again_is_another_one(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    first = DirectoryLock.of_this_process(directory)
    shutil.rmtree(directory)
    directory.mkdir()
    second = DirectoryLock.of_this_process(directory)
    assert second is not first
    assert DirectoryLock.of_this_process(directory) is second


def test_a_lock_that_was_released_is_not_shared(tmp_path: Path) -> None:
    first = DirectoryLock.of_this_process(tmp_path)
    first.release()
    assert DirectoryLock.of_this_process(tmp_path) is not first


def test_a_lock_file_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StateError, match=f"cannot open {tmp_path / LOCK}: Is a directory"):
        DirectoryLock(tmp_path)


def test_a_file_system_without_locks_is_an_error_and_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(StateError, match=f"cannot lock {tmp_path / LOCK}: Function not implemented"):
        DirectoryLock(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
