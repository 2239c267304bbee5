"""Holds the network that the clients of one process compute with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from feddkd.compression.constants import Constants
from feddkd.config import Config
from feddkd.data.datasets import DataInfo
from feddkd.devices import device_for
from feddkd.errors import ClientError
from feddkd.models.device import find_device
from feddkd.models.known_code import is_stateless
from feddkd.models.registry import build
from feddkd.tasks.chosen import task_of
from feddkd.tensors import Tensors


class Network:
    """The network that workers of one process compute with, one worker at a time.

    Every task loads the model that it needs, so nothing of one client reaches another through the
    parameters and the persistent buffers.

    Attributes:
        module: on `device`.
        parts: which of its tensors travel when.
        constants: those that do not travel in every round, as they were built.
        turn: held by the worker that computes.
    """

    def __init__(self, config: Config, info: DataInfo) -> None:
        """Build it on the configured device. Raises ConfigError."""
        self.device = find_device(config.runtime.device)
        module, self.parts = build(config.model, info, config.seed, task_of(config))
        self.module: nn.Module = module.to(self.device)
        self.constants = Constants.of(self.parts.constants_of(module))
        self._loaded = self.constants.version
        self.turn = threading.Lock()
        self._compute = device_for(self.device)
        self._stream = self._compute.new_stream()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one worker compute; on a CUDA device in a stream of this network's own."""
        with self.turn, self._compute.using(self._stream):
            yield

    def load_constants(self, constants: Constants, local: Tensors | None) -> None:
        """Load the constants that a client computes with, and then its own buffers, if it has any yet."""
        if self.parts.local or self._loaded != constants.version:
            constants.tensors.load_into(self.module)
            self._loaded = constants.version
        if local is not None:
            local.load_into(self.module)

    def check_constants(self, constants: Constants) -> None:
        """Check that computing has changed nothing that does not travel. Raises ClientError."""
        state = self.module.state_dict()
        for name, value in constants.tensors.items():
            if name not in self.parts.local and not _same_bits(state[name].detach().cpu(), value):
                self._loaded = b""
                raise ClientError(
                    f"tensor {name!r} changed in training, but not when the model was tried at the start, so it is not sent; "
                    "change it in every training pass, or register it as a buffer with persistent=False"
                )

    @property
    def can_be_shared(self) -> bool:
        """Whether a task loads everything that training can change.

        A buffer that is not persistent stays as it was. So may a Python attribute of a user's module,
        and what a hook or a replaced `forward` remembers. Such a network is not shared.
        """
        state = self.module.state_dict()
        buffers = self.module.named_buffers(remove_duplicate=False)
        if any(name not in state for name, _ in buffers):
            return False
        return all(is_stateless(module) for module in self.module.modules())


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second)))
