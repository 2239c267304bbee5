"""What the runbook recommends, done to real processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import until
from served import ENDLESS, Served

from feddkd.observability.run_folder import EXCHANGES, ROUNDS


@pytest.fixture
def failed(tmp_path: Path) -> Iterator[Served]:
    """A run that has failed because a site was lost, while the other one still tries to connect."""
    run = Served(tmp_path / "run", 2, f"rounds={ENDLESS}", "scheduler.pause_timeout_s=0")
    run.start()
    try:
        until(lambda: len(run.record(ROUNDS)) >= 2)
        run.kill("site-b")
        assert run.processes["server"].wait() == 1
        yield run
    finally:
        run.close()


def test_the_same_command_goes_on_with_a_failed_run(failed: Served) -> None:
    before = len(failed.record(ROUNDS))
    failed.start_server()
    failed.start_site("site-b")
    until(lambda: len(failed.record(ROUNDS)) > before + 1)
    assert [line["round"] for line in failed.record(ROUNDS)][: before + 1] == [*range(1, before + 2)]
    failed.processes["server"].signal(signal.SIGTERM)
    assert failed.processes["server"].wait() == 75


def test_another_run_begins_from_the_best_model_of_a_run_that_went_bad(failed: Served) -> None:
    first = failed.record(EXCHANGES)[0]["client_loss"]
    (best,) = failed.folder.glob("state/*/best.safetensors")
    failed.kill("site-a")
    failed.start("--new", "-o", f"model.init={best}")
    until(lambda: len(list(failed.folder.glob(f"state/*/{EXCHANGES}"))) == 2 and len(failed.record(EXCHANGES)) > 0)
    assert failed.record(EXCHANGES)[0]["client_loss"] < first
