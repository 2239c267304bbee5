"""Adapters on a frozen backbone: a round costs the adapters' bytes, whatever the backbone weighs.

The server starts from `model.init`. A site receives what is frozen once:

    python examples/adapters.py
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import feddkd

WIDTH = 256


class Adapted(nn.Module):
    """A frozen layer plus a trainable correction of rank 4 (LoRA, arXiv 2106.09685)."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        corrected: Tensor = self.layer(x) + x @ self.down.T @ self.up.T
        return corrected


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a backbone with two adapters, and a head that is trained whole."""
    backbone = [Adapted(nn.Linear(math.prod(input_shape), WIDTH)), nn.ReLU(), Adapted(nn.Linear(WIDTH, WIDTH)), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *backbone, nn.Linear(WIDTH, num_classes))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "backbone.safetensors")
        save_file(model((1, 8, 8), 10).state_dict(), weights)  # yours would be pretrained
        settings = {"rounds": 3, "algorithm.name": "fedavg", "partition.name": "iid", "partition.clients": 4, "model.init": str(weights)}
        run = feddkd.run(settings, model=model, out=Path(folder, "run"), progress=False)
        parameters = list(run.model.parameters())
    total = 4 * sum(parameter.numel() for parameter in parameters)
    trained = 4 * sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    for row in run.exchanges:
        down, up = (row[f"payload_bytes_{way}"] // 4 for way in ("down", "up"))
        print(f"round {row['round']} {row['exchange']}: {down:,} bytes to each site, {up:,} back")
    print(f"the model has {total:,} bytes, of which {trained:,} are trained")


if __name__ == "__main__":
    main()
