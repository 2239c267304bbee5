"""The tables of docs/attacks.md and docs/how-to/robust.md; each is empty if nothing in it was measured."""

from __future__ import annotations

from attacks.cells import ALGORITHMS, DIGITS, FEDDKD, IID, PARTITIONS, PROTECTING, REAL, TWO_CLASSES
from attacks.clients import BOTH, GRADIENTS, UPDATES
from attacks.entries import NO_MEANING, NOT_MEASURED, Entry, accuracy, attack_title, loss, loss_text, written
from attacks.known import ABSENT, ATTACKS, NONE
from attacks.outcomes import Group, Outcomes, best, hardest
from attacks.rules import DEFAULTS, MEAN, RULES

ATTACKERS = (1, 2, 3)


def has_meaning(attack: str, algorithm: str) -> bool:
    """Tell whether an attack does something to an algorithm."""
    return ATTACKS[attack].only_for in (None, algorithm)


def attacks_of(algorithm: str) -> list[str]:
    """Return the attacks that have a meaning for an algorithm."""
    return [name for name in REAL if has_meaning(name, algorithm)]


def by_rule(found: Outcomes, data: str, algorithm: str, partition: str, attackers: int = 2) -> str:
    """Losses: a row for each attack, a column for each rule that was attacked; the first row has the
    accuracies of honest clients.
    """
    attacks = [ABSENT, *attacks_of(algorithm)]
    rows = {attack: {rule: found.of(Group(data, algorithm, partition, rule, attack, attackers)) for rule in RULES} for attack in attacks}
    rules = [rule for rule in RULES if any(row[rule] for row in rows.values())]
    if not rules:
        return ""
    clean = [accuracy(found.of(Group(data, algorithm, partition, rule, NONE, 0))) for rule in rules]
    lost = [(attack_title(attack), [loss(row[rule]) for rule in rules]) for attack, row in rows.items()]
    return written(["attack", *(RULES[rule].title for rule in rules)], [("none: accuracy in %", clean), *lost])


def best_rules(found: Outcomes, attackers: int = 2) -> str:
    """For each attack on IID digits: the best rule with its loss, for each algorithm."""

    def of(attack: str, algorithm: str) -> list[Entry]:
        if not has_meaning(attack, algorithm):
            return [NO_MEANING] * 2
        outcomes = found.with_rules(Group(DIGITS, algorithm, IID, MEAN, attack, attackers), PROTECTING)
        if not outcomes:
            return [NOT_MEASURED] * 2
        first = best(outcomes)
        return [Entry(RULES[first.group.rule].title, (first,)), Entry(loss_text(first), tuple(outcomes))]

    header = ["attack", *(f"{title}: {what}" for title in ALGORITHMS.values() for what in ("best rule", "its loss"))]
    return written(
        header, [(attack_title(attack), [entry for algorithm in ALGORITHMS for entry in of(attack, algorithm)]) for attack in REAL]
    )


def single_rules(found: Outcomes) -> str:
    """For each rule and number of attackers on IID digits: the attack that costs most, with its loss."""

    def of(rule: str, algorithm: str, attackers: int) -> Entry:
        outcomes = found.under(Group(DIGITS, algorithm, IID, rule, NONE, attackers), attacks_of(algorithm))
        if not outcomes:
            return NOT_MEASURED
        worst = hardest(outcomes)
        return Entry(f"{loss_text(worst)}: {attack_title(worst.group.attack)}", tuple(outcomes))

    columns = [(algorithm, attackers) for algorithm in ALGORITHMS for attackers in ATTACKERS]
    header = ["rule", *(f"{ALGORITHMS[algorithm]}, {attackers} of 10" for algorithm, attackers in columns)]
    return written(header, [(measured.title, [of(rule, *column) for column in columns]) for rule, measured in RULES.items()])


def skew(found: Outcomes) -> str:
    """Accuracy of each rule without an attack, by algorithm and partition."""
    columns = [(algorithm, partition) for algorithm in ALGORITHMS for partition in PARTITIONS]
    header = ["rule", *(f"{ALGORITHMS[algorithm]}, {PARTITIONS[partition]}" for algorithm, partition in columns)]
    rows = [
        (measured.title, [accuracy(found.of(Group(DIGITS, *column, rule, NONE, 0))) for column in columns])
        for rule, measured in RULES.items()
    ]
    return written(header, rows)


def advice(found: Outcomes, attackers: int = 2) -> str:
    """What each rule costs with and without attackers: the short table of docs/how-to/robust.md."""

    def worst(rule: str, algorithm: str, partition: str) -> Entry:
        outcomes = found.under(Group(DIGITS, algorithm, partition, rule, NONE, attackers), attacks_of(algorithm))
        return Entry(loss_text(hardest(outcomes)), tuple(outcomes)) if outcomes else NOT_MEASURED

    def of(rule: str, algorithm: str) -> list[Entry]:
        clean = loss(found.of(Group(DIGITS, algorithm, TWO_CLASSES, rule, NONE, 0)))
        return [worst(rule, algorithm, IID), clean, worst(rule, algorithm, TWO_CLASSES)]

    header = ["rule"]
    for title in ALGORITHMS.values():
        header += [f"{title}, IID: worst attack", f"{title}, two classes: no attack", f"{title}, two classes: worst attack"]
    rows = [(measured.title, [entry for algorithm in ALGORITHMS for entry in of(rule, algorithm)]) for rule, measured in RULES.items()]
    return written(header, rows)


def defaults(found: Outcomes) -> str:
    """Losses to one attacker on IID digits without protection and with the defaults."""

    def of(attack: str, algorithm: str, rule: str) -> Entry:
        if not has_meaning(attack, algorithm):
            return NO_MEANING
        return loss(found.of(Group(DIGITS, algorithm, IID, rule, attack, 1)))

    pairs = [(algorithm, rule) for algorithm in ALGORITHMS for rule in (MEAN, DEFAULTS)]
    header = ["attack", *(f"{ALGORITHMS[algorithm]}, {RULES[rule].title}" for algorithm, rule in pairs)]
    return written(header, [(attack_title(attack), [of(attack, *pair) for pair in pairs]) for attack in [ABSENT, *REAL]])


def parts(found: Outcomes) -> str:
    """FedDKD's losses to 2 of 10 on IID digits where only updates, or only gradients, are attacked."""
    pairs = [(attack, on) for attack in REAL if ATTACKS[attack].on_tensors for on in (UPDATES, GRADIENTS, BOTH)]
    rows = {pair: [loss(found.of(Group(DIGITS, FEDDKD, IID, rule, pair[0], 2, pair[1]))) for rule in PROTECTING] for pair in pairs}
    if not any(entry.of for (_, on), entries in rows.items() if on != BOTH for entry in entries):
        return ""
    header = ["attack on", *(RULES[rule].title for rule in PROTECTING)]
    return written(header, [(f"{on}: {attack_title(attack)}", entries) for (attack, on), entries in rows.items()])
