"""How pictures look: colours that any colour vision can tell apart, and type that a phone can show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
"""Okabe and Ito's colours; yellow comes last, for it is the faintest on white."""

DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
"""With more lines than hues the hues come again with other dashes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

GREY = "#555555"

WIDTH_INCHES = 4.4
"""Narrow on purpose: a phone shrinks this by a fifth, and 9 points must survive that."""

LEGEND_LINE_INCHES = 0.19
LEGEND_LETTERS = 54

_SETTINGS: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8.5,
    "axes.facecolor": "none",
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "text.usetex": False,
    "text.parse_math": False,  # a name may hold dollars
    "svg.fonttype": "path",  # the reader's machine may lack the font
    "svg.hashsalt": "feddkd",  # the same runs give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Pictures that are made and saved inside look as this module says, whatever the user's own settings."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def line_style(index: int, marked: bool) -> dict[str, Any]:
    """Colour, dashes and markers of the group with this number."""
    look = {"color": hue(index), "linestyle": DASHES[index // len(HUES) % len(DASHES)]}
    return look | {"marker": MARKERS[index % len(MARKERS)], "markersize": 3.5} if marked else look


def hue(index: int) -> str:
    return HUES[index % len(HUES)]


def pale(color: str) -> str:
    """The same hue mixed with white: unlike a translucent one it hides the grid behind it."""
    red, green, blue = (0.4 * part + 0.6 for part in to_rgb(color))
    return to_hex((red, green, blue))


def new_figure(height_inches: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, made for the page's column."""
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """A legend under the axes; the figure grows by what it needs, so that the axes keep their size."""
    longest = max(map(len, labels))
    columns = min(len(labels), 3 if longest <= 14 else 2 if longest <= 26 else 1)
    wrapped = [textwrap.fill(label, LEGEND_LETTERS) for label in labels]
    lines = sum(label.count("\n") for label in wrapped) + math.ceil(len(labels) / columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + lines * LEGEND_LINE_INCHES + 0.1)
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns, frameon=False)


def formatter(write: Callable[[float], str]) -> FuncFormatter:
    """A tick formatter from a function of the value alone."""
    return FuncFormatter(lambda value, _position: write(value))
