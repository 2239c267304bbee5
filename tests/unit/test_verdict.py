"""Ahead, level, behind: decided by every run of both, never by one seed."""

from __future__ import annotations

from typing import Any

import pytest

from feddkd.bench.verdict import Range, outcome, verdicts


@pytest.mark.parametrize(
    ("ours", "theirs", "num_seeds", "expected"),
    [
        ((0.9, 0.95), (0.7, 0.8), 3, "ahead"),
        ((0.7, 0.8), (0.9, 0.95), 3, "behind"),
        ((0.8, 0.95), (0.9, 0.91), 3, "level"),
        ((0.9, 0.9), (0.9, 0.9), 2, "level"),
        ((0.9, 0.9), (0.5, 0.5), 1, "undecided"),
        (None, (0.5, 0.6), 2, "behind"),
        (None, (0.5, 0.5), 1, "undecided"),
    ],
)
def test_ahead_means_that_every_run_is_above_every_other(ours: Range | None, theirs: Range, num_seeds: int, expected: str) -> None:
    assert outcome(ours, theirs, num_seeds) == expected


def row(mean: float, low: float, high: float, share: float = 1.0) -> dict[str, Any]:
    return {"accuracy": {"mean": mean, "min": low, "max": high}, "share_spent": share}


def test_what_ended_early_or_was_not_evaluated_has_no_verdict() -> None:
    rows = {
        "feddkd": row(0.95, 0.94, 0.96),
        "worse": row(0.5, 0.4, 0.6),
        "short": row(0.5, 0.4, 0.6, share=0.5),
        "unknown": {"accuracy": None, "share_spent": 1.0},
    }
    found = verdicts({"rows": rows}, "feddkd", 3)
    assert found == {"worse": {"outcome": "ahead", "points": 45.0}, "short": None, "unknown": None}
