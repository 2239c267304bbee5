"""Reads a site's own images. A site's configuration names this function as `site_data:load`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt


def load(root: Path | None, train: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Inputs float32 [n, 1, 8, 8] and labels int64 [n] from the .npz file below `root`, which is `data.root`."""
    if root is None:
        raise ValueError("data.root is not set")
    with np.load(root / ("train.npz" if train else "test.npz"), allow_pickle=False) as stored:
        return stored["inputs"], stored["labels"]
