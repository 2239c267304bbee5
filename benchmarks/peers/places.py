"""Where the peers and their results are, and what a run checks before it begins."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from feddkd.bench.environment import BUSY_SHARE, busy_share, environment, source_commit
from feddkd.errors import RunError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENTS = HERE / "venvs"


def about() -> dict[str, Any]:
    """What every result says of where it came from: date, versions, machine with its load, and commit."""
    return environment() | {"commit": source_commit(ROOT, ["feddkd", "benchmarks/peers"])}


def refuse_busy(allowed: bool) -> None:
    """Check that nothing else uses the processors. Raises SystemExit: a time that is measured now says little."""
    if not allowed and (share := busy_share()) > BUSY_SHARE:
        raise SystemExit(f"{share:.0%} of the processor time is in use; stop what else runs, or give --busy")


def check_installed(environments: Path, name: str | None) -> None:
    """Check that setup has made a peer's environment; None is feddkd's own.

    Raises:
        RunError: it has not; the message is the end of what the installation said.
    """
    if name is None or ((environments / name / "bin" / "python").exists() and not (environments / f"{name}.log").exists()):
        return
    log = environments / f"{name}.log"
    said = log.read_text(encoding="utf-8", errors="replace").strip()[-1500:] if log.exists() else "run benchmarks/peers/setup"
    raise RunError(f"{name} is not installed in {environments}: {said}")


def version_of(python: Path, package: str) -> str | None:
    """The version of a package in another Python; None where that is not installed."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
