"""The curves and heat maps of a report: each function draws one from groups of runs, or returns None where nothing was recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from feddkd.config import MainMetric
from feddkd.observability.run_folder import RunFolder
from feddkd.observability.wall_time import Link, seconds_by_round
from feddkd.report import series, units
from feddkd.report.axes import log_axis, score_axis, value_axis
from feddkd.report.groups import Group
from feddkd.report.heatmap import draw_heatmap, draw_partition
from feddkd.report.looks import Look
from feddkd.report.series import ByRound, Curve, Values
from feddkd.report.style import (
    DASHES,
    GREY,
    WIDTH_INCHES,
    formatter,
    legend_below,
    line_style,
    new_figure,
)

HEIGHT_INCHES = 2.7

TIME_TICKS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000, 108_000, 360_000, 1_080_000, 3_600_000)

IN_NATS = ("classification", "multilabel")
"""Tasks whose losses are cross-entropies."""

MARKED_ROUNDS = 25
"""Up to this many rounds every one gets a marker."""

FIRST_STEP: dict[str, Any] = {"linestyle": DASHES[2], "markersize": 4, "markerfacecolor": "white"}
"""How the loss at the first step is drawn."""

LOG_FROM_RATIO = 4.0
"""Where the greatest cost is this many times the least, costs are drawn on a logarithmic scale."""


def score_by_round(groups: Sequence[Group], metric: MainMetric, *, at_clients: bool) -> Figure | None:
    """A metric of the global model by round; a single run shows both what the server and what the clients measured."""
    shown = _shown(groups, series.score_values(metric.name, at_clients=at_clients))
    if not shown:
        return None
    figure, axes = new_figure(HEIGHT_INCHES)
    handles: list[Artist] = [_draw(axes, curve.rounds, curve, group.look) for group, curve in shown]
    labels = [f"{group.label}: {metric.text(curve.mean[-1])}" for group, curve in shown]
    curves = [curve for _, curve in shown]
    held_out = series.over_runs(groups[0].runs, series.score_values(metric.name, at_clients=True))
    if len(groups) == 1 and not at_clients and held_out.rounds:
        (line,) = axes.plot(held_out.rounds, held_out.mean, color="#777777", linestyle=(0, (2, 1.5)), linewidth=1.2)
        handles, labels = [handles[0], line], ["on the test set", "on what clients hold out"]
        curves.append(held_out)
    _round_axis(axes, curves)
    _score_axis(axes, metric, curves)
    if len(labels) > 1:
        legend_below(figure, handles, labels)
    return figure


def score_by_bytes(groups: Sequence[Group], metric: MainMetric, *, at_clients: bool) -> Figure | None:
    """A metric of the global model by the bytes that had crossed the wire when it was reached."""
    return _score_by_cost(groups, metric, BYTES, at_clients=at_clients)


def score_by_time(groups: Sequence[Group], metric: MainMetric, link: Link, *, at_clients: bool) -> Figure | None:
    """A metric of the global model by the time that had passed over a network when it was reached, as estimated."""

    def seconds(run: RunFolder) -> ByRound:
        return seconds_by_round(run, link)

    cost = Cost("time over the network, as estimated", seconds, units.time_unit, TIME_TICKS_S)
    return _score_by_cost(groups, metric, cost, at_clients=at_clients)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a horizontal axis shows.

    Attributes:
        of: what a run had spent after each round.
        unit: divisor and name of the unit for numbers of a size.
        ticks: of a logarithmic axis; none for powers of ten and what lies between.
    """

    label: str
    of: Callable[[RunFolder], ByRound]
    unit: Callable[[float], tuple[float, str]]
    ticks: Sequence[float] = ()

    def write(self, value: float) -> str:
        """A number at a tick of a logarithmic axis."""
        divisor, unit = self.unit(value * 1.0001)  # a tick at 1e6 may lie a bit below it
        return f"{value / divisor:.3g} {unit}"


BYTES = Cost("bytes on the wire so far", series.round_values("cumulative_wire_bytes"), units.byte_unit)


def _score_by_cost(groups: Sequence[Group], metric: MainMetric, cost: Cost, *, at_clients: bool) -> Figure | None:
    shown, costs = [], []
    for group, curve in _shown(groups, series.score_values(metric.name, at_clients=at_clients)):
        spent = series.over_runs(group.runs, cost.of)
        at_round = dict(zip(spent.rounds, spent.mean, strict=True))
        if all(number in at_round for number in curve.rounds):
            shown.append((group, curve))
            costs.append([at_round[number] for number in curve.rounds])
    if not shown:
        return None
    figure, axes = new_figure(HEIGHT_INCHES)
    handles = [_draw(axes, spent, curve, group.look) for spent, (group, curve) in zip(costs, shown, strict=True)]
    _score_axis(axes, metric, [curve for _, curve in shown])
    _cost_axis(axes, cost, costs)
    if len(groups) > 1:
        legend_below(figure, handles, [group.label for group, _ in shown])
    return figure


def _cost_axis(axes: Axes, cost: Cost, costs: Sequence[Sequence[float]]) -> None:
    """Logarithmic where some spend far more than others."""
    ends = [spent[-1] for spent in costs]
    if min(map(min, costs)) > 0 and max(ends) > LOG_FROM_RATIO * min(ends):
        axes.set_xlabel(cost.label)
        log_axis(axes, "x")
        if cost.ticks:
            axes.xaxis.set_major_locator(FixedLocator(cost.ticks))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(formatter(cost.write))
        return
    divisor, unit = cost.unit(max(ends))
    axes.set_xlabel(f"{cost.label} ({unit})")
    axes.set_xlim(0, 1.05 * max(ends) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(formatter(lambda value: f"{value / divisor:g}"))


def step_loss(groups: Sequence[Group]) -> Figure | None:
    """Clients' mean loss at the first and at the last of each round's steps."""
    figure, axes = new_figure(HEIGHT_INCHES)
    handles: list[Artist] = []
    labels, curves = [], []
    for group in groups:
        first = series.over_runs(group.runs, lambda run: series.step_losses(run)[0])
        last = series.over_runs(group.runs, lambda run: series.step_losses(run)[1])
        if not first.rounds:
            continue
        marker = "o" if len(first.rounds) <= MARKED_ROUNDS else ""
        axes.plot(first.rounds, first.mean, color=group.look.color, marker=marker, **FIRST_STEP)
        line = _draw(axes, last.rounds, last, group.look)
        if len(group.runs) == len(groups) == 1:
            both = [number for number in first.rounds if number in last.rounds]
            before, after = (dict(zip(curve.rounds, curve.mean, strict=True)) for curve in (first, last))
            between = [before[n] for n in both], [after[n] for n in both]
            axes.fill_between(both, *between, color=group.look.color, alpha=0.1, linewidth=0)
        handles.append(line)
        labels.append(group.label)
        curves += [first, last]
    if not curves:
        return None
    _round_axis(axes, curves)
    value_axis(axes, [value for curve in curves for value in curve.mean])
    axes.set_ylabel("clients' mean loss" + (" (nats)" if groups[0].metric.task in IN_NATS else ""))
    dotted = Line2D([], [], color=GREY, marker="o", **FIRST_STEP)
    solid = Line2D([], [], color=GREY, marker="o", markersize=3)
    handles, labels = (handles, labels) if len(groups) > 1 else ([], [])
    legend_below(figure, [*handles, dotted, solid], [*labels, "at the first step", "at the last step"])
    return figure


def metric_by_round(groups: Sequence[Group], name: str, axis_label: str, axis_top: float = 0.0, *, is_share: bool = False) -> Figure | None:
    """One metric by round; the axis reaches up to `axis_top` at least, and is in percent for a share."""
    shown = _shown(groups, series.metric_values(name))
    if not shown:
        return None
    figure, axes = new_figure(HEIGHT_INCHES)
    handles = [_draw(axes, curve.rounds, curve, group.look) for group, curve in shown]
    _round_axis(axes, [curve for _, curve in shown])
    axes.set_ylabel(axis_label)
    value_axis(axes, [value for _, curve in shown for value in curve.mean], axis_top)
    if is_share:
        axes.yaxis.set_major_formatter(formatter(lambda value: f"{100 * value:.3g}%"))
    if len(groups) > 1:
        legend_below(figure, handles, [group.label for group, _ in shown])
    return figure


def class_accuracy(group: Group) -> Figure | None:
    """Accuracy of the global model on each class, by round."""
    found = series.class_accuracy(group.runs)
    if found is None:
        return None
    rounds, cells = found
    height = min(max(0.24 * len(cells), 1.8), 7.0) + 0.9
    figure, axes = draw_heatmap(
        100 * cells,
        (WIDTH_INCHES, height),
        shade="Greens",
        unit="accuracy (%)",
        write=lambda value: f"{value:.0f}",
        largest=100.0,
        columns=rounds,
    )
    axes.set(xlabel="round", ylabel="class")
    return figure


def partition(counts: Mapping[str, Sequence[int]]) -> Figure | None:
    """Which client holds how many examples of which class."""
    classes = max((len(row) for row in counts.values()), default=0)
    if not classes:
        return None
    cells = np.array([[*row, *[0] * (classes - len(row))] for row in counts.values()], dtype=np.int64)
    return draw_partition(cells, "", (WIDTH_INCHES, min(max(0.24 * classes, 1.8), 7.0) + 0.9))


def _shown(groups: Sequence[Group], values: Values) -> list[tuple[Group, Curve]]:
    """The groups that have something to show, with their numbers."""
    curves = [series.over_runs(group.runs, values) for group in groups]
    return [(group, curve) for group, curve in zip(groups, curves, strict=True) if curve.rounds]


def _draw(axes: Axes, x: Sequence[float], curve: Curve, look: Look) -> Line2D:
    """A group's mean, with a band from the lowest to the highest run."""
    is_short = len(curve.rounds) <= MARKED_ROUNDS
    # Of a long line only the end is marked, which may lie among others; the legend then shows the marker too.
    marked: dict[str, Any] = {} if is_short else {"markevery": [-1]}
    (line,) = axes.plot(x, curve.mean, **line_style(look, marked=True), **marked)
    if curve.low != curve.high:
        axes.fill_between(x, curve.low, curve.high, color=look.color, alpha=0.18, linewidth=0)
    return line


def _round_axis(axes: Axes, curves: Sequence[Curve]) -> None:
    """Logarithmic where some runs have far more rounds than others."""
    axes.set_xlabel("round")
    axes.grid(visible=True)
    ends = [curve.rounds[-1] for curve in curves if curve.rounds]
    starts = [curve.rounds[0] for curve in curves if curve.rounds]
    if min(starts) == max(ends):
        axes.set_xlim(min(starts) - 1, max(ends) + 1)  # a lone round has no width of its own
    elif min(starts) > 0 and max(ends) > LOG_FROM_RATIO * min(ends):
        log_axis(axes, "x")
        axes.xaxis.set_major_formatter(formatter(lambda value: f"{value:g}"))
        return
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))


def _score_axis(axes: Axes, metric: MainMetric, curves: Sequence[Curve]) -> None:
    score_axis(axes, metric, [value for curve in curves for value in curve.mean], min(value for curve in curves for value in curve.low))
