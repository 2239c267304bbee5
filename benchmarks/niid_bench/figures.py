"""The pictures of docs/benchmarks.md: accuracy by round and by bytes, one column a partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feddkd.report.looks import Look, looks_of
from feddkd.report.names import spoken_name
from niid_bench.cells import TITLES
from niid_bench.outcomes import CONTROL, DKD, LONGER, Outcomes

NAMES = {
    "feddkd": "FedDKD",
    "feddkd_pure": "FedDKD, teachers alone",
    "feddkd_ntd": "FedDKD with FedNTD",
    "fedavg_tuned": "FedAvg, tuned",
    LONGER: "FedAvg, 21 \N{MULTIPLICATION SIGN} the rounds",
}
"""What a reader calls rows that are not an algorithm with its defaults."""


def chosen(outcomes: Outcomes) -> list[str]:
    """FedDKD, its controls, and the algorithms that are the best of the others on some partition."""
    best = [name for partition in outcomes.partitions if (name := outcomes.best_other(partition))]
    wanted = [*DKD, CONTROL, "fedavg", LONGER, "fedavg_tuned", *dict.fromkeys(best)]
    return [name for name in dict.fromkeys(wanted) if name in outcomes.algorithms]


def looks(rows: list[str]) -> dict[str, Look]:
    """The look of each row: that of its algorithm."""
    families = ("feddkd", "fedavg")
    of = [next((one for one in families if row != CONTROL and row.startswith(f"{one}_")), row) for row in rows]
    algorithms = ["fedavg" if row == LONGER else name for row, name in zip(rows, of, strict=True)]
    return dict(zip(rows, looks_of(algorithms), strict=True))


def draw(outcomes: Outcomes, path: Path) -> None:
    """Lines are means over the seeds, bands reach from the lowest seed to the highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from feddkd.report.axes import accuracy_axis
    from feddkd.report.style import style

    columns = len(outcomes.partitions)
    with style():
        figure = Figure(figsize=(1.2 + 2.7 * columns, 5.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, columns, sharey=True, squeeze=False)
        means: list[float] = []
        for algorithm, look in looks(chosen(outcomes)).items():
            for (by_round, by_bytes), partition in zip(axes.T, outcomes.partitions, strict=True):
                means += _draw_row(by_round, by_bytes, outcomes, algorithm, partition, look)
        for (by_round, by_bytes), partition in zip(axes.T, outcomes.partitions, strict=True):
            by_round.set(title=f"{TITLES[partition]} ({partition})", xlabel="round")
            by_round.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
            _bytes_axis(by_bytes)
        for each in axes.flat:
            accuracy_axis(each, max(means), min(means))
            each.set_ylabel("")
            each.set_axisbelow(True)
            each.spines[["top", "right"]].set_visible(False)
        figure.supylabel("test accuracy", fontsize=9)
        lines = {line.get_label(): line for each in axes.flat for line in each.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(columns, 4), frameon=False)
        figure.savefig(path, dpi=140)


def _bytes_axis(panel: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    from feddkd.report.style import formatter

    panel.set(xlabel="MB on the wire", xscale="log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    panel.xaxis.set_major_formatter(formatter(lambda size: f"{size:g}"))


def _draw_row(by_round: Any, by_bytes: Any, outcomes: Outcomes, algorithm: str, partition: str, look: Look) -> list[float]:
    """Draw a row into the two panels of a partition; returns its mean accuracies."""
    from feddkd.report.style import line_style

    curves = [outcome.curve for outcome in outcomes.of(algorithm, partition)]
    if not curves:
        return []
    rounds = range(min(len(curve.rounds) for curve in curves))
    seeds = [[curve.scores[number] or 0.0 for curve in curves] for number in rounds]
    mean, low, high = [sum(values) / len(values) for values in seeds], [min(values) for values in seeds], [max(values) for values in seeds]
    sizes = [curves[0].wire_bytes[number] / 1e6 for number in rounds]
    drawn = line_style(look, marked=False) | {"label": NAMES.get(algorithm) or spoken_name(algorithm)}
    panels = [(by_bytes, sizes)]
    if algorithm != LONGER:  # its rounds would push the others to the edge
        panels.append((by_round, [float(number + 1) for number in rounds]))
    for panel, costs in panels:
        panel.plot(costs, mean, **drawn)
        panel.fill_between(costs, low, high, color=look.color, alpha=0.18, linewidth=0)
    return mean
