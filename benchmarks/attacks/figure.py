"""The picture of docs/attacks.md: points lost by attack and rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.cells import ALGORITHMS, DIGITS, IID, REAL
from attacks.known import ATTACKS
from attacks.outcomes import Group, Outcome, Outcomes
from attacks.rules import RULES

LARGEST_POINTS = 30.0
"""Losses above it have one color."""

MAP = "OrRd"
"""White is no loss, dark red a large one; the number is written in each field, too."""

SIZE_INCHES = (11.0, 5.4)


def draw(found: Outcomes, path: Path, attackers: int = 2) -> None:
    """Draw a panel for each algorithm on IID digits; what was not measured is white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from feddkd.report.style import style

    with style():
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(ALGORITHMS), sharey=True)
        for panel, (algorithm, title) in zip(panels, ALGORITHMS.items(), strict=True):
            outcomes = [[found.of(Group(DIGITS, algorithm, IID, rule, attack, attackers)) for rule in RULES] for attack in REAL]
            image = _draw_panel(panel, outcomes)
            panel.set_title(f"{title}, IID digits, {attackers} of 10 attackers")
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, extend="max")
        bar.set_label(f"accuracy lost against the clean mean (points{_of_seeds(found, attackers)})")
        figure.savefig(path, dpi=130)


def _of_seeds(found: Outcomes, attackers: int) -> str:
    """Say that numbers are means, where some are."""
    groups = [Group(DIGITS, algorithm, IID, rule, attack, attackers) for algorithm in ALGORITHMS for rule in RULES for attack in REAL]
    most = max((len(outcome.seeds) for outcome in map(found.of, groups) if outcome is not None), default=1)
    return f", mean of up to {most} seeds" if most > 1 else ""


def _draw_panel(panel: Any, outcomes: list[list[Outcome | None]]) -> Any:
    values = [[float("nan") if each is None else each.loss for each in row] for row in outcomes]
    image = panel.imshow(values, cmap=MAP, vmin=0, vmax=LARGEST_POINTS, aspect="auto")
    for row, line in enumerate(outcomes):
        for column, outcome in enumerate(line):
            if outcome is not None:
                color = "white" if outcome.loss > LARGEST_POINTS / 2 else "black"
                text = "fails" if outcome.failed == len(outcome.seeds) else f"{outcome.loss:.0f}".replace("-0", "0")
                panel.text(column, row, text, ha="center", va="center", color=color, fontsize=8.5)
    panel.set_xticks(range(len(RULES)), [rule.title for rule in RULES.values()], rotation=40, ha="right")
    panel.set_yticks(range(len(REAL)), [ATTACKS[name].title for name in REAL])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    return image
