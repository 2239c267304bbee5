"""The clock on the wall jumps in the middle of a run: no deadline, no backoff and no result depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from federation import CONFIGS, SERVER, Federation, check
from processes import SpawnedProcess
from run_history import RunHistory

Undisturbed = Callable[[str], RunHistory]
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("process", [SERVER, "client-1"])
@pytest.mark.parametrize("jump", ["+3600", "-3600", "-315360000"], ids=["an hour on", "an hour back", "ten years back"])
def test_a_clock_that_jumps_changes_nothing(process: str, jump: str, tmp_path: Path, undisturbed: Undisturbed) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with Federation(tmp_path, CONFIGS["feddkd"]) as federation:
        federation.put(SpawnedProcess(process, federation.command(process), tmp_path, environment))
        for name in federation.starts.keys() - {process}:
            federation.restart(name)
        federation.wait_for_exchanges(2)
        clock.write_text(jump)
        federation.finish()
        check(federation, undisturbed("feddkd"))
