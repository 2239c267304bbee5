"""Pictures of tables of numbers as heat maps, above all of a partition: which client holds how much of which class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from feddkd.errors import ConfigError
from feddkd.extras import install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANNOTATED = 20
"""Up to this many columns and rows every cell shows its number."""

MAX_TICKS = 25
TICKS_PER_INCH = 3


def save_heatmap(counts: Tensor, path: Path, title: str) -> None:
    """Draw `counts` (int64 [clients, classes]) as a PNG: clients on x, classes on y.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    figure = draw_partition(counts.numpy(), title, _size_inches(*counts.shape))
    try:
        figure.savefig(path, dpi=150, format="png")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def draw_partition(counts: np.ndarray[Any, Any], title: str, size_inches: tuple[float, float]) -> Figure:
    """A heat map of `counts` (int [clients, classes]) that leaves white what a client has none of.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    # White is left to cells without examples: the classes that a client lacks must not look like those that it has few of.
    figure, axes = draw_heatmap(np.ma.masked_equal(counts.T, 0), size_inches, shade="Blues", unit="examples", write=str)
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.set(xlabel="client", ylabel="class")
    return figure


def draw_heatmap(
    cells: np.ma.MaskedArray[Any, Any],
    size_inches: tuple[float, float],
    *,
    shade: str,
    unit: str,
    write: Callable[[Any], str],
    largest: float | None = None,
    columns: Sequence[int] | None = None,
) -> tuple[Figure, Axes]:
    """Draw `cells` [rows, columns], the first row at the bottom; masked cells stay white.

    Args:
        shade: name of a colour map of one hue.
        unit: of the numbers, written beside the scale.
        write: a cell's number as text, for tables small enough to show them.
        largest: end of the scale, which starts at 0; None for the largest number there is.
        columns: what the columns are called, if not 0, 1, 2...

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ConfigError(f"matplotlib is not installed; get it with: {install_command('plot')}") from None
    rows, width = cells.shape
    names = columns if columns is not None else range(width)
    figure = Figure(figsize=size_inches, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # One hue from light to dark reads the same with any colour vision and in print.
    shades = ListedColormap(matplotlib.colormaps[shade](np.linspace(0.12, 1.0, 256)))
    end = largest if largest is not None else max(1.0, float(cells.filled(0).max()))
    image = axes.imshow(cells, cmap=shades, vmin=0, vmax=end, aspect="auto", interpolation="nearest", origin="lower")
    figure.colorbar(image, ax=axes, label=unit, pad=0.02, aspect=max(20, 7 * size_inches[1]))
    ticks = _ticks(width, size_inches[0], first=names[0])
    axes.set(xticks=ticks, xticklabels=[str(names[tick]) for tick in ticks], yticks=_ticks(rows, 2 * size_inches[1]))
    axes.tick_params(length=0)
    axes.spines[:].set_color("0.8")
    if width <= ANNOTATED and rows <= ANNOTATED:
        _annotate(axes, cells, write, dark_from=end / 2)
    return figure, axes


def _annotate(axes: Axes, cells: np.ma.MaskedArray[Any, Any], write: Callable[[Any], str], dark_from: float) -> None:
    """Numbers in the cells, and lines between them."""
    rows, columns = cells.shape
    axes.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            if value is not np.ma.masked:
                color = "white" if value > dark_from else "black"
                axes.text(column, row, write(value), ha="center", va="center", fontsize=7, color=color)


def _size_inches(clients: int, classes: int) -> tuple[float, float]:
    return min(max(0.45 * clients, 5.0), 14.0) + 1.5, min(max(0.32 * classes, 3.0), 12.0) + 1.0


def _ticks(count: int, length_inches: float, first: int = 0) -> list[int]:
    """Every position, or so many of them that labels do not collide, where the name (counted from `first`) is a round number."""
    limit = min(MAX_TICKS, int(TICKS_PER_INCH * length_inches * (0.7 if first + count > 100 else 1)))
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if count <= step * limit), count)
    return [position for position in range(count) if (first + position) % step == 0] or [0]
