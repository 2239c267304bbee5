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
        group: what it is of.
        accuracy: mean over the seeds, in percent.
        loss: mean over the seeds.
        worst: largest loss of a seed.
        seeds: that were run, in order.
        failed: how many of them ended without a finite model; these count as chance.
        commits: of the project, that its runs were made with.
        earlier: how many runs do not say which code of rule and attack decided them.
    """

    group: Group
    accuracy: float
    loss: float
    worst: float
    seeds: tuple[int, ...]
    failed: int
    commits: frozenset[str] = frozenset()
    earlier: int = 0

    @property
    def text(self) -> str:
        """The loss with that of the worst seed in parentheses."""
        if self.failed == len(self.seeds):
            return "no model"
        worst = f" ({points(self.worst)})" if len(self.seeds) > 1 else ""
        return f"{points(self.loss)}{worst}"


def points(loss: float) -> str:
    """Write a loss with one digit, and 0 without a sign."""
    return f"{loss + 0.0:.1f}".replace("-0.0", "0.0")


class Outcomes:
    """All results by group."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._runs: dict[Group, dict[int, Mapping[str, Any]]] = {}
        for line in lines:
            cell = Cell.of(line)
            self._runs.setdefault(_group(cell), {})[cell.seed] = line

    def of(self, group: Group) -> Outcome | None:
        """Return what came of a group, over the seeds that the clean mean has too; None if there is
        none.
        """
        found, clean = self._runs.get(group, {}), self._runs.get(group.clean, {})
        seeds = sorted(found.keys() & clean.keys())
        if not seeds:
            return None
        runs = [found[seed] for seed in seeds]
        percent = [_percent(run) for run in runs]
        losses = [_percent(clean[seed]) - own for seed, own in zip(seeds, percent, strict=True)]
        return Outcome(
            group,
            statistics.fmean(percent),
            statistics.fmean(losses),
            max(losses),
            tuple(seeds),
            failed=sum(run["accuracy"] is None for run in runs),
            commits=frozenset(run["commit"] for run in runs),
            earlier=sum("fingerprint" not in run for run in runs),
        )

    def under(self, group: Group, attacks: Sequence[str]) -> list[Outcome]:
        """Return what came of a rule under several attacks; empty unless all of them were measured."""
        found = [self.of(replace(group, attack=attack)) for attack in attacks]
        measured = [outcome for outcome in found if outcome is not None]
        return measured if len(measured) == len(found) else []

    def with_rules(self, group: Group, rules: Sequence[str]) -> list[Outcome]:
        """Return what came of an attack under those of several rules that were measured."""
        found = [self.of(replace(group, rule=rule)) for rule in rules]
        return [outcome for outcome in found if outcome is not None]


def hardest(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the largest loss."""
    return max(outcomes, key=lambda outcome: outcome.loss)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome with the smallest loss."""
    return min(outcomes, key=lambda outcome: outcome.loss)


def _percent(run: Mapping[str, Any]) -> float:
    accuracy: float | None = run["accuracy"]
    return 100 * (CHANCE if accuracy is None else accuracy)


def _group(cell: Cell) -> Group:
    fields = Group.__dataclass_fields__
    return Group(**{name: getattr(cell, name) for name in fields})
