"""Read a network's features: the inputs of its last linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feddkd.data.examples import Examples
from feddkd.devices import device_for
from feddkd.dkd.teacher import by_example
from feddkd.errors import ConfigError
from feddkd.evaluation import BATCH_SIZE, Check, eval_mode, never_stop
from feddkd.structures import Structure
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION


class Features:
    """Reads the input of a module's last linear layer, by a hook during a forward pass."""

    def __init__(self, module: nn.Module, task: LearningTask[Any] = CLASSIFICATION) -> None:
        """Find the last linear layer; `task` says what outputs are. Raises ConfigError if `module` has none."""
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ConfigError(f"model {type(module).__name__} has no linear layer, so there are no features before its classifier")
        self._module = module
        self._task = task
        self._classifier = linear[-1]

    def forward(self, inputs: Structure) -> tuple[Tensor, Tensor]:
        """Compute logits [B, C] and features [B, D] of one batch."""
        features: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            features.append(arguments[0].flatten(1))

        with self._classifier.register_forward_pre_hook(keep):
            logits = self._task.outputs(self._module, inputs)
        assert isinstance(logits, Tensor)
        return logits, features[-1]

    @torch.no_grad()
    def of_all(
        self,
        examples: Examples,
        device: torch.device,
        check: Check = never_stop,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> Tensor:
        """Compute the features of all examples in eval mode; [n, D] on the CPU, NaN where an example cannot be used.

        `check` is called before every batch; what it raises ends the computation.
        """
        with eval_mode(self._module):
            read, features = [], []
            for index, inputs, _ in device_for(device).batches(examples, torch.arange(len(examples)), batch_size):
                check()
                read.append(index)
                features.append(self.forward(inputs)[1].cpu())
        return by_example(read, features, len(examples))
