"""What a network makes of its inputs just before it classifies them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feddkd.data.examples import Examples
from feddkd.dkd.teacher import eval_mode
from feddkd.errors import ConfigError


class Features:
    """The input of a module's last linear layer. Watches the module while it asks, and keeps no batch alive afterwards."""

    def __init__(self, module: nn.Module) -> None:
        """Raises ConfigError if `module` has no linear layer."""
        linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ConfigError(f"model {type(module).__name__} has no linear layer, so there are no features before its classifier")
        self._module = module
        self._classifier = linear[-1]

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and features [B, D] of one batch."""
        found: list[Tensor] = []
        with self._classifier.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0].flatten(1))):
            logits: Tensor = self._module(inputs)
        return logits, found[-1]

    @torch.no_grad()
    def of_all(self, examples: Examples, device: torch.device, batch_size: int = 512) -> Tensor:
        """Features of all examples at the module's weights, in eval mode; [n, D] on the CPU."""
        with eval_mode(self._module):
            order = torch.arange(len(examples))
            return torch.cat([self.forward(x.to(device))[1].cpu() for _, x, _ in examples.batches(order, batch_size)])
