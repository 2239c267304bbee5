"""The table of the frontier: what each configuration needs to reach an accuracy, and what it reaches within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from feddkd.report import units
from feddkd.report.frontier import Frontier, Track
from feddkd.report.tables import Table

NONE = "-"
ENDED = "*"


def frontier_table(frontier: Frontier) -> Table:
    """One row for each configuration in the colour of its method, the best number of each column strong."""
    costs = [[track.bytes_to(level) for level in frontier.levels] for track in frontier.tracks]
    reached = [[track.accuracy_at(budget) for budget in frontier.budgets] for track in frontier.tracks]
    header = [
        "configuration",
        *(f"to {units.level(level)}" for level in frontier.levels),
        *(f"in {budget_name(frontier, budget)}" for budget in frontier.budgets),
    ]
    rows = [
        [
            track.label,
            *(cost_text(frontier, cost) for cost in its_costs),
            *(accuracy_text(track, budget, accuracy) for budget, accuracy in zip(frontier.budgets, its_accuracy, strict=True)),
        ]
        for track, its_costs, its_accuracy in zip(frontier.tracks, costs, reached, strict=True)
    ]
    methods = list(frontier.methods)
    groups = [methods.index(track.method) for track in frontier.tracks]
    best = frozenset({*_best_cells(costs, min, 1), *_best_cells(reached, max, 1 + len(frontier.levels))})
    return Table(header, rows, groups, best, _caption(frontier, rows))


def budget_name(frontier: Frontier, budget_bytes: float) -> str:
    """A budget as a reader would call it: in rounds of FedAvg where they are known."""
    if frontier.unit_bytes is None:
        return units.size(budget_bytes)
    rounds = budget_bytes / frontier.unit_bytes
    return f"{rounds:g} round{'' if rounds == 1 else 's'}"


def cost_text(frontier: Frontier, cost_bytes: float | None) -> str:
    """Bytes, and rounds of FedAvg for as many where they are known."""
    if cost_bytes is None:
        return NONE
    rounds = "" if frontier.unit_bytes is None else f" ({cost_bytes / frontier.unit_bytes:.3g})"
    return units.size(cost_bytes) + rounds


def accuracy_text(track: Track, budget_bytes: float, accuracy: float | None) -> str:
    """An accuracy, marked where the track ended before it had spent the budget."""
    if accuracy is None:
        return NONE
    return units.percent(accuracy) + (ENDED if track.ended_before(budget_bytes) else "")


def _caption(frontier: Frontier, rows: Sequence[Sequence[str]]) -> str:
    parts = ["Bytes to reach an accuracy, and the accuracy within a budget of bytes; means over seeds."]
    if frontier.unit_bytes is not None:
        parts.append(f"A round, also in parentheses, is one of FedAvg without a codec: {units.size(frontier.unit_bytes)}.")
    if any(cell.endswith(ENDED) for row in rows for cell in row[1:]):
        parts.append(f"{ENDED}: ended before it had spent the budget; more rounds would tell.")
    if any(cell == NONE for row in rows for cell in row):
        parts.append(f"{NONE}: not reached, by some seed at least.")
    return " ".join(parts)


def _best_cells(
    rows: Sequence[Sequence[float | None]], choose: Callable[[list[float]], float], first_column: int
) -> Iterator[tuple[int, int]]:
    """Row and column of the best number of each column."""
    for column, numbers in enumerate(zip(*rows, strict=True)):
        known = [number for number in numbers if number is not None]
        if known:
            yield from ((row, first_column + column) for row, number in enumerate(numbers) if number == choose(known))
