"""A picture of a partition: which client holds how much of which class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from feddkd.errors import ConfigError

ANNOTATED = 20
"""Up to this many clients and classes every cell shows its number."""

MAX_TICKS = 25


def save_heatmap(counts: Tensor, path: Path, title: str) -> None:
    """Draw `counts` (int64 [clients, classes]) as a PNG: clients on x, classes on y.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError("matplotlib is not installed; get it with: pip install 'feddkd[plot]'") from None
    clients, classes = counts.shape
    figure = Figure(figsize=_size_inches(clients, classes), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # One hue from light to dark reads the same with any colour vision and in print. White is left to cells without
    # examples: the classes that a client lacks must not look like those that it has few of.
    shades = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0.12, 1.0, 256)))
    cells = np.ma.masked_equal(counts.T.numpy(), 0)
    image = axes.imshow(cells, cmap=shades, vmin=0, aspect="auto", interpolation="nearest", origin="lower")
    figure.colorbar(image, ax=axes, label="examples", pad=0.02)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.set(xlabel="client", ylabel="class", xticks=_ticks(clients), yticks=_ticks(classes))
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")
    if clients <= ANNOTATED and classes <= ANNOTATED:
        _annotate(axes, counts)
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def _annotate(axes: Any, counts: Tensor) -> None:
    """Numbers in the cells, and lines between them."""
    clients, classes = counts.shape
    axes.set_xticks(np.arange(clients - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    middle = int(counts.max()) / 2
    for client, row in enumerate(counts.tolist()):
        for label, count in enumerate(row):
            if count:
                axes.text(client, label, str(count), ha="center", va="center", fontsize=7, color="white" if count > middle else "black")


def _size_inches(clients: int, classes: int) -> tuple[float, float]:
    return min(max(0.45 * clients, 5.0), 14.0) + 1.5, min(max(0.32 * classes, 3.0), 12.0) + 1.0


def _ticks(count: int) -> range:
    """Every position, or so many of them, in round steps, that labels do not collide."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    return range(0, count, next((step for step in steps if count <= step * MAX_TICKS), count))
