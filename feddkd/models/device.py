"""Find the device that a configuration names."""

from __future__ import annotations

import torch

from feddkd.errors import ConfigError
from feddkd.imports import one_line


def find_device(name: str) -> torch.device:
    """Return a device that can be computed on. Raises ConfigError, naming `runtime.device`."""
    device = torch.device(name)
    if device.type == "cpu":
        return device
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # of many types: no such device, no driver, one that is too old, a torch without CUDA
        raise ConfigError(f"runtime.device = {name!r}: this device cannot be used here: {one_line(error)}") from error
    return device
