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
    count = torch.cuda.device_count()
    if count == 0:
        built = "" if torch.version.cuda else f"; torch {torch.__version__} is built without CUDA"
        raise ConfigError(f"runtime.device = {name!r}: this machine has no CUDA device{built}")
    if name == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    if device.index >= count:
        raise ConfigError(f"runtime.device = {name!r}: this machine has {count} CUDA devices, of which the last is cuda:{count - 1}")
    try:
        torch.zeros(1, device=device)
    except Exception as error:  # of many types: a driver that is too old, a device that another process has for itself
        raise ConfigError(f"runtime.device = {name!r}: this device cannot be used here: {one_line(error)}") from error
    return device
