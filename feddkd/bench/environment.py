"""What a result file must say about where it came from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feddkd.errors import ConfigError
from feddkd.observability.versions import cpu_capability, installed_versions


def check_idle() -> None:
    """Check that nothing else uses the processors. Raises ConfigError: a time that is measured now says little."""
    share = busy_share()
    if share > BUSY_SHARE:
        raise ConfigError(
            f"--save: the machine is not idle, {share:.0%} of its processor time is in use; "
            "stop what else runs, or give --busy to save the result with its load"
        )


def environment(flower_python: Path | None = None) -> dict[str, Any]:
    """Date, versions, and the machine with its load; with the version of Flower if there is a Python that has it."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": installed_versions(),
        "cpu": cpu_model(),
        "cpu_capability": cpu_capability(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    if flower_python is not None:
        code = "from importlib.metadata import version; print(version('flwr'))"
        found["versions"]["flwr"] = subprocess.run([flower_python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return found


BUSY_SHARE = 0.05
"""Of the processor time, beyond which a machine is not idle."""


def busy_share(seconds: float = 2.0) -> float:
    """Watch the machine for a while; return the share of its processor time that was used, 0 where /proc does not say."""
    before = _processor_ticks()
    time.sleep(seconds)
    used, total = (now - then for now, then in zip(_processor_ticks(), before, strict=True))
    return used / total if total else 0.0


def _processor_ticks() -> tuple[int, int]:
    """Return the ticks that the processors were in use, and all ticks, since the machine started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    ticks = [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    return sum(ticks[:8]) - idle, sum(ticks[:8])


def cpu_model() -> str:
    """The processor's name for itself."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def source_commit(checkout: Path, code: Sequence[str]) -> str | None:
    """The commit of a git checkout, with "-dirty" where its folders of code differ from it; None where there is no git."""
    try:
        commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changes = _git(checkout, "status", "--porcelain", "--", *code)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
