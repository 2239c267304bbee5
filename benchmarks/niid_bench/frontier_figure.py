"""The picture of docs/frontier.md: accuracy against bytes in units, one panel a partition."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from niid_bench.cells import TITLES
from niid_bench.frontier_outcomes import Frontier

STYLES = {
    "feddkd_fp32": ("#56b4e9", "-"),
    "feddkd_balanced": ("#009e73", "-"),
    "feddkd_balanced_int8": ("#009e73", ":"),
    "feddkd_frugal": ("#0072b2", "-"),
    "feddkd_frugal_bf16": ("#0072b2", ":"),
    "feddkd_quarter": ("#332288", "-"),
    "fedavg_fp32": ("#aaaaaa", "-"),
    "fedavg_coded": ("#000000", "-"),
    "fedavg_piggyback": ("#d55e00", "-"),
}
"""Color and dashes of the rows that are drawn; the others lie on these or are controls."""

NAMES = {
    "feddkd_fp32": "FedDKD without codecs",
    "feddkd_balanced": "FedDKD, balanced",
    "feddkd_balanced_int8": "FedDKD, balanced, int8",
    "feddkd_frugal": "FedDKD, frugal",
    "feddkd_frugal_bf16": "FedDKD, frugal, bf16",
    "feddkd_quarter": "FedDKD, frugal, 5 steps",
    "fedavg_fp32": "FedAvg without codecs",
    "fedavg_coded": "FedAvg, codecs of frugal",
    "fedavg_piggyback": "FedAvg, codecs and piggyback",
}
"""What a reader calls them."""

TICKS = (10, 50, 80, 90, 95, 97, 98, 98.5)
"""Percent. The axis is logarithmic in the error, so that chance and the last points both have room."""


def draw(found: Frontier, path: Path) -> None:
    """Lines are means over the seeds, bands reach from the lowest seed to the highest."""
    from feddkd.report.style import style

    with style():
        _draw(found, path)


def _draw(found: Frontier, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = len(found.partitions)
    figure = Figure(figsize=(1.5 + 3.6 * columns, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    for panel, partition in zip(axes[0], found.partitions, strict=True):
        for row in found.algorithms:
            if row in STYLES:
                _draw_row(panel, found, row, partition)
        panel.set(title=f"{TITLES[partition]} ({partition})", xlabel="bytes, in rounds of FedAvg without codecs", xscale="log")
        panel.set_yscale("function", functions=(_of_error, _of_height))
        panel.set(ylim=(5, 98.8), yticks=TICKS, yticklabels=[f"{tick:g}" for tick in TICKS])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        panel.grid(visible=True)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("test accuracy (%)")
    lines = {line.get_label(): line for each in axes.flat for line in each.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4 if columns > 1 else 2, frameon=False)
    figure.savefig(path, dpi=140)


def _of_error(accuracy: Any) -> Any:
    """Height of an accuracy in percent."""
    import numpy as np

    return -np.log10(np.maximum(100 - np.asarray(accuracy), 1e-3))


def _of_height(height: Any) -> Any:
    import numpy as np

    return 100 - 10.0 ** -np.asarray(height)


def _draw_row(panel: Any, found: Frontier, row: str, partition: str) -> None:
    curves = [outcome.curve for outcome in found.of(row, partition)]
    if not curves:
        return
    rounds = range(min(len(curve.rounds) for curve in curves))
    seeds = [[100 * (curve.scores[number] or 0.0) for curve in curves] for number in rounds]
    sizes = [found.units(curves[0].wire_bytes[number]) for number in rounds]
    color, dashes = STYLES[row]
    means, lowest, highest = ([each(values) for values in seeds] for each in (statistics.fmean, min, max))
    panel.plot(sizes, means, color=color, linestyle=dashes, linewidth=1.7, label=NAMES[row])
    panel.fill_between(sizes, lowest, highest, color=color, alpha=0.15, linewidth=0)
