"""What the numbers say of FedDKD, in sentences: where it wins, where nobody can tell, and where it loses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from feddkd.bench.side_by_side import HEADER_TOLERANCE
from feddkd.bench.verdict import outcome
from feddkd.observability.budgets import Spread, spread
from niid_bench.cells import ALGORITHMS
from niid_bench.markdown import MISSING, table
from niid_bench.outcomes import CONTROL, DKD, LONGER, CostOf, Outcomes, accuracy_within


@dataclass(frozen=True, slots=True)
class Duel:
    """FedDKD against another algorithm on one partition, at one budget, over the seeds that both have run.

    Attributes:
        ours: None where FedDKD has not finished a round within the budget.
    """

    partition: str
    rival: str
    ours: Spread | None
    theirs: Spread

    @property
    def points(self) -> float | None:
        """FedDKD's lead in percentage points, as it is printed."""
        return None if self.ours is None else round(100 * (self.ours.mean - self.theirs.mean), 2)

    @property
    def outcome(self) -> str:
        """Ahead or behind where every run of one is above every run of the other, else level; one seed decides nothing."""
        ours = None if self.ours is None else (self.ours.lowest, self.ours.highest)
        return outcome(ours, (self.theirs.lowest, self.theirs.highest), self.theirs.count)

    def __str__(self) -> str:
        seeds = f"{self.theirs.count} seed{'s' if self.theirs.count > 1 else ''}"
        theirs = f"`{self.rival}`'s {100 * self.theirs.mean:.2f}"
        if self.points is None:
            return f"{self.outcome}: not one round done, {theirs} ({seeds})"
        return f"{self.outcome}: {self.points:+.2f} to {theirs} ({seeds})"


def verdicts(outcomes: Outcomes) -> str:
    """A table of comparisons for every variant of FedDKD that has results, and what it comes to."""
    parts = [part for name in DKD if name in outcomes.algorithms for part in _verdicts_on(name, outcomes)]
    missing = [f"`{name}`" for name in ALGORITHMS if name not in outcomes.algorithms]
    if missing:
        parts.append(f"Not run in this tier: {', '.join(missing)}.")
    return "\n\n".join(parts)


def against_control(outcomes: Outcomes) -> str:
    """FedDKD against the control on every partition, in one sentence."""
    duels = _duels("feddkd", dict.fromkeys(outcomes.partitions, CONTROL), outcomes, lambda curve: curve.rounds)
    said = [f"{duel.partition} {duel.points:+.2f} ({duel.outcome})" for duel in duels if duel.points is not None]
    return f"FedDKD against the control, in points: {', '.join(said)}."


def _verdicts_on(name: str, outcomes: Outcomes) -> Iterator[str]:
    control = dict.fromkeys(outcomes.partitions, CONTROL)
    longer = dict.fromkeys(outcomes.partitions, LONGER)
    best = {partition: rival for partition in outcomes.partitions if (rival := outcomes.best_other(partition))}
    kinds = {
        "the control, the same rounds and bytes": _duels(name, control, outcomes, lambda curve: curve.rounds),
        "the best of the others, the same rounds": _duels(name, best, outcomes, lambda curve: curve.rounds),
        "that one, the same gradient evaluations": _duels(name, best, outcomes, lambda curve: curve.gradient_evaluations),
        "that one, the same bytes": _duels(name, best, outcomes, lambda curve: curve.wire_bytes),
        f"`{LONGER}`, the same bytes": _duels(name, longer, outcomes, lambda curve: curve.wire_bytes),
    }
    rows = []
    for kind, duels in kinds.items():
        cells = {duel.partition: str(duel) for duel in duels}
        if cells:
            rows.append([kind, *(cells.get(partition, MISSING) for partition in outcomes.partitions)])
    if rows:
        yield table([f"`{name}` against", *outcomes.partitions], rows)
        yield f"**`{name}` is {_tally([duel for duels in kinds.values() for duel in duels])}.** {' '.join(_lowest(name, outcomes))}"


def _tally(duels: list[Duel]) -> str:
    """How many comparisons are won, and how many not."""
    counts = {outcome: sum(duel.outcome == outcome for duel in duels) for outcome in ("ahead", "level", "behind", "undecided")}
    found = [f"{outcome} in {count}" for outcome, count in counts.items() if count or outcome in ("ahead", "behind")]
    return f"{', '.join(found)} of these {len(duels)}"


def _duels(name: str, rivals: dict[str, str], outcomes: Outcomes, cost: CostOf) -> list[Duel]:
    """On every partition where both have run a common seed, over those: at the last rounds within what the thriftier spends."""
    found = []
    for partition, rival in rivals.items():
        curves = [{outcome.cell.seed: outcome.curve for outcome in outcomes.of(each, partition)} for each in (name, rival)]
        seeds = [seed for seed in curves[0] if seed in curves[1]]
        budgets = {seed: min(cost(each[seed])[-1] for each in curves) * (1 + HEADER_TOLERANCE) for seed in seeds}
        ours, theirs = (spread(accuracy_within(each[seed], cost, budgets[seed]) for seed in seeds) for each in curves)
        if rival != name and theirs:
            found.append(Duel(partition, rival, ours, theirs))
    return found


def _lowest(name: str, outcomes: Outcomes) -> Iterator[str]:
    """The worst single run on one class a party, and the runs that end below FedAvg with the same partition and seed."""
    own, fedavg = _finals(name, outcomes), _finals("fedavg", outcomes)
    accuracy, seed = min(((accuracy, seed) for (partition, seed), accuracy in own.items() if partition == "c1"), default=(None, 0))
    if accuracy is not None:
        yield f"The lowest run of `{name}` on c1 ends at {100 * accuracy:.2f}% (seed {seed})."
    both = own.keys() & fedavg.keys()
    below = [f"{partition} seed {seed}" for partition, seed in sorted(both) if own[partition, seed] < fedavg[partition, seed]]
    if both:
        yield f"Runs of `{name}` that end below FedAvg with the same partition and seed: {', '.join(below) or 'none'} (of {len(both)})."


def _finals(name: str, outcomes: Outcomes) -> dict[tuple[str, int], float]:
    """Final accuracy of an algorithm's runs by partition and seed."""
    own = (outcome for outcome in outcomes.all if outcome.cell.algorithm == name)
    return {(outcome.cell.partition, outcome.cell.seed): accuracy for outcome in own if (accuracy := outcome.curve.final_score) is not None}
