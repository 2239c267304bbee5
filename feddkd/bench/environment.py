"""What a result file must say about where it came from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feddkd.observability.versions import cpu_capability, installed_versions


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
