"""Where clients compute: the CPU, or a CUDA device with its copies, streams and graphs."""

from feddkd.devices.chosen import copy_all, device_for
from feddkd.devices.device import Batch, Cpu, Device, ReadableExamples, Step

__all__ = ["Batch", "Cpu", "Device", "ReadableExamples", "Step", "copy_all", "device_for"]
