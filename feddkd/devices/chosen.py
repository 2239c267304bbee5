"""Choose what a `torch.device` needs, and copy tensors from one to another."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

from feddkd.devices.cuda import Cuda
from feddkd.devices.device import Cpu, Device
from feddkd.devices.runtime import CudaRuntime

_cpu = Cpu()


def device_for(device: torch.device) -> Device:
    """Return what a device does for a training loop; one object for each CUDA device."""
    return _cuda(device) if device.type == "cuda" else _cpu


@cache
def _cuda(device: torch.device) -> Cuda:
    return Cuda(device, CudaRuntime(device))


def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy each source to its destination; those from or to a CUDA device together."""
    across: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for destination, source in pairs:
        if destination.is_cuda != source.is_cuda:
            device = destination.device if destination.is_cuda else source.device
            across.setdefault(device, []).append((destination, source))
        else:
            destination.copy_(source)
    for device, both in across.items():
        device_for(device).transfer(both)
