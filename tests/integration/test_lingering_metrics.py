"""What is left of a run for Prometheus when its process has nothing more to do, and when it is gone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

SMALL = ["rounds=1", "partition.name=iid", "partition.clients=2", "dkd.steps=1", "training.epochs=1", "runtime.client_processes=1"]


def hears_signals() -> None:
    """A shell has its background processes ignore Ctrl-C, and their children with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`feddkd run`, with a log for programs on standard error."""
    overrides = [word for override in SMALL for word in ("-o", override)]
    command = [sys.executable, "-m", "feddkd", "run", *overrides, "--out", "record", "--no-report", "--log-format", "json", *options]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=hears_signals
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def entry_with(process: subprocess.Popen[str], words: str) -> str:
    """Read the log until an entry has these words in its message."""
    assert process.stderr is not None
    for line in process.stderr:
        message: str = json.loads(line)["message"]
        if words in message:
            return message
    raise AssertionError(f"the log has ended without {words!r}")


def state_in(text: str) -> str:
    families = text_string_to_metric_families(text)
    (state,) = (
        sample.labels["state"]
        for family in families
        for sample in family.samples
        if sample.name == "feddkd_run_state" and sample.value == 1
    )
    return state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_completed_run_can_be_scraped_until_a_signal_comes_and_its_exit_code_is_its_own(number: signal.Signals, tmp_path: Path) -> None:
    with running(tmp_path, "--metrics-port", "0", "--metrics-linger", "3600") as process:
        address = entry_with(process, "metrics on http://").split(" on ")[1].removesuffix("/metrics")
        entry_with(process, "the metrics stay for 3600 s")
        with urlopen(f"{address}/metrics") as response:
            assert state_in(response.read().decode()) == "completed"
        with pytest.raises(HTTPError, match="503") as refused:
            urlopen(f"{address}/readyz")
        assert json.loads(refused.value.read())["state"] == "completed"
        with urlopen(f"{address}/healthz") as response:
            assert response.status == 200
        process.send_signal(number)
        assert process.wait(60) == 0


def test_a_run_that_failed_can_be_scraped_until_a_signal_comes_and_its_exit_code_is_its_own(tmp_path: Path) -> None:
    options = ["-o", "training.lr=1e30", "-o", "scheduler.pause_timeout_s=0", "--engine", "in-process"]
    with running(tmp_path, *options, "--metrics-port", "0", "--metrics-linger", "3600") as process:
        address = entry_with(process, "metrics on http://").split(" on ")[1].removesuffix("/metrics")
        entry_with(process, "the metrics stay for 3600 s")
        with urlopen(f"{address}/metrics") as response:
            assert state_in(response.read().decode()) == "failed"
        with pytest.raises(HTTPError, match="503") as refused:
            urlopen(f"{address}/readyz")
        assert json.loads(refused.value.read())["state"] == "failed"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1


def test_a_killed_run_leaves_a_file_that_says_it_had_not_ended(tmp_path: Path) -> None:
    file = tmp_path / "feddkd.prom"
    with running(tmp_path, "--metrics-textfile", str(file)) as process:
        entry_with(process, "begins with 2 clients")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
    text = file.read_text()
    assert state_in(text) in ("waiting", "running")
    ends = [line for line in text.splitlines() if line.startswith("feddkd_run_end_time_seconds{")]
    assert ends
    assert all(line.endswith(" NaN") for line in ends)
