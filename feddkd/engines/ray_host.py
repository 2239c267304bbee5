"""What runs in a Ray actor: some of the clients of a simulation, and what crosses the object store.

Nothing here imports Ray: an actor is made of this class where the engine starts it.
"""

from __future__ import annotations

import itertools
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from feddkd.client.simulated import SimulatedMemberships, Simulation, simulated_clients
from feddkd.config import Config
from feddkd.data.examples import Examples
from feddkd.engines.local_clients import LocalClients, work_of
from feddkd.errors import RunError, StateError, StateHeldError
from feddkd.exchange import ExchangeId
from feddkd.transport.options import allow_connections

Bytes = npt.NDArray[np.uint8]
_T = TypeVar("_T")

CONFIG = "config.toml"
"""The file in the folder of the clients' state that a host reads."""

LOCK_PATIENCE_S = 20.0
"""Seconds that a host waits for a state directory: the process that held it may be about to end."""

LOCK_PAUSE_S = 0.05


class Frames(NamedTuple):
    """Stream messages end to end: one array crosses the object store without a copy.

    Attributes:
        data: uint8, all messages.
        ends: where each of them ends, in bytes.
    """

    data: Bytes
    ends: tuple[int, ...]

    @classmethod
    def of(cls, messages: Iterable[bytes]) -> Frames:
        """Put messages end to end."""
        kept = list(messages)
        ends = tuple(itertools.accumulate(map(len, kept)))
        return cls(np.frombuffer(b"".join(kept), dtype=np.uint8), ends)

    def messages(self) -> list[memoryview]:
        """Return the messages; they share the memory of `data`."""
        view = self.data.data
        return [view[start:stop] for start, stop in itertools.pairwise((0, *self.ends))]


class Packed(NamedTuple):
    """An object whose tensors are arrays of the object store: all processes of a node share their memory."""

    pickled: bytes
    arrays: list[Bytes]

    @classmethod
    def of(cls, found: Any) -> Packed:
        """Take an object apart. Raises what pickle does for one that cannot be sent."""
        out, buffers = BytesIO(), list[pickle.PickleBuffer]()
        _TensorPickler(out, protocol=5, buffer_callback=buffers.append).dump(found)
        return cls(out.getvalue(), [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers])

    def unpack(self) -> Any:
        """Put the object together; its tensors must not be written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return pickle.loads(self.pickled, buffers=self.arrays)  # noqa: S301  # of this run's own process


class _TensorPickler(pickle.Pickler):
    """Takes tensors as arrays, so that their memory is no part of the pickle."""

    def reducer_override(self, obj: Any) -> Any:
        plain = type(obj) is torch.Tensor and obj.device.type == "cpu" and not obj.requires_grad and obj.dtype != torch.bfloat16
        return (torch.from_numpy, (obj.numpy(),)) if plain else NotImplemented


class RayHost:
    """Computes for simulated clients, one at a time, in the process of an actor.

    An actor has a second thread: `let_go` and `abort` come while a client computes.
    """

    def __init__(self) -> None:
        self._clients = LocalClients({})

    def prepare(self, state: str, examples: Packed | None, counted: Mapping[str, ExchangeId]) -> None:
        """Read the configuration from the folder of the clients' state, and prepare as a client process does.

        Args:
            state: that folder, on a file system that all nodes have.
            examples: the training examples; None to load them here.
            counted: the last exchange that each client's reply counted in.

        Raises:
            StateError: this node does not have the folder.
            ConfigError: data, partition or model are not as the configuration says.
        """
        folder = Path(state)
        if not (folder / CONFIG).is_file():
            raise StateError(f"this node does not see {folder}: the record of the run must be on a file system that all nodes share")
        allow_connections()  # a client whose worker stays has a lock
        config = Config.load(folder / CONFIG)
        given: Examples | None = examples.unpack() if examples is not None else None
        simulation = Simulation(config, folder, given)
        memberships = SimulatedMemberships(config, folder, simulation.ids)
        self._clients = LocalClients(simulated_clients(simulation), memberships, most_held=simulation.most_kept)
        self._clients.remember(counted)

    def has_constants(self, client: str, version: bytes) -> bool:
        """Return whether a client holds the constants that it is to compute with. Raises StateError."""
        return patiently(lambda: self._clients.has_constants(client, version))

    def reply_of(self, client: str, message: bytes, payload: Frames) -> Frames | None:
        """Compute a client's reply. Returns and raises as `Host.reply_of`."""
        messages = patiently(lambda: self._clients.reply_of(client, work_of(message), payload.messages()))
        return None if messages is None else Frames.of(messages)

    def settle(self, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        """Let clients know whether their replies to an exchange counted."""
        for client, counts in counted.items():
            self._clients.settle(client, exchange, counted=counts)

    def let_go(self, clients: Sequence[str]) -> None:
        """Put everything of some clients into their state directories, for another host."""
        for client in clients:
            self._clients.let_go(client)

    def abort(self, reason: str) -> None:
        """End the computation under way, and let every later one fail."""
        self._clients.abort(RunError(reason))


def patiently(work: Callable[[], _T]) -> _T:
    """Do what needs a client's state directory, as soon as no other process holds that. Raises StateError after a while."""
    until = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return work()
        except StateHeldError:
            if time.monotonic() > until:
                raise
        time.sleep(LOCK_PAUSE_S)
