"""Client processes that start before it is known what they shall do."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator

import pytest

from feddkd.client.process import main
from feddkd.engines.early_processes import EarlyProcesses, early_processes


@pytest.fixture
def early() -> Iterator[EarlyProcesses]:
    with early_processes(1, threads=1) as found:
        yield found


def said(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors.decode()


def test_a_process_does_what_it_is_told_later(early: EarlyProcesses) -> None:
    waiting = early._waiting[0]
    process = early.take(["nowhere.toml", "--server", "127.0.0.1:1", "--state", "state", "--clients", "0"], threads=1)
    assert process is waiting
    code, errors = said(process)
    assert code == 1
    assert "nowhere.toml" in errors


@pytest.mark.parametrize(("threads", "is_early"), [(1, True), (2, False)])
def test_only_a_process_with_the_right_number_of_threads_is_taken(early: EarlyProcesses, threads: int, is_early: bool) -> None:
    waiting = early._waiting[0]
    process = early.take(["--help"], threads)
    assert (process is waiting) == is_early
    assert said(process) == (0, "")


def test_a_process_that_is_told_nothing_ends_with_who_started_it(early: EarlyProcesses) -> None:
    process = early._waiting.pop()
    assert said(process) == (0, "")  # its standard input is closed


def test_a_client_process_opens_as_many_files_as_its_clients_need(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1_024, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    monkeypatch.setattr("feddkd.client.process.end_without_search", lambda: None)
    with pytest.raises(SystemExit):
        main(["--help"])  # also where it is told its clients later
    assert limits[-1] == (4_096, 4_096)


def test_processes_that_nobody_took_are_gone_when_the_context_ends() -> None:
    with early_processes(2, threads=1) as early:
        waiting = list(early._waiting)
        assert all(process.poll() is None for process in waiting)
    assert all(process.returncode is not None for process in waiting)


def test_a_process_that_died_while_it_waited_is_left_to_its_exit_code(early: EarlyProcesses) -> None:
    early._waiting[0].kill()
    early._waiting[0].wait()
    process = early.take(["--help"], threads=1)
    assert process.wait() != 0
    assert process.stderr is not None
    process.stderr.close()
