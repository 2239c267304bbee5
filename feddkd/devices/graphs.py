"""Record a training step as a CUDA graph, and replay it."""

from __future__ import annotations

import logging
import threading
from functools import cache

import torch
from torch import Tensor

from feddkd.devices.device import Recording, Step
from feddkd.devices.runtime import Graph, Runtime
from feddkd.structures import Structure, leaves, map_leaves

WARM_UP = 3
"""Steps before one is recorded: libraries choose algorithms, optimizers make their state."""

FEWEST_STEPS = 20
"""Of one local training; for fewer, recording costs more than it saves. A guess: not measured."""

logger = logging.getLogger(__name__)


@cache
def say_once(why: str) -> None:
    """Log why steps are not replayed, once for each reason."""
    said = "runtime.device: steps of local training run one by one, not as a CUDA graph: %s"
    logger.warning(said, why)


class RepeatedStep:
    """A step that the device repeats from a recording, for batches of the recorded shapes.

    The first calls run as they are, and say the shapes. Then one step is recorded, on tensors of
    its own that each batch is copied to. A batch of other shapes, such as the last one of a pass,
    runs as it is. A step that draws random numbers, or that cannot be recorded, is not replayed.
    """

    def __init__(
        self,
        step: Step,
        runtime: Runtime,
        capturable: Recording,
        one_records: threading.Lock,
    ) -> None:
        """Prepare to record.

        Args:
            step: on the current stream; the gradients that it leaves belong to it.
            runtime: of the device.
            capturable: entered while the step is recorded.
            one_records: held while recording; a process can do that once at a time.
        """
        self._step = step
        self._runtime = runtime
        self._capturable = capturable
        self._one_records = one_records
        self._warmed_up = 0
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []
        self._graph: Graph | None = None
        self._batch: tuple[Structure, Structure] = (None, None)
        self._loss = torch.empty(0)
        self._refused = False

    def __call__(self, index: Tensor, inputs: Structure, targets: Structure) -> Tensor:
        """Take one step and return its loss; it is overwritten by the next one."""
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves((inputs, targets))]
        if self._warmed_up == 0:
            self._shapes = shapes
        if self._refused or shapes != self._shapes:
            return self._step(index, inputs, targets)
        if self._warmed_up < WARM_UP:
            return self._warm_up(index, inputs, targets)
        if self._graph is None and not self._record(index, inputs, targets):
            return self._step(index, inputs, targets)
        return self._replay(inputs, targets)

    def _warm_up(self, index: Tensor, inputs: Structure, targets: Structure) -> Tensor:
        """Take a step as it is, and see whether it draws random numbers."""
        before = self._runtime.random_state()
        loss = self._step(index, inputs, targets)
        self._warmed_up += 1
        if not all(map(torch.equal, before, self._runtime.random_state())):
            self._refuse("the network draws random numbers in training, as dropout does")
        return loss

    def _record(self, index: Tensor, inputs: Structure, targets: Structure) -> bool:
        """Record a step without taking it. Returns whether that worked."""
        self._batch = map_leaves(torch.clone, (inputs, targets))
        graph = self._runtime.graph()
        try:
            with self._one_records, self._capturable(), self._runtime.recording(graph):
                self._loss = self._step(index, *self._batch)
        except RuntimeError as error:  # torch.cuda's, of many kinds: nothing has been computed
            self._refuse(f"recording one failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            return False
        self._graph = graph
        return True

    def _replay(self, inputs: Structure, targets: Structure) -> Tensor:
        assert self._graph is not None
        for place, leaf in zip(leaves(self._batch), leaves((inputs, targets)), strict=True):
            place.copy_(leaf)
        self._graph.replay()
        return self._loss

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._batch = (None, None)
        say_once(why)
