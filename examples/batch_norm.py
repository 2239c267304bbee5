"""A convolutional network with normalisation, three ways: averaged BatchNorm, local BatchNorm, GroupNorm.

Each client holds two classes. The averaged statistics of BatchNorm are those of no client's data, each
client's own (`model.local_buffers`) are, and GroupNorm has none. With own statistics the server's
number means little: its network has the first ones.

    python examples/batch_norm.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

import feddkd


def convolutional(input_shape: tuple[int, ...], num_classes: int, norm: nn.Module) -> nn.Module:
    """Build a small network around a normalisation of 16 channels."""
    channels, height, width = input_shape
    pooled = 16 * (height // 2) * (width // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(pooled, num_classes)
    )


def batch_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Normalise by the statistics of a batch, in evaluation by their running mean."""
    return convolutional(input_shape, num_classes, nn.BatchNorm2d(16))


def group_norm(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Normalise each example by itself."""
    return convolutional(input_shape, num_classes, nn.GroupNorm(4, 16))


def main() -> None:
    settings = {"rounds": 3, "training.epochs": 2, "dkd.steps": 10, "partition.clients": 5, "partition.labels": 2, "data.holdout": 0.2}
    ways = {
        "BatchNorm, averaged": (batch_norm, False),
        "BatchNorm, each client's own": (batch_norm, True),
        "GroupNorm": (group_norm, False),
    }
    for title, (model, is_local) in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            own = {**settings, "model.local_buffers": is_local}
            run = feddkd.run(own, model=model, out=Path(folder, "run"), progress=False)
        clients, server = run.exchanges[-1]["client_accuracy"], run.rounds[-1]["accuracy"]
        print(f"{title}: {clients:.2%} of what the clients hold out, {server:.2%} of the server's test set")


if __name__ == "__main__":
    main()
