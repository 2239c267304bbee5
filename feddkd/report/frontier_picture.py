"""The picture of the frontier: accuracy by bytes for all runs, and at each budget the best of each method and of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import ArrayLike

from feddkd.report.axes import log_axis, short_size
from feddkd.report.frontier import Frontier, Method, Step, front
from feddkd.report.style import HUES, formatter, hue, legend_below, new_figure

Numbers = np.ndarray[Any, np.dtype[np.float64]]

HEIGHT_INCHES = 3.6

MOST_COLOURED = len(HUES)
"""Of the methods, so many are drawn in colour: those on the frontier first."""

STRETCH_FROM = 0.85
"""Where some run is more accurate than this, the axis gives each halving of the error the same height."""

LEAST_ACCURATE = 0.5
"""The stretched axis starts here, or lower where some method does not get there."""

MOST_ACCURATE = 0.9995

TICKS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)

TICK_ROOM = 0.045
"""Between two ticks, as a share of the axis."""

BAND = "#c8ced6"
FAINT = "#b4bac1"
GROUND = "#555555"

STRIP = 0.035
"""Height of the strip that says who is best, as a share of the axes."""


def draw(frontier: Frontier) -> Figure:
    """Draw the tracks of a frontier, each method in a colour of its own."""
    figure, axes = new_figure(HEIGHT_INCHES)
    coloured = _coloured(frontier)
    _draw_steps(axes, frontier.corners, frontier.end_bytes, color=BAND, linewidth=5, zorder=1.5)
    for track in frontier.tracks:
        color = hue(coloured[track.method]) if track.method in coloured else FAINT
        axes.plot(_positive(track.wire_bytes), track.accuracy, color=color, linewidth=0.7, alpha=0.4, zorder=2)
    handles: list[Artist] = []
    for method, number in coloured.items():
        own = frontier.of_method(method)
        end = max(track.wire_bytes[-1] for track in own)
        handles.append(_draw_steps(axes, front(own), end, color=hue(number), linewidth=1.8, zorder=3 - 0.001 * number))
    labels = [frontier.name_of(method) for method in coloured]
    _accuracy_axis(axes, frontier)
    _bytes_axis(axes, frontier)
    _draw_strip(axes, frontier, coloured)
    handles += [Line2D([], [], color=BAND, linewidth=5), Line2D([], [], color=GROUND, linewidth=0.7, alpha=0.6)]
    labels += ["frontier: the best of all for the bytes", "every setting, round by round"]
    legend_below(figure, handles, labels)
    return figure


def _coloured(frontier: Frontier) -> dict[Method, int]:
    """The number of each method that has a colour of its own."""
    methods = list(frontier.methods)
    on_it = {frontier.tracks[corner.track].method for corner in frontier.corners}
    chosen = sorted(methods, key=lambda method: method not in on_it)[:MOST_COLOURED]
    return {method: number for number, method in enumerate(methods) if method in chosen}


def _draw_steps(axes: Axes, corners: Sequence[Step], end_bytes: float, *, color: str, linewidth: float, zorder: float) -> Line2D:
    """Corners joined by steps: what was reached stays reached until more is."""
    costs = [*(corner.wire_bytes for corner in corners), end_bytes]
    accuracy = [*(corner.accuracy for corner in corners), corners[-1].accuracy]
    (line,) = axes.plot(
        _positive(costs), accuracy, drawstyle="steps-post", color=color, linewidth=linewidth, solid_joinstyle="round", zorder=zorder
    )
    return line


def _positive(costs: Sequence[float]) -> list[float]:
    """For a logarithmic axis: what cost nothing is drawn as if it had cost one byte."""
    return [max(cost, 1.0) for cost in costs]


def _accuracy_axis(axes: Axes, frontier: Frontier) -> None:
    best = max(max(track.accuracy) for track in frontier.tracks)
    axes.set_ylabel("accuracy of the global model")
    axes.grid(visible=True)
    if best <= STRETCH_FROM:
        top = 1.15 * best or 1.0
        axes.set_ylim(-1.5 * STRIP * top, top)
    else:
        low, high = _lowest(frontier), min(1 - 0.75 * (1 - best), MOST_ACCURATE)
        axes.set_yscale("function", functions=(_stretched, _unstretched))
        axes.set_ylim(_with_strip(low, high), high)
        axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(formatter(lambda value: f"{100 * value:.3g}%"))


def _lowest(frontier: Frontier) -> float:
    """Where a stretched axis starts: every method is on it, and the first rounds of most."""
    tops = [max(max(track.accuracy) for track in frontier.of_method(method)) for method in frontier.methods]
    return max(min(min(tops) - 0.05, LEAST_ACCURATE), 0.0)


def _with_strip(low: float, high: float) -> float:
    """A lower end that leaves room for the strip; it may be below 0."""
    bottom, top = _stretched(np.array(low)), _stretched(np.array(high))
    return float(_unstretched(bottom - 1.5 * STRIP * (top - bottom)))


def _ticks(low: float, high: float) -> list[float]:
    """Those that have room, the highest first: that is where one looks."""
    heights = {tick: float(_stretched(np.array(tick))) for tick in TICKS if low <= tick <= high}
    room = TICK_ROOM * float(_stretched(np.array(high)) - _stretched(np.array(low)))
    chosen: list[float] = []
    for tick in sorted(heights, reverse=True):
        if not chosen or heights[chosen[-1]] - heights[tick] >= room:
            chosen.append(tick)
    return chosen


def _stretched(accuracy: Numbers) -> Numbers:
    height: Numbers = -np.log10(np.maximum(np.subtract(1.0, accuracy), 1 - MOST_ACCURATE))
    return height


def _unstretched(height: Numbers) -> Numbers:
    accuracy: Numbers = np.subtract(1.0, np.power(10.0, np.negative(height)))
    return accuracy


def _bytes_axis(axes: Axes, frontier: Frontier) -> None:
    axes.set_xlabel("bytes on the wire so far, all clients, both directions")
    log_axis(axes, "x")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(formatter(short_size))
    if frontier.unit_bytes is None:
        return
    unit = frontier.unit_bytes

    def rounds(size: ArrayLike) -> Numbers:
        return np.asarray(size, dtype=np.float64) / unit

    def size(rounds: ArrayLike) -> Numbers:
        return np.asarray(rounds, dtype=np.float64) * unit

    above = axes.secondary_xaxis("top", functions=(rounds, size))
    above.set_xlabel("rounds of FedAvg without a codec for as many bytes")
    above.xaxis.set_major_formatter(formatter(lambda value: f"{value:g}"))
    above.xaxis.set_minor_locator(NullLocator())
    above.spines["top"].set_color("#888888")


def _draw_strip(axes: Axes, frontier: Frontier, coloured: Mapping[Method, int]) -> None:
    """Along the bottom, the colour of the method that is the best for the bytes."""
    leads = [(corner.wire_bytes, frontier.tracks[corner.track].method) for corner in frontier.corners]
    starts = [lead for place, lead in enumerate(leads) if not place or lead[1] != leads[place - 1][1]]
    ends = [*(start for start, _ in starts[1:]), frontier.end_bytes]
    for (start, method), end in zip(starts, ends, strict=True):
        left, right = _positive([start, end])
        axes.axvspan(left, right, 0, STRIP, color=hue(coloured[method]) if method in coloured else FAINT, linewidth=0, zorder=4)
