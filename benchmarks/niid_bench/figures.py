"""The pictures of docs/benchmarks.md: accuracy by round and by bytes, one column a partition."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from niid_bench.cells import TITLES
from niid_bench.outcomes import CONTROL, DKD, LONGER, Outcomes

COLORS = {
    "feddkd": "#0072b2",
    "feddkd_pure": "#56b4e9",
    "feddkd_ntd": "#f0e442",
    CONTROL: "#e69f00",
    "fedavg": "#aaaaaa",
    "fedavg_tuned": "#666666",
    LONGER: "#000000",
}
OTHERS = [(color, dashes) for dashes in ("-", ":") for color in ("#d55e00", "#009e73", "#cc79a7")]
"""Of the others: there are as many at most as partitions."""


def chosen(outcomes: Outcomes) -> list[str]:
    """FedDKD, its controls, and the algorithms that are the best of the others on some partition."""
    best = [name for partition in outcomes.partitions if (name := outcomes.best_other(partition))]
    wanted = [*DKD, CONTROL, "fedavg", "fedavg_tuned", LONGER, *dict.fromkeys(best)]
    return [name for name in dict.fromkeys(wanted) if name in outcomes.algorithms]


def draw(outcomes: Outcomes, path: Path) -> None:
    """Lines are means over the seeds, bands reach from the lowest seed to the highest."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = len(outcomes.partitions)
    figure, axes = plt.subplots(2, columns, figsize=(1.2 + 2.7 * columns, 5.6), sharey=True, squeeze=False, layout="constrained")
    others = itertools.cycle(OTHERS)
    for algorithm in chosen(outcomes):
        color, dashes = (COLORS[algorithm], "-") if algorithm in COLORS else next(others)
        for (by_round, by_bytes), partition in zip(axes.T, outcomes.partitions, strict=True):
            _draw_row(by_round, by_bytes, outcomes, algorithm, partition, color, dashes)
    for (by_round, by_bytes), partition in zip(axes.T, outcomes.partitions, strict=True):
        by_round.set(title=f"{TITLES[partition]} ({partition})", xlabel="round", ylim=(0, 100))
        by_bytes.set(xlabel="MB on the wire", xscale="log")
        by_bytes.xaxis.set_minor_formatter(NullFormatter())
        by_bytes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        by_bytes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
        for each in (by_round, by_bytes):
            each.grid(visible=True, color="#dddddd", linewidth=0.6)
            each.spines[["top", "right"]].set_visible(False)
    for first in axes[:, 0]:
        first.set_ylabel("test accuracy (%)")
    lines = {line.get_label(): line for each in axes.flat for line in each.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _draw_row(by_round: Any, by_bytes: Any, outcomes: Outcomes, algorithm: str, partition: str, color: str, dashes: str) -> None:
    curves = [outcome.curve for outcome in outcomes.of(algorithm, partition)]
    if not curves:
        return
    rounds = range(min(len(curve.rounds) for curve in curves))
    seeds = [[100 * (curve.accuracy[number] or 0.0) for curve in curves] for number in rounds]
    mean, low, high = [sum(values) / len(values) for values in seeds], [min(values) for values in seeds], [max(values) for values in seeds]
    sizes = [curves[0].wire_bytes[number] / 1e6 for number in rounds]
    # FedDKD lies on top, and the control, which it often covers, is dashed.
    style = {"color": color, "linestyle": dashes, "linewidth": 1.5, "label": algorithm, "zorder": 3 if algorithm in DKD else 2}
    style |= {"linestyle": "--", "zorder": 4} if algorithm == CONTROL else {}
    by_bytes.plot(sizes, mean, **style)
    by_bytes.fill_between(sizes, low, high, color=color, alpha=0.18, linewidth=0)
    if algorithm != LONGER:  # its rounds would push the others to the edge
        by_round.plot([number + 1 for number in rounds], mean, **style)
        by_round.fill_between([number + 1 for number in rounds], low, high, color=color, alpha=0.18, linewidth=0)
