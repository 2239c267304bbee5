"""What a run does when its record, its console or its output can no longer be written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from subsets import slow

SMALL = [
    *("algorithm.name=fedavg", "rounds=2", "training.epochs=1", "data.subset=100", "partition.clients=2", "partition.labels=5"),
    "runtime.client_processes=1",
]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def feddkd_run(folder: Path, engine: str = "in-process", *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    overrides = [text for setting in SMALL for text in ("-o", setting)]
    command = [sys.executable, "-m", "feddkd", "run", "--no-report", "--engine", engine, "--out", "out", *overrides, *arguments]
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, text=True, timeout=100, **options)  # type: ignore[call-overload, no-any-return]


@needs_full
@pytest.mark.parametrize(
    ("engine", "file"), [("grpc", "exchanges.jsonl"), *slow(("in-process", "rounds.jsonl"), ("in-process", "summary.json"))]
)
def test_a_run_whose_record_cannot_be_written_ends_with_one_line(engine: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).symlink_to(FULL)
    done = feddkd_run(tmp_path, engine, capture_output=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"feddkd: cannot write out/{file}: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_model_that_outgrows_the_quota_ends_the_run_with_one_line(tmp_path: Path) -> None:
    done = feddkd_run(tmp_path, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("feddkd: cannot write out/blobs/")
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").rglob("*.partial")) == []


def test_a_console_that_is_gone_does_not_end_a_run(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = feddkd_run(tmp_path, "in-process", "--json", stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert '"rounds": 2' in done.stdout
    assert (tmp_path / "out" / "rounds.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("arguments", [*slow(([],)), ["--json"]], ids=["for a person", "json"])
def test_output_that_nobody_reads_ends_the_command_without_a_word(arguments: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = feddkd_run(tmp_path, "in-process", *arguments, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert (tmp_path / "out" / "summary.json").exists()


@needs_full
@pytest.mark.parametrize("command", [["config", "show"], ["data", "show"]])
def test_output_that_cannot_be_written_is_said_in_one_line(command: list[str], tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "feddkd", *command], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "feddkd: cannot write to standard output: No space left on device\n")
