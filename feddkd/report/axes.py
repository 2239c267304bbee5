"""Axes that show differences: logarithmic ones, and accuracy by its error; and the names on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from feddkd.config import MainMetric
from feddkd.report.style import formatter

Numbers = np.ndarray[Any, np.dtype[np.float64]]

STRETCH_FROM = 0.85
"""Where some run is more accurate than this, each halving of the error has the same height."""

LOG_FROM_SPREAD = 20.0
"""Where the greatest of several values is this many times the least, they are drawn on a logarithmic scale."""

LABEL_LETTERS = 32
"""Of the label of a vertical axis."""

MOST_ACCURATE = 0.9995

TICKS = (
    *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    *(0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999),
)

TICK_ROOM = 0.055
"""Between two ticks, as a share of the axis."""

MARKER_ROOM = 0.02
"""Below the lowest point, so that its marker is drawn whole."""


def accuracy_axis(axes: Axes, best: float, lowest: float, room_below: float = 0.0, title: str = "accuracy") -> None:
    """Make the vertical axis one of accuracy, logarithmic in the error where accuracies are high.

    It reaches every point: below 50 % errors differ by less than a factor of two, so what a weak
    algorithm does takes little height.

    Args:
        best: the best accuracy of any line.
        lowest: the lowest accuracy of any line.
        room_below: left free at the bottom, as a share of the axis.
        title: of a metric that is a share of 1, as accuracy is.
    """
    axes.set_ylabel(_label(title))
    axes.grid(visible=True)
    if best <= STRETCH_FROM:
        top = 1.15 * best or 1.0
        axes.set_ylim(-room_below * top, top)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        high = min(1 - 0.75 * (1 - best), MOST_ACCURATE)
        low = max(min(1 - 1.15 * (1 - lowest), 1 - 1.5 * (1 - high)), 0.0)
        axes.set_yscale("function", functions=(_stretched, _unstretched))
        axes.set_ylim(_with_room(low, high, room_below or MARKER_ROOM), high)
        axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(formatter(lambda value: f"{100 * value:.3g}%"))


def score_axis(axes: Axes, metric: MainMetric, means: Sequence[float], lowest: float, room_below: float = 0.0) -> None:
    """Make the vertical axis one of a metric, after its lines were drawn.

    Args:
        means: of all lines.
        lowest: the lowest value of any band.
        room_below: left free at the bottom, as a share of the axis.
    """
    if metric.is_share and not metric.minimised:
        accuracy_axis(axes, max(means), lowest, room_below, metric.title)
        return
    axes.set_ylabel(f"{metric.title} (lower is better)" if metric.minimised else _label(metric.title))
    axes.grid(visible=True)
    value_axis(axes, means)
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        axes.set_ylim(low * (low / high) ** room_below, high)
    else:
        axes.set_ylim(low - room_below * (high - low), high)


def _label(title: str) -> str:
    """What the axis is of, as far as there is room."""
    whole = f"{title} of the global model"
    return whole if len(whole) <= LABEL_LETTERS else title


def value_axis(axes: Axes, values: Sequence[float], top: float = 0.0) -> None:
    """Logarithmic for positive values of different sizes; else from 0 on, if nothing is below it, to `top` or farther."""
    if min(values) > 0.01 * top and max(values) > LOG_FROM_SPREAD * min(values):
        log_axis(axes, "y")
        axes.yaxis.set_major_formatter(formatter(lambda value: f"{value:g}"))
    elif min(values) >= 0:
        height = max(1.08 * axes.dataLim.y1, top) or 1.0  # bands included
        axes.set_ylim(-0.02 * height if min(values) < 0.01 * height else 0, height)  # a marker at 0 is drawn whole


def _with_room(low: float, high: float, room: float) -> float:
    """A lower end that leaves room below `low`; it may be below 0."""
    bottom, top = _stretched(np.array(low)), _stretched(np.array(high))
    return float(_unstretched(bottom - room * (top - bottom)))


def _ticks(low: float, high: float) -> list[float]:
    """Those that have room, the highest first: that is where one looks."""
    heights = {tick: float(_stretched(np.array(tick))) for tick in TICKS if low <= tick <= high}
    room = TICK_ROOM * float(_stretched(np.array(high)) - _stretched(np.array(low)))
    chosen: list[float] = []
    for tick in sorted(heights, reverse=True):
        if not chosen or heights[chosen[-1]] - heights[tick] >= room:
            chosen.append(tick)
    return chosen


def _stretched(accuracy: ArrayLike) -> Numbers:
    error = np.maximum(np.subtract(1.0, accuracy), 1 - MOST_ACCURATE)
    height: Numbers = -np.log10(error)
    return height


def _unstretched(height: ArrayLike) -> Numbers:
    accuracy: Numbers = np.subtract(1.0, np.power(10.0, np.negative(height)))
    return accuracy


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic axis with enough names on it even if it covers little more than one power of ten."""
    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    # Compared by products: the quotient of two representable numbers may not be one.
    subs = (1.0,) if high > 300 * low else (1.0, 3.0) if high > 40 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())
