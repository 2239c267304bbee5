"""The picture of the frontier: the metric by bytes for all runs, and at each budget the best of each method and of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from feddkd.report import units
from feddkd.report.axes import Numbers, log_axis, score_axis
from feddkd.report.frontier import Frontier, Method, Step, front
from feddkd.report.looks import Look
from feddkd.report.style import formatter, legend_below, line_style, new_figure

HEIGHT_INCHES = 3.6

MOST_COLOURED = 8
"""Of the methods, so many are drawn in colour: those on the frontier first."""

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
        look = coloured.get(track.method)
        color = look.color if look else FAINT
        costs = _positive(track.wire_bytes)
        axes.plot(costs, track.scores, color=color, linewidth=0.7, alpha=0.4, zorder=2)
    handles: list[Artist] = []
    for method, look in coloured.items():
        own = frontier.of_method(method)
        end = max(track.wire_bytes[-1] for track in own)
        handles.append(_draw_steps(axes, front(own), end, **line_style(look, marked=False)))
    labels = [frontier.name_of(method) for method in coloured]
    scores = [value for track in frontier.tracks for value in track.scores]
    score_axis(axes, frontier.metric, scores, min(scores), room_below=1.5 * STRIP)
    _bytes_axis(axes, frontier)
    _draw_strip(axes, frontier, coloured)
    handles += [Line2D([], [], color=BAND, linewidth=5), Line2D([], [], color=GROUND, linewidth=0.7, alpha=0.6)]
    labels += ["frontier: the best of all for the bytes", "every setting, round by round"]
    legend_below(figure, handles, labels)
    return figure


def _coloured(frontier: Frontier) -> dict[Method, Look]:
    """The look of each method that is drawn in colour."""
    methods = list(frontier.methods)
    on_it = {frontier.tracks[corner.track].method for corner in frontier.corners}
    chosen = sorted(methods, key=lambda method: method not in on_it)[:MOST_COLOURED]
    return {method: look for method, look in frontier.looks.items() if method in chosen}


def _draw_steps(axes: Axes, corners: Sequence[Step], end_bytes: float, **drawn: Any) -> Line2D:
    """Corners joined by steps: what was reached stays reached until more is."""
    costs = [*(corner.wire_bytes for corner in corners), end_bytes]
    scores = [*(corner.score for corner in corners), corners[-1].score]
    drawn |= {"drawstyle": "steps-post", "solid_joinstyle": "round"}
    (line,) = axes.plot(_positive(costs), scores, **drawn)
    return line


def _positive(costs: Sequence[float]) -> list[float]:
    """For a logarithmic axis: what cost nothing is drawn as if it had cost one byte."""
    return [max(cost, 1.0) for cost in costs]


def _bytes_axis(axes: Axes, frontier: Frontier) -> None:
    axes.set_xlabel("bytes on the wire so far, all clients, both directions")
    log_axis(axes, "x")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(formatter(units.short_size))
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


def _draw_strip(axes: Axes, frontier: Frontier, coloured: Mapping[Method, Look]) -> None:
    """Along the bottom, the colour of the method that is the best for the bytes."""
    leads = [(corner.wire_bytes, frontier.tracks[corner.track].method) for corner in frontier.corners]
    starts = [lead for place, lead in enumerate(leads) if not place or lead[1] != leads[place - 1][1]]
    ends = [*(start for start, _ in starts[1:]), frontier.end_bytes]
    for (start, method), end in zip(starts, ends, strict=True):
        left, right = _positive([start, end])
        color = coloured[method].color if method in coloured else FAINT
        axes.axvspan(left, right, 0, STRIP, color=color, linewidth=0, zorder=4)
