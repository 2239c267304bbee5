"""A network that kills the process that computes with it, once, when a test asks for that."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import Tensor, nn

VARIABLE = "MORTAL"
"""Names the file that asks for it; the process whose id is in there is spared."""


class Mortal(nn.Linear):
    """Dies in the next forward pass if the file is there, and removes it first."""

    def forward(self, inputs: Tensor) -> Tensor:
        order = Path(os.environ[VARIABLE])
        try:
            if int(order.read_text()) != os.getpid():
                order.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        except FileNotFoundError:  # nobody asks for it, or another process was faster
            pass
        return super().forward(inputs)


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    inputs = 1
    for size in input_shape:
        inputs *= size
    return nn.Sequential(nn.Flatten(), Mortal(inputs, num_classes))
