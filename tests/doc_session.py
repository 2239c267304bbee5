"""Runs all blocks of a page, in order, as one session of bash in a folder of its own.

A block with the title of a file is written as that file. Blocks titled "Shell N: ..." run beside each
other until the next block that is none. `feddkd run`, `server` and `compare` are shortened.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from doc_pages import ROOT, Block

SHORT = "-o rounds=1 -o dkd.steps=2 -o training.epochs=1"
PORTS = re.compile(r"127\.0\.0\.1:(\d+)|(?<=--metrics-port )(\d+)")
FEDDKD = """\
#!/usr/bin/env bash
case "$1 $*" in
  *--resume*) ;;
  run*|server*|compare*) set -- "$@" {short} ;;
esac
if [ "$1" = run ] && [ -n "${{DIES_ONCE:-}}" ] && ! [ -e "$SESSION/died" ]; then
  touch "$SESSION/died"
  FEDDKD_FAILPOINTS=$DIES_ONCE {python} -m feddkd "$@"
  [ $? = 137 ]
  exit
fi
exec {python} -m feddkd "$@"
"""
PROLOGUE = """\
set -Eeuo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
shells=()
together() {
  local shell
  for shell in "${shells[@]}"; do wait "$shell"; done
  shells=()
}
"""


def script_of(blocks: Sequence[Block], not_run: Collection[str]) -> str:
    """Write the session as a script; lines in `not_run` are left out."""
    parts = [PROLOGUE]
    shells = 0
    code = ""
    for block in blocks:
        is_code = block.language == "python" and not block.file
        if code and not is_code:
            parts.append(_file(code_file := f"block-{len(parts)}.py", code) + f"python {code_file}\n")
            code = ""
        if is_code:
            code += block.text
        elif block.file:
            parts.append(_file(block.file, block.text))
        elif block.shell:
            shells += 1
            parts.append(f'{{\n{block.text}}} >"$SESSION/shell-{shells}.log" 2>&1 &\nshells+=($!)\n')
        elif block.language in ("bash", "console"):
            parts.append("together\n" + _commands(block, not_run))
    if code:
        parts.append(_file("last.py", code) + "python last.py\n")
    return _with_free_ports("\n".join([*parts, "together\n"]))


def run_session(script: str, folder: Path, dies_once: str, timeout_s: float) -> tuple[int, str]:
    """Run a script; return its exit code and everything that was printed."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in {
        "feddkd": FEDDKD.format(short=SHORT, python=sys.executable),
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "*state*", "runs"))
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SESSION": str(folder),
        "DIES_ONCE": dies_once,
        "OMP_NUM_THREADS": "1",
    }
    command = ["bash", "-c", script]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as session:
        try:
            output, _ = session.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            output = f"not done after {timeout_s} s\n"
        finally:
            _end_group(session.pid)
    logs = "".join(f"--- {log.name}\n{log.read_text()}" for log in sorted(folder.glob("shell-*.log")))
    return session.wait(), output + logs


def _end_group(leader: int) -> None:
    """End what is left of a session: after a failure, its other shells."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def _file(name: str, text: str) -> str:
    return f"mkdir -p \"$(dirname {name})\"\ncat >{name} <<'END_OF_FILE'\n{text}END_OF_FILE\n"


def _commands(block: Block, not_run: Collection[str]) -> str:
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "".join(f"{line}\n" for line in lines if line not in not_run)


def _with_free_ports(script: str) -> str:
    """Replace each fixed port of a page by a free one, the same throughout."""
    ports = {found[1] or found[2] for found in PORTS.finditer(script)}
    for port in sorted(ports):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            script = re.sub(rf"\b{port}\b", str(probe.getsockname()[1]), script)
    return script
