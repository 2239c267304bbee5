"""The processes that host the clients of a simulation."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from feddkd.config import Config
from feddkd.engines.client_processes import ClientProcesses


def started(folder: Path) -> ClientProcesses:
    """Two processes that a server waits for; they have not imported anything yet."""
    config = Config.load(None, ["partition.clients=2", "runtime.client_processes=2"])
    engine = cast("Any", SimpleNamespace(num_joined=0))
    return ClientProcesses(config, "127.0.0.1:1", folder / "none.toml", folder, engine)


def test_a_signal_to_the_group_of_the_simulation_does_not_reach_them(tmp_path: Path) -> None:
    """Ctrl-C comes to a whole group, and before a client can ignore it, it has imported torch."""
    clients = started(tmp_path)
    groups = {os.getpgid(process.pid) for process in clients.processes}
    clients.wait()
    assert os.getpgid(0) not in groups


def test_those_that_have_not_joined_are_not_waited_for(tmp_path: Path) -> None:
    clients = started(tmp_path)
    clients.wait()
    assert [process.returncode for process in clients.processes] == [-signal.SIGKILL] * 2
