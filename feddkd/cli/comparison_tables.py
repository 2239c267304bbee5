"""The tables of `feddkd compare`, for the terminal and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.bench.verdict import ENDED_EARLY, lead_field
from feddkd.config import ACCURACY, MainMetric
from feddkd.observability.budgets import Spread
from feddkd.report import units
from feddkd.report.frontier import Frontier
from feddkd.report.frontier_table import frontier_table
from feddkd.report.table import Data, Table, Value, best_cells
from feddkd.report.tables import BYTES, EVALUATIONS, MOMENTS, best_scores, score_caption, score_headers, score_text, spread_values
from feddkd.report.tables import COSTS as COSTS_CAPTION

Numbers = Mapping[str, float | None] | None

NONE = "-"
EARLY = "*"

COSTS = ("wire_bytes", "seconds", "gradient_evaluations")

BUDGETS = ("equal_rounds", "equal_wire_bytes", "equal_gradient_evaluations")


@dataclass(frozen=True, slots=True)
class Labels:
    """What rows are called, by their label in the JSON document, which is their code name in CSV."""

    names: Mapping[str, str]

    def __getitem__(self, label: str) -> str:
        return self.names[label]

    def row(self, label: str, *values: Value) -> list[Value]:
        """A row of CSV."""
        return [self.names[label], label, *values]


def comparison_tables(document: Mapping[str, Any], names: Mapping[str, str], frontier: Frontier | None, *, short: bool) -> list[Table]:
    """Return the tables of a comparison.

    Args:
        document: of `feddkd.bench.side_by_side.results`.
        names: what a reader calls each row, by its label in the document.
        short: for a terminal of 80 columns.
    """
    labels = Labels(names)
    metric = MainMetric(document.get("metric", ACCURACY.name), document.get("minimised", False))
    return [
        _whole_runs(document, labels, metric, short=short),
        _verdict(document["verdicts"], labels, len(document["seeds"]), metric),
        _equal_budgets(document, labels, metric),
        *([_to_target(document, labels, metric)] if document["to_target"] else []),
        *([frontier_table(frontier, in_rounds=not short)] if frontier else []),
    ]


def _whole_runs(document: Mapping[str, Any], labels: Labels, metric: MainMetric, *, short: bool) -> Table:
    """Without gradient evaluations where there is little room."""
    summary, num_seeds = document["summary"], len(document["seeds"])
    finals = [_spread(row[f"final_{metric.code}"], num_seeds) for row in summary.values()]
    bests = [_spread(row[f"best_{metric.code}"], num_seeds) for row in summary.values()]
    rows: list[list[str]] = []
    values: list[list[Value]] = []
    for (label, row), final, best in zip(summary.items(), finals, bests, strict=True):
        wire_bytes, seconds, evaluations = (row[cost]["mean"] for cost in COSTS)
        texts = [score_text(final, metric), score_text(best, metric), units.size(wire_bytes)]
        texts += [units.duration(seconds), *([] if short else [units.count(evaluations)])]
        rows.append([labels[label], str(row["rounds"]), *texts])
        numbers = [*spread_values(final), *spread_values(best), wire_bytes, seconds, evaluations]
        values.append(labels.row(label, row["algorithm"], num_seeds, row["rounds"], *numbers))
    header = ["configuration", "rounds", *score_headers(metric), BYTES, "time"]
    header += [] if short else [EVALUATIONS]
    fields = [
        *("configuration", "name", "algorithm", "n", "rounds"),
        *(f"{which}_{metric.code}_{part}" for which in ("final", "best") for part in MOMENTS),
        *(f"{cost}_mean" for cost in COSTS),
    ]
    strong = frozenset({*best_scores(2, finals, metric), *best_scores(3, bests, metric)})
    seeds = ", ".join(map(str, document["seeds"]))
    title = f"Whole runs, seed{'s' if num_seeds > 1 else ''} {seeds} (n = {num_seeds})"
    caption = f"{score_caption([num_seeds], metric)} {COSTS_CAPTION}"
    return Table(header, rows, [], strong, caption, Data(fields, values), "comparison", title)


def _verdict(found: Mapping[str, Any], labels: Labels, num_seeds: int, metric: MainMetric) -> Table:
    of = found["of"]
    at_rounds, at_bytes = found["equal_rounds"], found["equal_wire_bytes"]
    labels_of = list(dict.fromkeys([*at_rounds, *at_bytes]))
    found_of = {label: (at_rounds.get(label), at_bytes.get(label)) for label in labels_of}
    rows = [[labels[label], *(_verdict_text(own, metric) for own in both)] for label, both in found_of.items()]
    values = [labels.row(label, of, *(value for own in both for value in _verdict_values(own, metric))) for label, both in found_of.items()]
    parts = [f"{budget}_{part}" for budget in BUDGETS[:2] for part in ("outcome", lead_field(metric))]
    data = Data(["configuration", "name", "of", *parts], values)
    header = [f"{labels[of]} against", "at equal rounds", "at equal bytes"]
    return Table(header, rows, [], caption=_verdict_caption(num_seeds, metric), data=data, name="verdict", title="Verdict")


def _verdict_caption(num_seeds: int, metric: MainMetric) -> str:
    """Say what the outcomes mean, and what the numbers beside them are."""
    if num_seeds < 2:
        what = f"Points of {metric.title}" if metric.is_share else f"Beside it the lead in {metric.title}, positive where it is better"
        return f"{what}. One seed decides nothing: give --seeds several times."
    which = "below" if metric.minimised else "above"
    what = (
        f"In points of mean {metric.title}"
        if metric.is_share
        else f"Beside it the lead in mean {metric.title}, positive where it is better,"
    )
    return f"Ahead, behind: every run of one is {which} every run of the other; level: neither. {what} over n = {num_seeds} runs."


def _verdict_text(found: Mapping[str, Any] | None, metric: MainMetric) -> str:
    if found is None:
        return NONE
    lead = found[lead_field(metric)]
    shown = "no round done" if lead is None else f"{lead:+.2f}" if metric.is_share else f"{lead:+.4g}"
    return f"{found['outcome']} ({shown})"


def _verdict_values(found: Mapping[str, Any] | None, metric: MainMetric) -> list[Value]:
    return [found["outcome"], found[lead_field(metric)]] if found else [None, None]


def _equal_budgets(document: Mapping[str, Any], labels: Labels, metric: MainMetric) -> Table:
    """One row for each configuration, one column for each budget."""
    num_seeds = len(document["seeds"])
    budgets = [document[name] for name in BUDGETS]
    header = [
        "configuration",
        f"{budgets[0]['budget']} rounds",
        units.size(budgets[1]["budget"]),
        f"{units.short_count(budgets[2]['budget'])} gradients",
    ]
    every = list(dict.fromkeys(label for budget in budgets for label in budget["rows"]))
    columns = [_column(budget["rows"], every, num_seeds, metric) for budget in budgets]
    texts = [[text for _, text in column] for column in columns]
    rows = [[labels[label], *cells] for label, *cells in zip(every, *texts, strict=True)]
    spreads = [[found for found, _ in column] for column in columns]
    strong = {cell for number, own in enumerate(spreads, 1) for cell in best_scores(number, own, metric)}
    caption = "One run each (n = 1)." if num_seeds == 1 else f"Mean ± sample standard deviation over n = {num_seeds} runs."
    is_early = any(text.endswith(EARLY) for column in texts for text in column)
    said = [f"{EARLY} ended before it had spent the budget; more rounds would tell."] if is_early else []
    said += [_uncounted_caption([labels[label] for label in every if _is_uncounted(document["summary"][label])])]
    fields = [f"{name}_{metric.code}_{part}" for name in BUDGETS for part in MOMENTS]
    data = Data(
        ["configuration", "name", *fields],
        [
            labels.row(label, *(value for found in own for value in spread_values(found)))
            for label, *own in zip(every, *spreads, strict=True)
        ],
    )
    title = f"{metric.heading}{metric.unit} at equal budgets"
    return Table(header, rows, [], frozenset(strong), " ".join(filter(None, [caption, *said])), data, "equal_budgets", title)


def _is_uncounted(summary: Mapping[str, Any]) -> bool:
    """Say whether no reply of a configuration said how many gradients it had computed."""
    return bool(summary["gradient_evaluations"]["mean"] == 0)


def _uncounted_caption(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"Nothing at equal gradients for {', '.join(names)}: its client side sets no gradient_evaluations in its Reply."


def _column(rows: Mapping[str, Any], every: Sequence[str], num_seeds: int, metric: MainMetric) -> list[tuple[Spread | None, str]]:
    found = []
    for label in every:
        row = rows.get(label)
        spread = _spread(row[metric.code], num_seeds) if row else None
        early = EARLY if row and row["share_spent"] < ENDED_EARLY else ""
        found.append((spread, score_text(spread, metric) + early if spread else NONE))
    return found


def _to_target(document: Mapping[str, Any], labels: Labels, metric: MainMetric) -> Table:
    """What each configuration spends until it reaches the target."""
    to_target, num_seeds = document["to_target"], len(document["seeds"])
    costs = {"rounds": "{:.1f}".format, "wire_bytes": units.size, "seconds": units.duration}
    rows: list[list[str]] = []
    values: list[list[Value]] = []
    for label, row in to_target.items():
        reached = f"{row['reached']} of {row['of']} runs"
        numbers = [row[cost]["mean"] if row[cost] else None for cost in costs]
        texts = [reached if number is None else write(number) for number, write in zip(numbers, costs.values(), strict=True)]
        rows.append([labels[label], *texts])
        values.append(labels.row(label, row["reached"], row["of"], *numbers))
    strong: set[tuple[int, int]] = set()
    for column in range(len(costs)):
        means = [to_target[label][[*costs][column]] for label in to_target]
        known = [mean["mean"] if mean else None for mean in means]
        strong.update(best_cells(column + 1, [row[column + 1] for row in rows], known, min))
    fields = ["configuration", "name", "reached", "of", *(f"{cost}_mean" for cost in costs)]
    header = ["configuration", "rounds", BYTES, "time"]
    data = Data(fields, values)
    of = f"mean over n = {num_seeds} runs" if num_seeds > 1 else "one run each (n = 1)"
    caption = f"Spent in the rounds until the {metric.title} is first reached; {of}." + (" Bold: the least." if strong else "")
    target = document[f"target_{metric.code}"]
    title = f"To {target:.1%} {metric.title}" if metric.is_share else f"To {metric.title} {target:g}"
    return Table(header, rows, [], frozenset(strong), caption, data, "to_target", title)


def _spread(found: Numbers, count: int) -> Spread | None:
    """The numbers of the document as they were."""
    if found is None or found["mean"] is None or found["min"] is None or found["max"] is None:
        return None
    return Spread(found["mean"], found["deviation"], found["min"], found["max"], count)
