"""Says which of two algorithms is ahead: only where every run of one is above every run of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from feddkd.config import ACCURACY, MainMetric

Outcome = Literal["ahead", "level", "behind", "undecided"]

Range = tuple[float, float]
"""The lowest and the highest value of the metric over the seeds."""

ENDED_EARLY = 0.99
"""A row that has spent less of a budget could have gone on; message headers make up less than the rest."""


def outcome(ours: Range | None, theirs: Range, num_seeds: int, metric: MainMetric = ACCURACY) -> Outcome:
    """Return whether ours is ahead: every run of it better than every run of theirs, or the other way round.

    Args:
        ours: None where it has not finished a round within the budget.
        num_seeds: that both have run; one decides nothing.
        metric: says which value is better.
    """
    if num_seeds < 2:
        return "undecided"
    if ours is None or metric.is_better(_worst(theirs, metric), _best(ours, metric)):
        return "behind"
    return "ahead" if metric.is_better(_worst(ours, metric), _best(theirs, metric)) else "level"


def _best(found: Range, metric: MainMetric) -> float:
    return found[0] if metric.minimised else found[1]


def _worst(found: Range, metric: MainMetric) -> float:
    return found[1] if metric.minimised else found[0]


def verdicts(budget: Mapping[str, Any], anchor: str, num_seeds: int, metric: MainMetric = ACCURACY) -> dict[str, Any]:
    """Compare the anchor with every other row at one budget.

    Args:
        budget: of `feddkd.bench.side_by_side.results`, such as its `equal_rounds`.
        anchor: label of the row that is ahead, level or behind.
        metric: what the rows are compared by.

    Returns:
        By label, `outcome` and the anchor's lead: `points` in percentage points for a share of 1, else
        `lead` in the unit of the metric, positive where the anchor is better. None for a row that ended
        before it had spent the budget, or that was not evaluated.
    """
    rows = budget["rows"]
    ours = rows[anchor][metric.code]
    return {label: _verdict(ours, row, num_seeds, metric) for label, row in rows.items() if label != anchor}


def lead_field(metric: MainMetric) -> str:
    """Name the field of a verdict that has the lead."""
    return "points" if metric.is_share else "lead"


def _verdict(ours: dict[str, float] | None, row: Mapping[str, Any], num_seeds: int, metric: MainMetric) -> dict[str, Any] | None:
    theirs = row[metric.code]
    if theirs is None or row["share_spent"] < ENDED_EARLY:
        return None
    own_range = (ours["min"], ours["max"]) if ours else None
    found = outcome(own_range, (theirs["min"], theirs["max"]), num_seeds, metric)
    lead = metric.lead(ours["mean"], theirs["mean"]) if ours else None
    if lead is not None:
        lead = round(100 * lead, 2) if metric.is_share else round(lead, 6)
    return {"outcome": found, lead_field(metric): lead}
