"""Draws teacher against global model, and the metric, at each site."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from feddkd.report.axes import score_axis
from feddkd.report.groups import Group
from feddkd.report.looks import BLUE, ORANGE
from feddkd.report.series import ByRound
from feddkd.report.sites import GLOBAL, OF_CLIENT, TEACHER, Site, sites_of
from feddkd.report.style import DASHES, formatter, legend_below, new_figure

HEIGHT_INCHES = 2.7

MOST_LINES = 200
"""A picture draws the lines of so many sites; its means are of all of them."""


def teachers_and_global_model(group: Group) -> Figure | None:
    """Accuracy on what each site holds out, by round: of its teacher, and of the model that this was trained from."""
    sites = list(sites_of(group).values())
    if not any(TEACHER in site.numbers for site in sites):
        return None
    figure, axes = new_figure(HEIGHT_INCHES)
    handles = [_draw_sites(axes, sites, GLOBAL, ORANGE, DASHES[1]), _draw_sites(axes, sites, TEACHER, BLUE, DASHES[0])]
    axes.set(xlabel="round", ylabel="accuracy at the sites", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(formatter(lambda value: f"{100 * value:.3g}%"))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(visible=True)
    thin = Line2D([], [], color="#777777", linewidth=0.7)
    legend_below(figure, [handles[1], handles[0], thin], ["teachers, mean", "global model, mean", "one site"])
    return figure


def metric_at_sites(group: Group) -> Figure | None:
    """The metric of the global model on what each site holds out, by round; None for accuracy, which stands beside the teachers'."""
    metric, sites = group.metric, list(sites_of(group).values())
    name = f"{OF_CLIENT}{metric.name}"
    values = [score for site in sites for score in site.numbers.get(name, {}).values()]
    if metric.name == "accuracy" or not values:
        return None
    figure, axes = new_figure(HEIGHT_INCHES)
    mean = _draw_sites(axes, sites, name, BLUE, DASHES[0])
    score_axis(axes, metric, values, min(values))
    axes.set(xlabel="round", ylabel=f"{metric.title} at the sites" + (" (lower is better)" if metric.minimised else ""))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    thin = Line2D([], [], color="#777777", linewidth=0.7)
    legend_below(figure, [mean, thin], ["global model, mean", "one site"])
    return figure


def _draw_sites(axes: Axes, sites: Sequence[Site], name: str, color: str, dashes: Any) -> Line2D:
    """Draw a number of each site, and their mean."""
    own = [site.numbers[name] for site in sites if name in site.numbers]
    for values in own[:MOST_LINES]:
        axes.plot(sorted(values), [values[number] for number in sorted(values)], color=color, alpha=0.35, linewidth=0.7)
    mean = _mean(own)
    marker = "o" if len(mean) == 1 else ""
    (line,) = axes.plot(list(mean), list(mean.values()), color=color, linestyle=dashes, linewidth=2.2, marker=marker, zorder=3)
    return line


def _mean(curves: Iterable[ByRound]) -> ByRound:
    """The mean over the sites that have a round."""
    found: dict[int, list[float]] = defaultdict(list)
    for values in curves:
        for number, value in values.items():
            found[number].append(value)
    return {number: math.fsum(found[number]) / len(found[number]) for number in sorted(found)}
