"""Names the command that installs an optional set of packages."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PACKAGES = {
    "vision": ("torchvision", "scipy"),
    "plot": ("matplotlib", "jinja2"),
    "zstd": ("zstandard",),
    "pandas": ("pandas",),
    "ray": ("ray",),
    "otel": ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
}
"""The extras of pyproject.toml that a message names, with their packages."""


def install_command(extra: str) -> str:
    """Return the shell command that adds the packages of an extra to this installation of feddkd.

    A clone goes on with its `scripts/install`, which keeps the installation editable and at the
    tested versions. Any other gets the packages by name: feddkd is not on PyPI, therefore
    `pip install 'feddkd[vision]'` would fail.
    """
    script = _root() / "scripts" / "install"
    if script.is_file():
        return f"PYTHON={shlex.quote(sys.executable)} {shlex.join([str(script), extra])}"
    return shlex.join([sys.executable, "-m", "pip", "install", *PACKAGES[extra]])


def _root() -> Path:
    """Return the folder that holds the package: the clone, or site-packages."""
    return Path(__file__).resolve().parents[1]
