"""The sections of docs/attacks.md: one without any result is left out, and named at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attacks.cells import ALGORITHMS, DIGITS, IID, MNIST, TWO_CLASSES
from attacks.outcomes import Outcomes
from attacks.tables import best_rules, by_rule, defaults, parts, single_rules, skew


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        what: it has, for the list of what was not measured.
        text: has `{table}` where the tables are.
        table: one or more, as Markdown; empty if nothing was measured.
    """

    what: str
    text: str
    table: str

    def written(self) -> str:
        """Return the section; empty if nothing of it was measured."""
        return self.text.format(table=self.table) if self.table else ""


def sections_of(found: Outcomes) -> dict[str, Section]:
    """Return all sections by the names of their places."""
    return {
        "attacks:best": Section("the best rule for each attack", BEST, best_rules(found)),
        "attacks:single": Section("all attacks on each rule, with one, two and three attackers", SINGLE, single_rules(found)),
        "attacks:defaults": Section("one attacker and the default settings", DEFAULTS, defaults(found)),
        "attacks:digits_iid": Section("IID digits with two attackers", DIGITS_IID, _by_rule(found, DIGITS, IID)),
        "attacks:parts": Section("attacks on updates alone and on gradients alone", PARTS, parts(found)),
        "attacks:skew": Section("rules without an attack where labels are skewed", SKEW, skew(found)),
        "attacks:digits_c2": Section("attacks where each client holds two classes", DIGITS_C2, _by_rule(found, DIGITS, TWO_CLASSES)),
        "attacks:mnist_iid": Section("IID MNIST", MNIST_IID, _by_rule(found, MNIST, IID)),
    }


def not_measured(sections: Mapping[str, Section]) -> str:
    """List the sections that are left out."""
    return "\n".join(f"- {section.what[0].upper()}{section.what[1:]}." for section in sections.values() if not section.table)


def _by_rule(found: Outcomes, data: str, partition: str) -> str:
    """Return the tables of the algorithms that were measured, each below the name of its algorithm."""
    tables = {title: by_rule(found, data, algorithm, partition) for algorithm, title in ALGORITHMS.items()}
    return "\n\n".join(f"{title}:\n\n{table}" for title, table in tables.items() if table)


BEST = """The best rule for each of the attacks of two clients of ten on IID digits:

{table}"""

SINGLE = """The best rule for one attack is of little use to an operator, who does not know what will come. This
table has the attack that costs most under each rule, for one, two and three attackers of ten on IID
digits:

{table}"""

DEFAULTS = """## One attacker and the default settings

{table}"""

DIGITS_IID = """## IID digits, two attackers

{table}

Where ALIE harms FedDKD more than FedAvg, the server's step may be the reason: FedDKD steps with Adam,
which scales each element of the gradient by its usual size, so a small shift of every element may
count for more there. That was not examined."""

PARTS = """FedDKD sends two kinds of contributions: updates of local training, and gradients of the DKD steps.
The attackers above change both. Here they change one kind and are honest in the other:

{table}"""

SKEW = """## Robust rules and label skew

A robust rule assumes that honest contributions are alike. With label skew they are not: the only
client that holds a class looks like an attacker. So a rule costs accuracy even where nobody
attacks. Accuracy in %, ten honest clients:

{table}"""

DIGITS_C2 = """Losses to two attackers where each client holds two classes.

{table}

A refused client takes its data with it. If no other client holds its classes, the model does not
learn them: the row "the attackers are refused" is what a perfect rule would lose."""

MNIST_IID = """## MNIST

2,000 IID training images and a convolutional network, two attackers.

{table}"""
