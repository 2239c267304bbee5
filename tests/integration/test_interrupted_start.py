"""Ctrl-C while a command starts: one line, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feddkd.cli import EXIT_INTERRUPTED

IMPORTING = "importing torch"

SITE = f'''
import os, sys
from importlib.abc import MetaPathFinder


class Announcer(MetaPathFinder):
    """Says that the process of the command begins to import torch."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch" and "run" in sys.argv:
            os.write(2, b"{IMPORTING}\\n")
        return None


sys.meta_path.insert(0, Announcer())
'''


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_while_torch_is_imported_is_one_line(number: signal.Signals, tmp_path: Path) -> None:
    site, here = tmp_path / "site", tmp_path / "here"
    site.mkdir()
    here.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    command = [sys.executable, "-u", "-m", "feddkd", "run", "--out", "run"]
    with subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()).strip() != IMPORTING:
            assert line
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    assert process.returncode == EXIT_INTERRUPTED
    assert said.splitlines() == ["feddkd: interrupted"]
    assert list(here.iterdir()) == []
