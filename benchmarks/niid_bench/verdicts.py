"""What the numbers say of FedDKD, in sentences: where it wins, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from feddkd.bench.budgets import Spread
from niid_bench.outcomes import CONTROL, DKD, LONGER, Outcomes


@dataclass(frozen=True, slots=True)
class Duel:
    """FedDKD against another algorithm on one partition, at one budget."""

    partition: str
    rival: str
    ours: Spread
    theirs: Spread

    @property
    def points(self) -> float:
        """FedDKD's lead in percentage points, as it is printed."""
        return round(100 * (self.ours.mean - self.theirs.mean), 2)

    @property
    def is_clear(self) -> bool:
        """Whether even the lowest run of one is above the highest of the other."""
        return self.ours.lowest > self.theirs.highest or self.theirs.lowest > self.ours.highest

    def __str__(self) -> str:
        doubt = "" if self.is_clear else ", the runs overlap"
        return f"{self.partition} {self.points:+.2f} points (`{self.rival}` {100 * self.theirs.mean:.2f}%{doubt})"


def verdicts(outcomes: Outcomes) -> str:
    """One list item for each comparison, for every variant of FedDKD that has results."""
    return "\n".join(f"- {sentence}" for name in DKD if name in outcomes.algorithms for sentence in _verdicts_on(name, outcomes))


def _verdicts_on(name: str, outcomes: Outcomes) -> Iterator[str]:
    kinds = {
        f"against the control `{CONTROL}`, the same rounds and bytes": _duels_at_equal_rounds(name, outcomes, lambda _: CONTROL),
        "against the best of the others, the same rounds": _duels_at_equal_rounds(name, outcomes, outcomes.best_other),
        "against that one, the same gradient evaluations": _duels(name, outcomes, outcomes.best_other, outcomes.at_gradients),
        f"against `{LONGER}`, the same bytes": _duels(name, outcomes, lambda _: LONGER, outcomes.at_bytes),
    }
    for kind, duels in kinds.items():
        if duels:
            yield f"`{name}` {kind}: {'; '.join(map(str, duels))}."
    lost = [f"{duel.partition} (`{duel.rival}`)" for duels in kinds.values() for duel in duels if duel.points <= 0]
    if any(kinds.values()):
        where = ", ".join(dict.fromkeys(lost))
        yield f"**`{name}` does not win every one of these on: {where}.**" if lost else f"`{name}` wins every one of these comparisons."
    yield from _lowest(name, outcomes)


def _duels(name: str, outcomes: Outcomes, rival_on: Callable[[str], str | None], number: Callable[[str, str], Spread | None]) -> list[Duel]:
    """On every partition where both have results."""
    found = []
    for partition in outcomes.partitions:
        rival = rival_on(partition)
        ours, theirs = number(name, partition), number(rival, partition) if rival else None
        if rival and ours and theirs:
            found.append(Duel(partition, rival, ours, theirs))
    return found


def _duels_at_equal_rounds(name: str, outcomes: Outcomes, rival_on: Callable[[str], str | None]) -> list[Duel]:
    """After as many rounds as both have run."""
    found = []
    for partition in outcomes.partitions:
        rival = rival_on(partition)
        own, other = outcomes.rounds(name, partition), outcomes.rounds(rival, partition) if rival else None
        if rival and own and other:
            ours, theirs = (outcomes.at_round(each, partition, min(own, other)) for each in (name, rival))
            if ours and theirs:
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
    return {
        (outcome.cell.partition, outcome.cell.seed): accuracy for outcome in own if (accuracy := outcome.curve.final_accuracy) is not None
    }
