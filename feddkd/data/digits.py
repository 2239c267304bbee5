"""The handwritten digits of the embedded default, which are a file of this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("digits.npz")
"""scikit-learn's copy of the data set; `digits.md` beside it states its source and licence."""

LARGEST_VALUE = 16
"""Of a pixel: it counts the dark ones among 4 x 4 pixels of the scan."""


def load_digits() -> tuple[Tensor, Tensor]:
    """Return 1,797 images, uint8 [1797, 1, 8, 8] from 0 to 16, and the digits they show, int64."""
    with np.load(FILE, allow_pickle=False) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()


def is_test_example(labels: Tensor) -> Tensor:
    """Return bool [n]: every fifth example of each digit is a test example."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        chosen[(labels == label).nonzero().squeeze(1)[4::5]] = True
    return chosen
