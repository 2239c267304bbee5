"""Sentences that say what the results mean."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from attacks.cells import ALGORITHMS, DIGITS, IID, PROTECTING, TWO_CLASSES
from attacks.entries import LIMIT_POINTS, lost, told
from attacks.known import NONE
from attacks.outcomes import Group, Outcome, Outcomes, best, hardest, points
from attacks.rules import DEFAULTS, MEAN, RULES
from attacks.tables import ATTACKERS, attacks_of


def verdicts(found: Outcomes) -> str:
    """Say whether the limit is kept: by the best rule, by one rule, by the defaults, and with skew."""
    return _listed([said(found, algorithm) for said in (best_rule, one_rule, default_settings, skewed) for algorithm in ALGORITHMS])


def choice(found: Outcomes) -> str:
    """Say which single rule to take: the advice of docs/how-to/robust.md."""
    return _listed([said(found, algorithm) for said in (one_rule, least_with_skew) for algorithm in ALGORITHMS])


def _listed(sentences: Sequence[str]) -> str:
    return "\n".join(
        textwrap.fill(sentence, 100, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for sentence in sentences
        if sentence
    )


def best_rule(found: Outcomes, algorithm: str) -> str:
    """Say how many attacks are kept within the limit by some rule; empty if one was not measured."""
    least = _least(found, algorithm, IID)
    if not least:
        return ""
    kept = sum(outcome.loss <= LIMIT_POINTS for outcome in least)
    return (
        f"{ALGORITHMS[algorithm]}, IID digits, 2 of 10 attackers, the best rule for each attack: {kept} of {len(least)} attacks "
        f"cost at most {LIMIT_POINTS:g} points; the most is {points(hardest(least).loss)}."
    )


def one_rule(found: Outcomes, algorithm: str) -> str:
    """Say which rules keep every attack within the limit, with as many attackers as were measured."""
    worst = {attackers: _worst(found, algorithm, IID, attackers) for attackers in ATTACKERS}
    measured = {attackers: by_rule for attackers, by_rule in worst.items() if len(by_rule) == len(PROTECTING)}
    if not measured:
        return ""
    hardest_of = {rule: hardest([by_rule[rule] for by_rule in measured.values()]) for rule in PROTECTING}
    kept = sorted((rule for rule in PROTECTING if hardest_of[rule].loss <= LIMIT_POINTS), key=lambda rule: hardest_of[rule].loss)
    subject = f"{ALGORITHMS[algorithm]}, IID digits, {_numbers(list(measured))} of 10 attackers"
    if not kept:
        least = best(list(hardest_of.values()))
        return (
            f"{subject}: **no single rule** keeps every attack within {LIMIT_POINTS:g} points; "
            f"the best is {_title(least)} ({_with_number(least)})."
        )
    names = "; ".join(f"{RULES[rule].title} (at most {points(hardest_of[rule].loss)}{_price(found, algorithm, rule)})" for rule in kept)
    return f"{subject}: these rules keep every attack within {LIMIT_POINTS:g} points: {names}."


def _price(found: Outcomes, algorithm: str, rule: str) -> str:
    """Say what a rule costs with skew, where that was measured."""
    clean = found.of(Group(DIGITS, algorithm, TWO_CLASSES, rule, NONE, 0))
    attacked = _worst(found, algorithm, TWO_CLASSES, 2).get(rule)
    said = [f"{points(clean.loss)} without an attack"] if clean else []
    said += [f"{lost(attacked)} under its worst attack"] if attacked else []
    return f"; with two classes each {', '.join(said)}" if said else ""


def default_settings(found: Outcomes, algorithm: str) -> str:
    """Say which attacks of one client the defaults do not keep within the limit."""
    outcomes = found.under(Group(DIGITS, algorithm, IID, DEFAULTS, NONE, 1), attacks_of(algorithm))
    if not outcomes:
        return ""
    beyond = [outcome for outcome in outcomes if outcome.loss > LIMIT_POINTS]
    rest = f"not these: {'; '.join(map(told, beyond))}" if beyond else f"the most is {points(hardest(outcomes).loss)}"
    return (
        f"{ALGORITHMS[algorithm]}, IID digits, 1 of 10 attackers, default settings: {len(outcomes) - len(beyond)} of "
        f"{len(outcomes)} attacks cost at most {LIMIT_POINTS:g} points; {rest}."
    )


def skewed(found: Outcomes, algorithm: str) -> str:
    """Say against which attacks no rule helps where clients hold two classes each."""
    least = _least(found, algorithm, TWO_CLASSES)
    if not least:
        return ""
    subject = f"{ALGORITHMS[algorithm]}, two classes each, 2 of 10 attackers"
    beyond = [outcome for outcome in least if outcome.loss > LIMIT_POINTS]
    if not beyond:
        return f"{subject}: for every attack there is a rule that keeps it within {LIMIT_POINTS:g} points."
    names = "; ".join(f"{told(outcome)} with {_title(outcome)}" for outcome in beyond)
    return (
        f"{subject}: **no rule** keeps {len(beyond)} of {len(least)} attacks within {LIMIT_POINTS:g} points. "
        f"The least that they cost: {names}."
    )


def least_with_skew(found: Outcomes, algorithm: str) -> str:
    """Say which rule loses least under its worst attack where clients hold two classes each, and if that is too much."""
    worst = _worst(found, algorithm, TWO_CLASSES, 2)
    if len(worst) < len(PROTECTING):
        return ""
    least = best(list(worst.values()))
    clean = found.of(Group(DIGITS, algorithm, TWO_CLASSES, least.group.rule, NONE, 0))
    without = f"; without an attack it costs {points(clean.loss)}" if clean else ""
    where = f"{ALGORITHMS[algorithm]}, two classes each, 2 of 10 attackers:"
    if least.loss > LIMIT_POINTS:
        limit = f"**no rule** keeps every attack within {LIMIT_POINTS:g} points"
        return f"{where} {limit}; the least that a worst attack costs is {told(least)}, with {_title(least)}."
    return f"{where} the rule that loses least under its worst attack is {_title(least)} ({told(least)}){without}."


def _least(found: Outcomes, algorithm: str, partition: str) -> list[Outcome]:
    """Return, for each attack of 2 of 10, the outcome with the best rule; empty if one was not measured."""
    groups = [Group(DIGITS, algorithm, partition, MEAN, attack, 2) for attack in attacks_of(algorithm)]
    measured = [found.with_rules(group, PROTECTING) for group in groups]
    return [best(outcomes) for outcomes in measured] if all(measured) else []


def _worst(found: Outcomes, algorithm: str, partition: str, attackers: int) -> Mapping[str, Outcome]:
    """Return the hardest attack on each rule; rules without some attack are left out."""
    groups = {rule: Group(DIGITS, algorithm, partition, rule, NONE, attackers) for rule in PROTECTING}
    measured = {rule: found.under(group, attacks_of(algorithm)) for rule, group in groups.items()}
    return {rule: hardest(outcomes) for rule, outcomes in measured.items() if outcomes}


def _title(outcome: Outcome) -> str:
    return RULES[outcome.group.rule].title


def _with_number(outcome: Outcome) -> str:
    return f"{told(outcome)}, with {outcome.group.attackers} attackers"


def _numbers(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last
