"""What a command does at a signal, its forked children do not: they end by it, without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from feddkd.cli.signals import for_this_process

PROGRAM = """
import multiprocessing, os, signal, sys, time
from feddkd.cli import stopping
from feddkd.cli.signals import for_this_process

def act(number, frame):
    print("the command hears", signal.Signals(number).name, flush=True)

for number in stopping.SIGNALS:
    signal.signal(number, for_this_process(act))

def wait_for_ever(ready):
    ready.send(os.getpid())
    while True:
        time.sleep(60)

def pool_worker(number):
    time.sleep(0.001)
    return number

context = multiprocessing.get_context("fork")
if sys.argv[1] == "pool":
    with context.Pool(2) as pool:
        next(pool.imap(pool_worker, range(10_000)))
else:
    here, there = context.Pipe()
    child = context.Process(target=wait_for_ever, args=(there,))
    child.start()
    os.kill(here.recv(), getattr(signal, sys.argv[1]))
    child.join()
    assert child.exitcode == -getattr(signal, sys.argv[1]), child.exitcode
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.parametrize("kind", ["SIGTERM", "SIGINT", "pool"])
def test_a_forked_child_ends_without_a_word(kind: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(tmp_path / "program.py"), kind], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout == ("" if kind == "pool" else f"the command hears {kind}\n")


def test_the_process_that_set_the_handler_acts() -> None:
    heard = []
    before = signal.signal(signal.SIGUSR1, for_this_process(lambda number, frame: heard.append(number)))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]
