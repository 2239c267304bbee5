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
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from feddkd.report.looks import PAPER, Look, mixed

DASHES: tuple[Any, ...] = ("solid", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
"""By the number of a look's dashes."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

GREY = "#555555"

WIDTH_INCHES = 4.4
"""Narrow on purpose: a phone shrinks this by a fifth, and 9 points must survive that."""

LEGEND_LINE_INCHES = 0.19
LEGEND_LETTERS = 54

FONT = "DejaVu Sans"
"""It comes with matplotlib, so the same runs give the same picture everywhere."""

_SETTINGS: dict[Any, Any] = {
    "font.family": FONT,
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
    "svg.fonttype": "none",  # text stays text: it can be edited, searched and read aloud
    "pdf.fonttype": 42,  # TrueType outlines are embedded; many journals refuse matplotlib's Type 3
    "svg.hashsalt": "feddkd",  # the same runs give the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Pictures that are made and saved inside look as this module says, whatever the user's own settings."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def line_style(look: Look, marked: bool) -> dict[str, Any]:
    """Colour, dashes and markers of a group's line, and how far it lies to the front."""
    line = {
        "color": look.color,
        "linestyle": DASHES[look.dashes],
        "linewidth": 2.0 if look.front >= 2 else 1.5,
        "zorder": 2.5 + 0.1 * look.front,
    }
    return line | {"marker": MARKERS[look.marker], "markersize": 3.5} if marked else line


def pale(color: str) -> str:
    """The same hue mixed with white: unlike a translucent one it hides the grid behind it."""
    return mixed(color, PAPER, 0.6)


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
