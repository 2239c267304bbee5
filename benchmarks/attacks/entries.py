"""Tables of outcomes, each with a line that says which runs it is of."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from niid_bench.markdown import MISSING, table

from attacks.known import ABSENT, ATTACKS
from attacks.outcomes import Outcome, points

LIMIT_POINTS = 5.0
"""What an attack may cost."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One field of a table.

    Attributes:
        text: what it says.
        of: the outcomes that it follows from.
    """

    text: str
    of: tuple[Outcome, ...] = ()

    @property
    def seeds(self) -> int:
        """The smallest number of seeds of its outcomes."""
        return min(len(outcome.seeds) for outcome in self.of)


NOT_MEASURED = Entry(MISSING)
NO_MEANING = Entry("")
"""The attack does nothing to this algorithm."""


def written(header: Sequence[str], rows: Sequence[tuple[str, Sequence[Entry]]]) -> str:
    """Write a table and the line below it; empty if nothing in it was measured.

    Rows without an outcome are left out. Where entries differ in the number of their seeds, smaller
    numbers are written beside them.
    """
    rows = [(name, entries) for name, entries in rows if any(entry.of for entry in entries)]
    shown = [entry for _, entries in rows for entry in entries]
    measured = [entry for entry in shown if entry.of]
    if not measured:
        return ""
    most = max(entry.seeds for entry in measured)
    fields = [[name, *(_field(entry, most) for entry in entries)] for name, entries in rows]
    return f"{table(header, fields)}\n\n{_note(shown, most)}"


def _field(entry: Entry, most: int) -> str:
    fewer = bool(entry.of) and entry.seeds < most
    return f"{entry.text}, n={entry.seeds}" if fewer else entry.text


def _note(shown: Sequence[Entry], most: int) -> str:
    """Say how many runs there are, with which seeds and commits, and what is missing."""
    outcomes = {outcome.group: outcome for entry in shown for outcome in entry.of}.values()
    runs = sum(len(outcome.seeds) for outcome in outcomes)
    seeds = sorted({seed for outcome in outcomes for seed in outcome.seeds})
    commits = sorted({commit for outcome in outcomes for commit in outcome.commits})
    said = [f"{runs:,} runs, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}, at {', '.join(commits)}."]
    if any(entry.of and entry.seeds < most for entry in shown):
        said.append(f"n: the number of seeds where it is not {most}.")
    if NOT_MEASURED in shown:
        said.append(f'"{MISSING}": not measured.')
    if earlier := sum(outcome.earlier for outcome in outcomes):
        said.append(f"{earlier:,} of the runs are of an earlier version of the rules.")
    return textwrap.fill(" ".join(said), 100, break_on_hyphens=False)


def loss(outcome: Outcome | None) -> Entry:
    """Show what an attack costs, bold where that is within the limit."""
    return NOT_MEASURED if outcome is None else Entry(loss_text(outcome), (outcome,))


def loss_text(outcome: Outcome) -> str:
    return f"**{outcome.text}**" if outcome.loss <= LIMIT_POINTS else outcome.text


def accuracy(outcome: Outcome | None) -> Entry:
    """Show the accuracy in percent."""
    return NOT_MEASURED if outcome is None else Entry(f"{outcome.accuracy:.1f}", (outcome,))


def attack_title(name: str) -> str:
    return "the attackers are refused" if name == ABSENT else ATTACKS[name].title


def told(outcome: Outcome) -> str:
    """Say what an attack costs, in a sentence."""
    return f"{attack_title(outcome.group.attack)}: {lost(outcome)}"


def lost(outcome: Outcome) -> str:
    """Say how many points are lost."""
    return "no model" if outcome.failed == len(outcome.seeds) else points(outcome.loss)
