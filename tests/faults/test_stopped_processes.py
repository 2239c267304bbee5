"""Processes that stand still: SIGSTOP, and a thread that holds Python's lock."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from run_history import RunHistory

Undisturbed = Callable[[str], RunHistory]


def stand_still(process: str, seconds: float, folder: Path, undisturbed: Undisturbed) -> None:
    """Stop a process in the middle of a run for some seconds, and check the run."""
    with Federation(folder, [*CONFIGS["feddkd"], "scheduler.reconnect_grace_s=60"]) as federation:
        federation.start()
        federation.wait_for_exchanges(2)
        stopped = federation.processes[process]
        stopped.signal(signal.SIGSTOP)
        stopped.join(seconds)
        assert stopped.exit_code is None
        stopped.signal(signal.SIGCONT)
        federation.finish()
        assert all(starts == 1 for starts in federation.starts.values())
        check(federation, undisturbed("feddkd"))


@pytest.mark.parametrize("process", [SERVER, "client-1"])
def test_a_process_that_is_stopped_for_a_second_goes_on(process: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    stand_still(process, 1, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [20, 60])
@pytest.mark.parametrize("process", [SERVER, "client-1"])
def test_a_process_that_is_stopped_for_long_goes_on(process: str, seconds: int, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """After 20 s clients have given a stopped server up; after 60 s the server has given a stopped client up."""
    stand_still(process, seconds, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "point"), [(SERVER, "scheduler.exchange.before_append"), ("client-1", "client.task.before_compute")])
def test_a_thread_that_holds_the_lock_for_20_s_breaks_nothing(process: str, point: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Nothing of Python runs in that process meanwhile; gRPC's own threads still answer pings."""
    assert undisturbed("feddkd").visits(process)[point] >= 2
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.run({process: f"{point}=hold_gil(20)@2"})
        check(federation, undisturbed("feddkd"))
