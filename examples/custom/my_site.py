"""A site's own data and its own network. A configuration names them as `my_site:load` and `my_site:model`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

SENSORS = 8
STATES = 4


def load(root: Path | None, train: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Readings of eight sensors on a machine that is in one of four states; made up here, the states overlap.

    A real site would read files below `root`, which is `data.root` of its configuration. Returns
    inputs float32 [n, 8] and labels int64 [n]; a map-style torch data set of (input, label) pairs would do as well.
    """
    del root
    centres = np.random.default_rng(0).normal(size=(STATES, SENSORS))
    rng = np.random.default_rng(1 if train else 2)
    states = np.arange(2000 if train else 500) % STATES
    readings = centres[states] + rng.normal(size=(len(states), SENSORS))
    return readings.astype(np.float32), states.astype(np.int64)


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Maps float32 [B, *input_shape] to logits [B, num_classes]; all sites must build the same tensors."""
    (features,) = input_shape
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, num_classes))
