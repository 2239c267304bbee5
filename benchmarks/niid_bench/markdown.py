"""Numbers and tables as Markdown, the same in every page."""

from __future__ import annotations

from collections.abc import Sequence

from feddkd.observability.budgets import Spread
from niid_bench.cells import DEFAULT_SEEDS

MISSING = "-"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One line a row; the cells are Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def accuracy(found: Spread | None, *, bold: bool = False, seeds: int = len(DEFAULT_SEEDS)) -> str:
    """Percent; how many seeds there are is said where it is not `seeds`."""
    if found is None:
        return MISSING
    deviation = "" if found.deviation is None else f" ± {100 * found.deviation:.2f}"
    note = "" if found.count == seeds else f" (n={found.count})"
    text = f"{100 * found.mean:.2f}{deviation}"
    return f"**{text}**{note}" if bold else f"{text}{note}"


def commands(lines: Sequence[str]) -> str:
    """The commands that run every cell of a table again, folded."""
    text = "\n".join(lines)
    return f"<details><summary>The command of each cell</summary>\n\n```\n{text}\n```\n\n</details>"
