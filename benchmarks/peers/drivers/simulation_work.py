"""The FedAvg work that every simulator does: the CNN of pfl's CIFAR-10 benchmark, without dropout.

It needs torch and numpy alone, because it is imported in the virtual environment of each peer. The work is a file that
benchmarks/peers/simulation.py has written: examples float32 [n, 3, 32, 32], labels int64 [n], and `orders` int64
[rounds, cohort, samples], the examples of each client of each round in the order in which it trains on them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LR = 10, 0.1


def build(input_shape: tuple[int, ...] = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    """Build the network: 1,626,442 parameters."""
    channels, side, _ = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * ((side - 4) // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


class Work:
    """The work, read from its file into memory."""

    def __init__(self, path: str | Path) -> None:
        """Read the file."""
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        self.examples, self.labels, self.orders = (arrays.pop(name) for name in ("examples", "labels", "orders"))
        self.weights: dict[str, Tensor] = {name.removeprefix("weight."): array for name, array in arrays.items()}

    @property
    def cohort(self) -> int:
        """Clients of a round."""
        return int(self.orders.shape[1])

    def model(self) -> nn.Module:
        """Build the network with the weights that all systems start from."""
        module = build()
        module.load_state_dict(self.weights)
        return module

    def data(self, round_index: int, position: int) -> tuple[Tensor, Tensor]:
        """Return the examples and labels of one client of a round, in the order of its batches."""
        index = self.orders[round_index, position]
        return self.examples[index], self.labels[index]


def train(module: nn.Module, examples: Tensor, labels: Tensor) -> None:
    """Train for one epoch with SGD, as a bare PyTorch loop."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for inputs, targets in zip(examples.split(BATCH), labels.split(BATCH), strict=True):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def save(path: str | Path, ends_s: list[float], state: dict[str, Any]) -> None:
    """Write when each round ended, and the final weights."""
    arrays = {f"weight.{name}": tensor.detach().cpu().numpy() for name, tensor in state.items()}
    np.savez(path, ends_s=np.array(ends_s), **arrays)
