"""What came of groups of cells that differ in the seed alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attacks.cells import Cell
from attacks.clients import BOTH
from attacks.known import NONE
from attacks.rules import MEAN

CHANCE = 0.1
"""The accuracy that a run without a model counts as."""


@dataclass(frozen=True, slots=True)
class Group:
    """Cells that differ in the seed alone: one entry of a table."""

    data: str
    algorithm: str
    partition: str
    rule: str
    attack: str
    attackers: int
    on: str = BOTH

    @property
    def clean(self) -> Group:
        """The mean of honest clients, which losses are measured against."""
        return Group(self.data, self.algorithm, self.partition, MEAN, NONE, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy of a group, and what it lost against the clean mean of the same seeds, in percentage
    points.

    Attributes:
        accuracy: mean over the seeds, in percent.
        loss: mean over the seeds.
        worst: largest loss of a seed.
        seeds: how many there are.
        failed: how many of them ended without a finite model; these count as chance.
    """

    accuracy: float
    loss: float
    worst: float
    seeds: int
    failed: int

    @property
    def text(self) -> str:
        """The loss with that of the worst seed in parentheses."""
        if self.failed == self.seeds:
            return "no model"
        worst = f" ({_points(self.worst)})" if self.seeds > 1 else ""
        return f"{_points(self.loss)}{worst}"


def _points(loss: float) -> str:
    return f"{loss + 0.0:.1f}".replace("-0.0", "0.0")


class Outcomes:
    """All results by group."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._runs: dict[Group, dict[int, float | None]] = {}
        for line in lines:
            cell = Cell.of(line)
            self._runs.setdefault(_group(cell), {})[cell.seed] = line["accuracy"]

    def of(self, group: Group) -> Outcome | None:
        """Return what came of a group, over the seeds that the clean mean has too; None if there is
        none.
        """
        found, clean = self._runs.get(group, {}), self._runs.get(group.clean, {})
        seeds = sorted(found.keys() & clean.keys())
        if not seeds:
            return None
        percent = [_percent(found[seed]) for seed in seeds]
        losses = [_percent(clean[seed]) - own for seed, own in zip(seeds, percent, strict=True)]
        failed = sum(found[seed] is None for seed in seeds)
        return Outcome(statistics.fmean(percent), statistics.fmean(losses), max(losses), len(seeds), failed)

    def best(self, group: Group, rules: Sequence[str]) -> tuple[str, Outcome] | None:
        """Return the rule with the smallest loss against an attack; None if none was measured."""
        found = [(rule, self.of(replace(group, rule=rule))) for rule in rules]
        measured = [(rule, outcome) for rule, outcome in found if outcome is not None]
        return min(measured, key=lambda pair: pair[1].loss, default=None)

    def hardest(self, group: Group, attacks: Sequence[str]) -> tuple[str, Outcome] | None:
        """Return the attack with the largest loss under a rule; None unless all that have a meaning
        were measured.
        """
        found = [(attack, self.of(replace(group, attack=attack))) for attack in attacks]
        measured = [(attack, outcome) for attack, outcome in found if outcome is not None]
        if len(measured) < len(found):
            return None
        return max(measured, key=lambda pair: pair[1].loss, default=None)


def _percent(accuracy: float | None) -> float:
    return 100 * (CHANCE if accuracy is None else accuracy)


def _group(cell: Cell) -> Group:
    fields = Group.__dataclass_fields__
    return Group(**{name: getattr(cell, name) for name in fields})
