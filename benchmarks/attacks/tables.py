"""The tables of docs/attacks.md."""

from __future__ import annotations

from collections.abc import Iterator

from niid_bench.markdown import MISSING, table

from attacks.cells import ALGORITHMS, DIGITS, FEDDKD, IID, PARTITIONS, TWO_CLASSES
from attacks.clients import BOTH, GRADIENTS, UPDATES
from attacks.known import ABSENT, ATTACKS, NONE
from attacks.outcomes import Group, Outcome, Outcomes
from attacks.rules import DEFAULTS, MEAN, RULES

LIMIT_POINTS = 5.0
"""What an attack may cost."""

REAL = tuple(name for name in ATTACKS if name not in (NONE, ABSENT))
PROTECTING = tuple(name for name in RULES if name != MEAN)
NOT_YET = "Not measured yet."


def attacks_of(algorithm: str) -> list[str]:
    """Return the attacks that have a meaning for an algorithm."""
    return [name for name in REAL if ATTACKS[name].only_for in (None, algorithm)]


def by_rule(found: Outcomes, data: str, algorithm: str, partition: str, attackers: int) -> str:
    """Losses: a row for each attack, a column for each rule; the first row has accuracies of honest
    clients.
    """
    header = ["attack", *(rule.title for rule in RULES.values())]
    clean = [found.of(Group(data, algorithm, partition, rule, NONE, 0)) for rule in RULES]
    rows = [["none: accuracy in %", *(_accuracy(outcome) for outcome in clean)]]
    for attack in [ABSENT, *attacks_of(algorithm)]:
        outcomes = [found.of(Group(data, algorithm, partition, rule, attack, attackers)) for rule in RULES]
        if any(outcomes):
            rows.append([_attack(attack), *map(_loss, outcomes)])
    return table(header, rows) if any(clean) else NOT_YET


def best_rules(found: Outcomes, attackers: int = 2) -> str:
    """For each attack on IID digits: the best rule with its loss, for each algorithm."""
    header = ["attack", *(f"{title}: {what}" for title in ALGORITHMS.values() for what in ("best rule", "its loss"))]
    rows = []
    for attack in REAL:
        cells: list[str] = []
        for algorithm in ALGORITHMS:
            best = found.best(Group(DIGITS, algorithm, IID, MEAN, attack, attackers), PROTECTING)
            cells += [RULES[best[0]].title, _loss(best[1])] if best else [MISSING, MISSING]
        if any(cell != MISSING for cell in cells):
            rows.append([_attack(attack), *cells])
    return table(header, rows) if rows else NOT_YET


def single_rules(found: Outcomes, data: str = DIGITS, partition: str = IID) -> str:
    """For each rule and number of attackers: the attack that costs most, with its loss."""
    numbers = (1, 2, 3)
    header = ["rule", *(f"{title}, {number} of 10" for title in ALGORITHMS.values() for number in numbers)]
    rows = []
    for rule, measured in RULES.items():
        groups = [Group(data, algorithm, partition, rule, NONE, number) for algorithm in ALGORITHMS for number in numbers]
        hardest = [found.hardest(group, attacks_of(group.algorithm)) for group in groups]
        if any(hardest):
            rows.append([measured.title, *(f"{_loss(each[1])}: {_attack(each[0])}" if each else MISSING for each in hardest)])
    return table(header, rows) if rows else NOT_YET


def skew(found: Outcomes) -> str:
    """Accuracy of each rule without an attack, by algorithm and partition."""
    header = ["rule", *(f"{title}, {part}" for title in ALGORITHMS.values() for part in PARTITIONS.values())]
    rows = []
    for rule, measured in RULES.items():
        groups = [Group(DIGITS, algorithm, partition, rule, NONE, 0) for algorithm in ALGORITHMS for partition in PARTITIONS]
        outcomes = [found.of(group) for group in groups]
        if any(outcomes):
            rows.append([measured.title, *map(_accuracy, outcomes)])
    return table(header, rows) if rows else NOT_YET


def advice(found: Outcomes, attackers: int = 2) -> str:
    """What each rule costs with and without attackers: the short table of docs/how-to/robust.md."""
    header = ["rule"]
    for title in ALGORITHMS.values():
        header += [f"{title}, IID: worst attack", f"{title}, two classes: no attack", f"{title}, two classes: worst attack"]
    rows = []
    for rule, measured in RULES.items():
        cells: list[str] = []
        for algorithm in ALGORITHMS:
            hardest = [
                found.hardest(Group(DIGITS, algorithm, partition, rule, NONE, attackers), attacks_of(algorithm))
                for partition in (IID, TWO_CLASSES)
            ]
            iid, skewed = (_loss(each[1]) if each else MISSING for each in hardest)
            cells += [iid, _loss(found.of(Group(DIGITS, algorithm, TWO_CLASSES, rule, NONE, 0))), skewed]
        if any(cell != MISSING for cell in cells):
            rows.append([measured.title, *cells])
    return table(header, rows) if rows else NOT_YET


def defaults(found: Outcomes) -> str:
    """Losses to one attacker on IID digits without protection and with the defaults."""
    pairs = [(algorithm, rule) for algorithm in ALGORITHMS for rule in (MEAN, DEFAULTS)]
    header = ["attack", *(f"{ALGORITHMS[algorithm]}, {RULES[rule].title}" for algorithm, rule in pairs)]
    rows = []
    for attack in [ABSENT, *REAL]:
        outcomes = [found.of(Group(DIGITS, algorithm, IID, rule, attack, 1)) for algorithm, rule in pairs]
        if any(outcomes):
            rows.append([_attack(attack), *map(_loss, outcomes)])
    return table(header, rows) if rows else NOT_YET


def parts(found: Outcomes) -> str:
    """FedDKD's losses to 2 of 10 on IID digits where only updates, or only gradients, are attacked."""
    rules = tuple(RULES)
    header = ["attack", "on", *(RULES[rule].title for rule in rules)]
    rows = []
    for attack in REAL:
        for on in (UPDATES, GRADIENTS, BOTH):
            outcomes = [found.of(Group(DIGITS, FEDDKD, IID, rule, attack, 2, on)) for rule in rules]
            if any(outcomes) and ATTACKS[attack].on_tensors:
                rows.append([_attack(attack), on, *map(_loss, outcomes)])
    return table(header, rows) if any(row[1] != BOTH for row in rows) else NOT_YET


def verdicts(found: Outcomes) -> str:
    """Sentences that say whether the limit is kept."""
    lines = [*_best_verdicts(found), *_default_verdicts(found), *_skew_verdicts(found)]
    return "\n".join(f"- {line}" for line in lines) if lines else NOT_YET


def _best_verdicts(found: Outcomes) -> Iterator[str]:
    for algorithm, title in ALGORITHMS.items():
        attacks = attacks_of(algorithm)
        base = [Group(DIGITS, algorithm, IID, MEAN, attack, 2) for attack in attacks]
        best = [found.best(group, PROTECTING) for group in base]
        if not all(best):
            continue
        kept = sum(each is not None and each[1].loss <= LIMIT_POINTS for each in best)
        largest = max(each[1].loss for each in best if each is not None)
        yield (
            f"{title}, IID digits, 2 of 10 attackers, the best rule for each attack: {kept} of {len(attacks)} attacks cost at most "
            f"{LIMIT_POINTS:g} points; the most is {largest:.1f}."
        )
        yield _single_verdict(found, algorithm)


def _single_verdict(found: Outcomes, algorithm: str) -> str:
    """Say which rules keep the limit against all attacks."""
    hardest = {rule: found.hardest(Group(DIGITS, algorithm, IID, rule, NONE, 2), attacks_of(algorithm)) for rule in PROTECTING}
    losses = {rule: each[1].loss for rule, each in hardest.items() if each is not None}
    names = [f"{RULES[rule].title} ({loss:.1f})" for rule, loss in sorted(losses.items(), key=_second) if loss <= LIMIT_POINTS]
    subject = f"{ALGORITHMS[algorithm]}, IID digits, 2 of 10 attackers"
    if names:
        return f"{subject}: against every attack these rules cost at most {LIMIT_POINTS:g} points: {', '.join(names)}."
    rule, loss = min(losses.items(), key=_second)
    return f"{subject}: no single rule keeps every attack within {LIMIT_POINTS:g} points; the best is {RULES[rule].title} with {loss:.1f}."


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _default_verdicts(found: Outcomes) -> Iterator[str]:
    for algorithm, title in ALGORITHMS.items():
        attacks = ("times_10", "times_-10", "weight", "weight_sign")
        outcomes = {attack: found.of(Group(DIGITS, algorithm, IID, DEFAULTS, attack, 1)) for attack in attacks}
        told = [f"{_attack(attack)} {outcome.loss:.1f}" for attack, outcome in outcomes.items() if outcome is not None]
        if len(told) == len(attacks):
            kept = all(outcome is not None and outcome.loss <= LIMIT_POINTS for outcome in outcomes.values())
            yield (
                f"{title}, IID digits, 1 of 10 attackers, default settings, points lost: {'; '.join(told)}: "
                f"{'all' if kept else 'not all'} at most {LIMIT_POINTS:g}."
            )


def _skew_verdicts(found: Outcomes) -> Iterator[str]:
    for algorithm, title in ALGORITHMS.items():
        attacks = attacks_of(algorithm)
        best = {attack: found.best(Group(DIGITS, algorithm, TWO_CLASSES, MEAN, attack, 2), PROTECTING) for attack in attacks}
        beyond = [attack for attack, each in best.items() if each is not None and each[1].loss > LIMIT_POINTS]
        if not all(best.values()):
            continue
        subject = f"{title}, two classes each, 2 of 10 attackers"
        if beyond:
            names = ", ".join(map(_attack, beyond))
            yield f"{subject}: **no rule** keeps these attacks within {LIMIT_POINTS:g} points: {names}."
        else:
            yield f"{subject}: for every attack there is a rule that keeps it within {LIMIT_POINTS:g} points."


def _attack(name: str) -> str:
    return "the attackers are refused" if name == ABSENT else ATTACKS[name].title


def _loss(outcome: Outcome | None) -> str:
    if outcome is None:
        return MISSING
    return f"**{outcome.text}**" if outcome.loss <= LIMIT_POINTS else outcome.text


def _accuracy(outcome: Outcome | None) -> str:
    return MISSING if outcome is None else f"{outcome.accuracy:.1f}"
