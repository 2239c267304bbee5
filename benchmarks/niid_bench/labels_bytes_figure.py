"""The second picture of docs/labels.md: accuracy by bytes on CIFAR-10, one panel a partition."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from feddkd.report.looks import Look, looks_of
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
    "control": "control (SGD on labels)",
    "feddkd_paper": "FedDKD, paper's form",
    "feddkd": "FedDKD",
    "feddkd_frugal": "FedDKD, codecs",
}
"""What a reader of the picture calls the rows that are drawn, from the lowest to the one on top."""

ALGORITHMS = ("fedavg", "fedavg", "fedavgm", "fedadagrad", "fedavg", "fedavg_sgd", *["feddkd"] * 3)
"""Whose look each row has; rows of one algorithm differ in shade and dashes."""

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
            for row, look in _looks().items():
                _draw_row(panel, found, row, partition, look)
            _set_axes(panel, partition)
        panels[0].set_ylabel("test accuracy (%)")
        lines = {line.get_label(): line for panel in panels for line in panel.get_lines() if line.get_label() in ROWS.values()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=160)


def has_points(found: LabelOutcomes) -> bool:
    """Whether there is anything to draw."""
    return any(found.of(CASE, row, partition) for row in ROWS for partition in UNALIKE)


def _looks() -> dict[str, Look]:
    """The base look is that of the product's own FedDKD, which is the second of its rows."""
    looks = dict(zip(ROWS, looks_of(ALGORITHMS), strict=True))
    looks["feddkd"], looks["feddkd_paper"] = looks["feddkd_paper"], looks["feddkd"]
    return looks


def _draw_row(panel: Any, found: LabelOutcomes, row: str, partition: str, look: Look) -> None:
    from feddkd.report.style import line_style

    curves = [own.curve for own in found.of(CASE, row, partition)]
    if not curves:
        return
    rounds = range(min(len(curve.rounds) for curve in curves))
    sizes = [statistics.fmean(curve.wire_bytes[number] for curve in curves) / 1e6 for number in rounds]
    seeds = [[100 * (curve.scores[number] or 0.0) for curve in curves] for number in rounds]
    means, lowest, highest = ([each(values) for values in seeds] for each in (statistics.fmean, min, max))
    panel.plot(sizes, means, label=ROWS[row], **line_style(look, marked=False))
    panel.plot(sizes[-1:], means[-1:], marker="o", markersize=4, color=look.color, zorder=4)
    panel.fill_between(sizes, lowest, highest, color=look.color, alpha=0.15, linewidth=0)


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
