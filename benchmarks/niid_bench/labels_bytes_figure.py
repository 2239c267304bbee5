"""The second picture of docs/labels.md: accuracy by bytes on CIFAR-10, one panel a partition."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from niid_bench.cells import TITLES
from niid_bench.labels_outcomes import LabelOutcomes
from niid_bench.labels_verdicts import UNALIKE

CASE = "all"
ROWS = {
    "fedavg": "FedAvg",
    "fedavg_tuned": "FedAvg, tuned",
    "fedavgm": "FedAvgM",
    "fedadagrad": "FedAdagrad",
    "fedavg_coded": "FedAvg, codecs",
    "control": "SGD on the labels",
    "feddkd_paper": "FedDKD, paper's form",
    "feddkd": "FedDKD",
    "feddkd_frugal": "FedDKD, codecs",
}
"""What a reader of the picture calls the rows that are drawn, from the lowest to the one on top."""

LOOKS: dict[str, tuple[int | None, int, float]] = {
    "fedavg": (None, 0, 3.2),
    "fedavg_tuned": (6, 1, 1.4),
    "fedavgm": (3, 2, 1.6),
    "fedadagrad": (2, 0, 1.4),
    "fedavg_coded": (5, 0, 1.8),
    "control": (1, 0, 1.8),
    "feddkd_paper": (0, 1, 1.4),
    "feddkd": (0, 0, 2.2),
    "feddkd_frugal": (4, 0, 2.2),
}
"""Number of the hue, of the dashes, and width in points; rows that stay at chance lie on each other and must all be seen."""

PALE_GREY = "#bbbbbb"
"""Of the row without a hue."""

SIZE_INCHES = (7.4, 4.3)


def draw(found: LabelOutcomes, path: Path) -> None:
    """Lines are means over the seeds, bands reach from the lowest seed to the highest; a dot is a row's last round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from feddkd.report.style import style

    with style():
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(UNALIKE), sharex=True, sharey=True)
        for panel, partition in zip(panels, UNALIKE, strict=True):
            for row in ROWS:
                _draw_row(panel, found, row, partition)
            _set_axes(panel, partition)
        panels[0].set_ylabel("test accuracy (%)")
        lines = {line.get_label(): line for panel in panels for line in panel.get_lines() if line.get_label() in ROWS.values()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=160)


def has_points(found: LabelOutcomes) -> bool:
    """Whether there is anything to draw."""
    return any(found.of(CASE, row, partition) for row in ROWS for partition in UNALIKE)


def _draw_row(panel: Any, found: LabelOutcomes, row: str, partition: str) -> None:
    from feddkd.report.style import DASHES, hue

    curves = [own.curve for own in found.of(CASE, row, partition)]
    if not curves:
        return
    rounds = range(min(len(curve.rounds) for curve in curves))
    sizes = [statistics.fmean(curve.wire_bytes[number] for curve in curves) / 1e6 for number in rounds]
    seeds = [[100 * (curve.accuracy[number] or 0.0) for curve in curves] for number in rounds]
    means, lowest, highest = ([each(values) for values in seeds] for each in (statistics.fmean, min, max))
    number, dashes, width = LOOKS[row]
    color = PALE_GREY if number is None else hue(number)
    panel.plot(sizes, means, linewidth=width, color=color, linestyle=DASHES[dashes], label=ROWS[row])
    panel.plot(sizes[-1:], means[-1:], marker="o", markersize=4, color=color)
    panel.fill_between(sizes, lowest, highest, color=color, alpha=0.15, linewidth=0)


def _set_axes(panel: Any, partition: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    from feddkd.report.style import formatter

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter(formatter(lambda size: f"{size:,g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set(title=f"{TITLES[partition]} ({partition})", xlabel="MB on the wire, both directions")
    panel.grid(visible=True)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
