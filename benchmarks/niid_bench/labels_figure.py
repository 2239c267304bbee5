"""The picture of docs/labels.md: accuracy against the share of the labels, one panel a partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feddkd.observability.budgets import Spread
from feddkd.report.looks import Look, looks_of
from niid_bench.cells import TITLES
from niid_bench.labels import SKEWED
from niid_bench.labels_names import ROW_NAMES
from niid_bench.labels_outcomes import LabelOutcomes

SHARES = {"1%": 1.0, "3%": 3.0, "10%": 10.0, "all": 100.0}
"""Percent of the images that have a label, by case."""

ALGORITHMS = ("feddkd", "self_training", "fedavg_sgd", "fedavg")
"""Whose look each row has."""

TICKS = (50, 70, 80, 90, 95, 97, 98, 98.5)
"""Percent. The axis is logarithmic in the error, so that the last points have room."""

LARGEST_ERROR, LEAST_ERROR = 60.0, 1.2
"""Percent, at the bottom and at the top."""

SIZE_INCHES = (7.4, 3.9)


def draw(found: LabelOutcomes, path: Path) -> None:
    """Lines are means over the seeds, whiskers reach from the lowest seed to the highest.

    FedDKD has its last round, the others have their best.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from feddkd.report.style import style

    with style():
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(SKEWED), sharey=True)
        for panel, partition in zip(panels, SKEWED, strict=True):
            for row, look in zip(ROW_NAMES, looks_of(ALGORITHMS), strict=True):
                _draw_row(panel, found, row, partition, look)
            _set_axes(panel, partition, _largest_error(found))
        panels[0].set_ylabel("test accuracy (%)")
        lines = {line.get_label(): line for panel in panels for line in panel.containers}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(ROW_NAMES), frameon=False)
        figure.savefig(path, dpi=160)


def has_points(found: LabelOutcomes) -> bool:
    """Whether there is anything to draw."""
    return any(_value(found, case, row, partition) for case in SHARES for row in ROW_NAMES for partition in SKEWED)


def _value(found: LabelOutcomes, case: str, row: str, partition: str) -> Spread | None:
    return found.final(case, row, partition) if row == "feddkd" else found.best(case, row, partition)


def _largest_error(found: LabelOutcomes) -> float:
    values = [_value(found, case, row, partition) for case in SHARES for row in ROW_NAMES for partition in SKEWED]
    return min(1.15 * max((100 - 100 * value.lowest for value in values if value), default=LARGEST_ERROR), LARGEST_ERROR)


def _draw_row(panel: Any, found: LabelOutcomes, row: str, partition: str, look: Look) -> None:
    from feddkd.report.style import line_style

    points = [(share, value) for case, share in SHARES.items() if (value := _value(found, case, row, partition))]
    if not points:
        return
    shares, values = zip(*points, strict=True)
    means = [100 * value.mean for value in values]
    # At least zero: the mean of equal numbers may be off by a rounding.
    reach = [
        [max(100 * (value.mean - value.lowest), 0.0) for value in values],
        [max(100 * (value.highest - value.mean), 0.0) for value in values],
    ]
    drawn = line_style(look, marked=True)
    panel.errorbar(shares, means, yerr=reach, capsize=2, elinewidth=0.8, label=ROW_NAMES[row], **drawn)


def _set_axes(panel: Any, partition: str, largest_error: float) -> None:
    from matplotlib.ticker import NullLocator

    panel.set_xscale("log")
    panel.set_xlim(0.8, 125)
    panel.set_xticks([*SHARES.values()], ["1 %", "3 %", "10 %", "all"])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_yscale("function", functions=(_height, _accuracy))
    panel.set_ylim(100 - largest_error, 100 - LEAST_ERROR)
    panel.set_yticks(
        [tick for tick in TICKS if tick >= 100 - largest_error], [f"{tick:g}" for tick in TICKS if tick >= 100 - largest_error]
    )
    panel.set(title=TITLES[partition], xlabel="images that have a label")
    panel.grid(visible=True)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _height(accuracy: Any) -> Any:
    """Of an accuracy in percent."""
    import numpy as np

    return -np.log10(np.maximum(100 - np.asarray(accuracy), 1e-3))


def _accuracy(height: Any) -> Any:
    import numpy as np

    return 100 - 10.0 ** -np.asarray(height)
