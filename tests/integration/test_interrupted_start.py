"""Ctrl-C while a command starts: one line, and nothing is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feddkd.cli import EXIT_INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_while_torch_is_imported_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-m", "feddkd", "run", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("feddkd run")  # next it imports torch
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    assert process.returncode == EXIT_INTERRUPTED
    assert said.splitlines() == ["feddkd: interrupted; nothing was started"] or said.splitlines() == ["feddkd: interrupted"]
    assert list(tmp_path.iterdir()) == []
