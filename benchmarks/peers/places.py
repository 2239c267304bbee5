"""Where the peers and their results are, and what a run checks before it begins."""

from __future__ import annotations

import subprocess
from pathlib import Path

from feddkd.bench.environment import BUSY_SHARE, busy_share

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENTS = HERE / "venvs"


def refuse_busy(allowed: bool) -> None:
    """Check that nothing else uses the processors. Raises SystemExit: a time that is measured now says little."""
    if not allowed and (share := busy_share()) > BUSY_SHARE:
        raise SystemExit(f"{share:.0%} of the processor time is in use; stop what else runs, or give --busy")


def version_of(python: Path, package: str) -> str | None:
    """The version of a package in another Python; None where that is not installed."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
