"""Says which of two algorithms is ahead: only where every run of one is above every run of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Outcome = Literal["ahead", "level", "behind", "undecided"]

Range = tuple[float, float]
"""The lowest and the highest accuracy over the seeds."""

ENDED_EARLY = 0.99
"""A row that has spent less of a budget could have gone on; message headers make up less than the rest."""


def outcome(ours: Range | None, theirs: Range, num_seeds: int) -> Outcome:
    """Return whether ours is ahead: every run of it above every run of theirs, or the other way round.

    Args:
        ours: None where it has not finished a round within the budget.
        num_seeds: that both have run; one decides nothing.
    """
    if num_seeds < 2:
        return "undecided"
    if ours is None or theirs[0] > ours[1]:
        return "behind"
    return "ahead" if ours[0] > theirs[1] else "level"


def verdicts(budget: Mapping[str, Any], anchor: str, num_seeds: int) -> dict[str, Any]:
    """Compare the anchor with every other row at one budget.

    Args:
        budget: of `feddkd.bench.side_by_side.results`, such as its `equal_rounds`.
        anchor: label of the row that is ahead, level or behind.

    Returns:
        By label, `outcome` and `points`, the anchor's lead in percentage points; None for a row that
        ended before it had spent the budget, or that was not evaluated.
    """
    rows = budget["rows"]
    ours = rows[anchor]["accuracy"]
    return {label: _verdict(ours, row, num_seeds) for label, row in rows.items() if label != anchor}


def _verdict(ours: dict[str, float] | None, row: Mapping[str, Any], num_seeds: int) -> dict[str, Any] | None:
    theirs = row["accuracy"]
    if theirs is None or row["share_spent"] < ENDED_EARLY:
        return None
    own_range = (ours["min"], ours["max"]) if ours else None
    points = round(100 * (ours["mean"] - theirs["mean"]), 2) if ours else None
    found = outcome(own_range, (theirs["min"], theirs["max"]), num_seeds)
    return {"outcome": found, "points": points}
