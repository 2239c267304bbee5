"""FedDKD whose clients stop at a gate in the middle of a computation, and client processes that can be killed there.

Named in configurations as `gated:GatedFedDKD`. A gate is one end of a pipe: the client says that it has
arrived, then waits for a word; nothing depends on how long anything takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from forking import CONTEXT
from torch import nn

from feddkd.algorithms.feddkd import FedDKD, FedDKDClient
from feddkd.client.process import main
from feddkd.exchange import Reply, Task


class Moment(NamedTuple):
    """Where a client stops: in the middle of its part of one exchange."""

    client: str
    exchange: str
    round: int = 1
    step: int = 0
    attempt: int = 0


GATES: dict[Moment, Connection[Any, Any]] = {}
"""The gates of this process."""


class GatedClient(FedDKDClient):
    def local_train(self, task: Task) -> Reply:
        with self._gate(task, forward_pass=2):  # the second mini-batch
            return super().local_train(task)

    def dkd_step(self, task: Task) -> Reply:
        with self._gate(task, forward_pass=1):  # the student's; the teacher's need no gradients
            return super().dkd_step(task)

    @contextmanager
    def _gate(self, task: Task, forward_pass: int) -> Iterator[None]:
        gate = GATES.pop(Moment(self.site.client_id, task.id.name, task.id.round, task.id.step, task.id.attempt), None)
        if gate is None:
            yield
            return
        passes = 0

        def stop(*_: object) -> None:
            nonlocal passes
            passes += torch.is_grad_enabled()
            if passes == forward_pass:
                gate.send("arrived")
                gate.recv()

        hook = self.site.module.register_forward_pre_hook(stop)
        try:
            yield
        finally:
            hook.remove()


class GatedFedDKD(FedDKD):
    client_side = GatedClient


class ClientProcess:
    """A process that runs `python -m feddkd.client.process`, forked from one that has imported it already."""

    def __init__(self, arguments: Sequence[str], gates: Sequence[Moment] = (), start: Callable[[Sequence[str]], int] = main) -> None:
        pipes = {moment: CONTEXT.Pipe() for moment in gates}
        self._gates = {moment: ours for moment, (ours, _) in pipes.items()}
        self._process = CONTEXT.Process(
            target=_run, args=(start, list(arguments), {moment: theirs for moment, (_, theirs) in pipes.items()})
        )
        self._process.start()
        for _, theirs in pipes.values():
            theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def wait_at(self, moment: Moment) -> None:
        """Return when the client has arrived there; EOFError if its process ended before."""
        assert self._gates[moment].recv() == "arrived"

    def release(self, moment: Moment) -> None:
        self._gates[moment].send("go")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def wait(self) -> int | None:
        self._process.join(30)
        return self._process.exitcode

    def close(self) -> None:
        self.kill()
        for gate in self._gates.values():
            gate.close()


StartClient = Callable[..., ClientProcess]
"""start(address, client indices, gates)"""


def _run(start: Callable[[Sequence[str]], int], arguments: Sequence[str], gates: dict[Moment, Connection[Any, Any]]) -> None:
    GATES.update(gates)
    sys.exit(start(arguments))


def batch_norm_mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A small network with running statistics and an integer counter."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, num_classes))


def wide_mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """4 MB: far more than an upload window and the buffers of a connection hold."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, num_classes))


def wider_mlp(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """10 MB."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1500), nn.ReLU(), nn.Linear(1500, 1560), nn.ReLU(), nn.Linear(1560, num_classes))
