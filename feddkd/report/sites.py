"""Lists teacher against global model at each site, how many labels it has, and who is in doubt."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from feddkd.config import MainMetric
from feddkd.exchange import DELIVER
from feddkd.observability.run_folder import RunFolder
from feddkd.report import units
from feddkd.report.groups import Group
from feddkd.report.series import ByRound
from feddkd.report.table import Data, Table, Value

TEACHER, GLOBAL = "teacher_accuracy", "client_accuracy"
OF_CLIENT = "client_"
DISAGREEMENT = "label_disagreement"

MOST_ROWS = 100
"""Sites beyond these are left out of the table; those in doubt come first."""

BEGIN = "The last round that recorded a number. "
OF_TEACHERS = (
    "Teacher and global model: accuracy on the labelled examples that the site holds out, "
    "of its local model and of the model that this was trained from. Where the teacher is ahead, distillation has something to bring. "
    "Disagreement: share of the site's labels that its teacher contradicts. "
)
ROUNDS = "Rounds: those that the site took part in."
DOUBTS = (
    " In doubt: a site whose disagreement was far above the median site's for several rounds, or whose contributions were "
    "far longer than those of others, or far from them, in several exchanges in a row."
)


@dataclass(slots=True)
class Site:
    """What the runs of a group recorded of one site.

    Attributes:
        numbers: by name, and then by round, the mean over the runs.
        labelled: in the mean over the runs that said so; None if none did.
        unlabelled: likewise.
        doubtful_since: the first round in which its labels were found doubtful, in any run.
        outlier_since: the first round in which its contributions had stood out for several exchanges, in any run.
        rounds: that it took part in, in the mean over the runs that said so.
        last_reply: when a reply of it counted last, in UTC; of several runs, the newest.
    """

    numbers: dict[str, ByRound] = field(default_factory=dict)
    labelled: float | None = None
    unlabelled: float | None = None
    doubtful_since: int | None = None
    outlier_since: int | None = None
    rounds: float | None = None
    last_reply: str = ""

    @property
    def tells_something(self) -> bool:
        """Whether there is more than a count of labels, which every run has."""
        return bool(self.numbers) or bool(self.unlabelled) or self.is_in_doubt

    @property
    def is_in_doubt(self) -> bool:
        return self.doubtful_since is not None or self.outlier_since is not None

    def last(self, name: str) -> float | None:
        """The number of the last round that has it."""
        found = self.numbers.get(name)
        return found[max(found)] if found else None

    @property
    def lead(self) -> float | None:
        """How far the teacher was ahead of the model it was trained from, in the last round with both."""
        teacher, model = self.numbers.get(TEACHER, {}), self.numbers.get(GLOBAL, {})
        both = teacher.keys() & model.keys()
        return teacher[max(both)] - model[max(both)] if both else None


def sites_of(group: Group) -> dict[str, Site]:
    """Collect what is known of each site, in client order; empty where no site tells something."""
    sites: dict[str, Site] = defaultdict(Site)
    _add_numbers(sites, group.runs, (TEACHER, GLOBAL, DISAGREEMENT, f"{OF_CLIENT}{group.metric.name}"))
    _add_counts(sites, group.runs)
    return dict(sorted(sites.items())) if any(site.tells_something for site in sites.values()) else {}


def _add_numbers(sites: dict[str, Site], runs: Sequence[RunFolder], names: Sequence[str]) -> None:
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in runs:
        last_attempt = {
            (client, name, line.round): value
            for line in run.exchanges
            for name, values in line.by_client.items()
            if name in names and line.exchange != DELIVER
            for client, value in values.items()
        }
        for (client, name, number), value in last_attempt.items():
            found[client, name, number].append(value)
    for (client, name, number), values in found.items():
        sites[client].numbers.setdefault(name, {})[number] = math.fsum(values) / len(values)


def _add_counts(sites: dict[str, Site], runs: Sequence[RunFolder]) -> None:
    counts, rounds = defaultdict(list), defaultdict(list)
    for run in runs:
        for client, presence in run.summary.presence.items() if run.summary else ():
            rounds[client].append(presence.rounds)
            sites[client].last_reply = max(sites[client].last_reply, presence.last or "")
        for client, own in run.summary.examples.items() if run.summary else ():
            counts[client].append(own)
        for client, doubt in run.summary.doubtful_labels.items() if run.summary else ():
            earlier = sites[client].doubtful_since
            sites[client].doubtful_since = doubt.round if earlier is None else min(earlier, doubt.round)
        for client, since in run.summary.outliers.items() if run.summary else ():
            earlier = sites[client].outlier_since
            sites[client].outlier_since = since if earlier is None else min(earlier, since)
    for client, own_rounds in rounds.items():
        sites[client].rounds = sum(own_rounds) / len(own_rounds)
    for client, all_own in counts.items():
        sites[client].labelled = sum(own.labelled for own in all_own) / len(all_own)
        sites[client].unlabelled = sum(own.unlabelled for own in all_own) / len(all_own)


def site_table(groups: Sequence[Group]) -> Table | None:
    """A row for each site of each group, those in doubt first; None where there is nothing to say."""
    found = [(number, name, site) for number, group in enumerate(groups) for name, site in sites_of(group).items()]
    if not found:
        return None
    found.sort(key=lambda item: (item[0], not item[2].is_in_doubt))
    shown, doubted = found[:MOST_ROWS], any(site.is_in_doubt for _, _, site in found)
    several, columns = len(groups) > 1, Columns.of(groups[0].metric, [site for _, _, site in found])
    header = ["site", "labelled", "unlabelled", *columns.heads, "rounds", "last reply, UTC", *(["in doubt"] if doubted else [])]
    rows = [
        [*([groups[number].label] if several else []), units.shortened(name, 80), *columns.cells(site), *(_doubt(site) if doubted else [])]
        for number, name, site in shown
    ]
    last = len(header) - 1 + several
    strong = frozenset((row, last) for row, (_, _, site) in enumerate(shown) if site.is_in_doubt)
    caption = columns.caption + (DOUBTS if doubted else "")
    if len(found) > len(shown):
        caption += f" {len(found) - len(shown)} more sites are left out."
    values = [columns.values(groups[number], name, site) for number, name, site in found]
    colors = [groups[number].look.color for number, _, _ in shown]
    header = [*(["configuration"] if several else []), *header]
    return Table(header, rows, colors, strong, caption, Data(columns.fields, values), "sites", "Sites")


@dataclass(frozen=True, slots=True)
class Columns:
    """What the table says of a site.

    Attributes:
        metric: of the global model at the site; None where that is accuracy, which stands beside the teacher's.
        has_teachers: whether there are columns of teachers.
    """

    metric: MainMetric | None
    has_teachers: bool

    @classmethod
    def of(cls, metric: MainMetric, sites: Sequence[Site]) -> Columns:
        """Choose the columns that some site fills."""
        if metric.name == "accuracy":
            return cls(None, has_teachers=True)
        return cls(metric, any(TEACHER in site.numbers for site in sites))

    @property
    def heads(self) -> list[str]:
        """Heads of the columns on models."""
        teachers = ["teacher", "global model", "teacher ahead by", "disagreement"] if self.has_teachers else []
        return [*([] if self.metric is None else [f"{self.metric.title}{self.metric.unit}"]), *teachers]

    @property
    def caption(self) -> str:
        """Say what the columns are."""
        own = ""
        if self.metric is not None:
            which = ", lower is better" if self.metric.minimised else ""
            own = f"{self.metric.heading}: of the global model on the labelled examples that the site holds out{which}. "
        return f"{BEGIN}{own}{OF_TEACHERS if self.has_teachers else ''}{ROUNDS}"

    @property
    def fields(self) -> list[str]:
        """Names of the columns of CSV."""
        own = [] if self.metric is None else [f"global_model_{self.metric.code}"]
        return [*FIELDS, *own]

    def cells(self, site: Site) -> list[str]:
        """A row without the site's name."""
        counts = ["" if number is None else units.count(number) for number in (site.labelled, site.unlabelled)]
        score = self._score(site)
        cells = [] if self.metric is None else ["" if score is None else self.metric.cell(score)]
        rounds = "" if site.rounds is None else units.count(site.rounds)
        return [*counts, *cells, *(_teacher_cells(site) if self.has_teachers else []), rounds, site.last_reply[:16].replace("T", " ")]

    def values(self, group: Group, name: str, site: Site) -> list[Value]:
        """A row of CSV."""
        counts = (site.labelled, site.unlabelled)
        numbers = (site.last(TEACHER), site.last(GLOBAL), site.last(DISAGREEMENT))
        own = [] if self.metric is None else [self._score(site)]
        return [
            group.label,
            group.code,
            name,
            *counts,
            *numbers,
            site.rounds,
            site.last_reply,
            site.doubtful_since,
            site.outlier_since,
            *own,
        ]

    def _score(self, site: Site) -> float | None:
        return None if self.metric is None else site.last(f"{OF_CLIENT}{self.metric.name}")


FIELDS = [
    *("configuration", "name", "site", "labelled", "unlabelled", TEACHER, "global_model_accuracy"),
    *(DISAGREEMENT, "rounds", "last_reply", "in_doubt_since_round", "outlier_since_round"),
]


def _teacher_cells(site: Site) -> list[str]:
    lead = site.lead
    return [
        _percent(site.last(TEACHER)),
        _percent(site.last(GLOBAL)),
        "" if lead is None else f"{100 * lead:+.1f} points" if abs(lead) >= 5e-4 else "level",
        _percent(site.last(DISAGREEMENT)),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _doubt(site: Site) -> list[str]:
    labels = [] if site.doubtful_since is None else [f"labels since round {site.doubtful_since}"]
    contributions = [] if site.outlier_since is None else [f"contributions since round {site.outlier_since}"]
    return [", ".join([*labels, *contributions])]
