"""What the bits of a result depend on: versions, and the instructions that the CPU has."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

PACKAGES = ("feddkd", "torch", "numpy", "grpcio", "protobuf", "torchvision")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_capability() -> str:
    """The instruction set that torch computes with here, such as AVX2: another one sums in another order, and gives other bits."""
    return str(torch.backends.cpu.get_cpu_capability())
