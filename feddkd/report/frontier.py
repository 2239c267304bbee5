"""What a good model costs in bytes: for every budget the best of several methods, and what each of them needs and reaches.

Numbers are means over a method's seeds, and missing where a seed has none: a mean over the lucky seeds would flatter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.config import ACCURACY, Config, MainMetric
from feddkd.config.main_metric import metric_difference
from feddkd.config.table import flatten
from feddkd.observability.budgets import cost_to_target, reading_within, spread
from feddkd.observability.run_folder import RunFolder
from feddkd.report import series
from feddkd.report.groups import Group, Name, as_text
from feddkd.report.looks import Look, looks_of
from feddkd.report.names import spoken_name
from feddkd.report.series import Values

METHOD_KEYS = ("algorithm.name", "dkd.start", "dkd.piggyback")
"""What makes another method of a configuration; other settings, codecs above all, make another variant of it."""

PROBLEM_TABLES = ("data.", "partition.", "model.")
PROBLEM_EXCEPT = ("data.root", "data.workers")

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998)
MOST_LEVELS = 3

LADDER_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""Levels of a metric that is no share of 1 are these times powers of ten."""

BUDGET_STEPS = (1.0, 2.5, 5.0)
"""Budgets are these times powers of ten, in FedAvg rounds or in bytes."""

MOST_BUDGETS = 3

ENDED_EARLY = 0.99
"""A run that has spent less of a budget could have gone on; message headers make up less than the rest."""

Method = tuple[str, ...]
"""The values of `METHOD_KEYS` in a configuration."""


@dataclass(frozen=True, slots=True)
class Walk:
    """One run: its metric after each evaluated round, and the bytes on the wire until then, which never fall."""

    wire_bytes: Sequence[int]
    scores: Sequence[float]

    @classmethod
    def of(cls, wire_bytes: Sequence[int], scores: Sequence[float | None]) -> Walk:
        """Leave out the rounds that were not evaluated."""
        known = [(spent, reached) for spent, reached in zip(wire_bytes, scores, strict=True) if reached is not None]
        return cls([spent for spent, _ in known], [reached for _, reached in known])


@dataclass(frozen=True, slots=True)
class Track:
    """One configuration over its seeds.

    Attributes:
        label: what a reader calls it; `code` is the same in code names.
        method: equal for configurations that are variants of one method.
        walks: one for each seed; at least one, none of them empty.
        wire_bytes: mean over the seeds, round by round.
        scores: the same, of the metric.
        metric: what the scores are.
    """

    label: str
    code: str
    method: Method
    walks: Sequence[Walk]
    wire_bytes: Sequence[float]
    scores: Sequence[float]
    metric: MainMetric = ACCURACY

    @classmethod
    def of(cls, name: Name, method: Method, walks: Sequence[Walk], metric: MainMetric = ACCURACY) -> Track:
        """Take the mean over the seeds, as far as all of them got."""
        columns = list(zip(*(zip(walk.wire_bytes, walk.scores, strict=True) for walk in walks), strict=False))
        means = [tuple(math.fsum(values) / len(values) for values in zip(*column, strict=True)) for column in columns]
        costs, scores = [cost for cost, _ in means], [reached for _, reached in means]
        return cls(name.label, name.code, method, walks, costs, scores, metric)

    def bytes_to(self, level: float) -> float | None:
        """Mean bytes until a level of the metric; None if a seed does not get there."""
        found = spread(cost_to_target(walk.scores, walk.wire_bytes, level, self.metric) for walk in self.walks)
        return found.mean if found else None

    def score_at(self, budget_bytes: float) -> float | None:
        """Mean of the metric after the last round within a budget; None if a seed has no round within it."""
        readings = [reading_within(walk.scores, walk.wire_bytes, budget_bytes) for walk in self.walks]
        found = spread(reading.score if reading else None for reading in readings)
        return found.mean if found else None

    def ended_before(self, budget_bytes: float) -> bool:
        """Whether it could have gone on within the budget."""
        return max(walk.wire_bytes[-1] for walk in self.walks) < ENDED_EARLY * budget_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """A corner of the frontier: from these bytes on, no track had reached more until the next corner."""

    wire_bytes: float
    score: float
    track: int


def tracks_of(groups: Sequence[Group], scores: Values) -> list[Track | None]:
    """One track for each group of runs, None for a group without anything evaluated.

    Args:
        scores: reads the metric of each round.
    """
    cost = series.round_values("cumulative_wire_bytes")
    found: list[Track | None] = []
    for group in groups:
        walks = []
        for run in group.runs:
            at, spent = scores(run), cost(run)
            walks.append(Walk([int(spent[number]) for number in sorted(at)], [at[number] for number in sorted(at)]))
        name, method = Name(group.label, group.code), method_of(group.runs[0].config)
        is_known = all(walk.scores for walk in walks)
        found.append(Track.of(name, method, walks, group.metric) if is_known else None)
    return found


def method_of(config: Config) -> Method:
    """What makes a method, equal where only other settings differ."""
    settings = flatten(config.model_dump(mode="json"))
    return tuple(as_text(settings.get(key)) for key in METHOD_KEYS)


def are_comparable(configs: Iterable[Config]) -> bool:
    """Whether all of them solve the same problem: data, partition, model and task."""
    configs = list(configs)
    if any(metric_difference(config, configs[0]) is not None for config in configs):
        return False
    problems = [
        {key: value for key, value in flatten(config.model_dump(mode="json")).items() if key.startswith(PROBLEM_TABLES)}
        for config in configs
    ]
    return all(one.get(key) == problems[0].get(key) for one in problems for key in {*one, *problems[0]} if key not in PROBLEM_EXCEPT)


def fedavg_round_bytes(runs: Iterable[RunFolder]) -> float | None:
    """Bytes of the tensors in a round of FedAvg without a codec: the model down to each client of a cohort, and up again.

    None where a record does not say how large the model is, or where the records differ.
    """
    found = {_fedavg_round_bytes(run) for run in runs}
    return found.pop() if len(found) == 1 else None


def _fedavg_round_bytes(run: RunFolder) -> float | None:
    if run.model_bytes is None or not run.exchanges:
        return None
    return 2.0 * run.model_bytes * run.exchanges[0].clients_selected or None


def front(tracks: Sequence[Track]) -> list[Step]:
    """The corners of the frontier, in order of bytes: each reaches more than all that cost no more."""
    points = [
        Step(cost, score, index) for index, track in enumerate(tracks) for cost, score in zip(track.wire_bytes, track.scores, strict=True)
    ]
    metric, corners = tracks[0].metric, list[Step]()
    for point in sorted(points, key=lambda point: (point.wire_bytes, -metric.lead(point.score, 0.0), point.track)):
        if not corners or metric.is_better(point.score, corners[-1].score):
            corners.append(point)
    return corners


def method_names(tracks: Sequence[Track], *, spoken: bool = True) -> dict[Method, str]:
    """Return what each method is called, in order of first appearance.

    That is its algorithm, and what tells it from others of that algorithm; in code names if not `spoken`.
    """
    methods = list(dict.fromkeys(track.method for track in tracks))
    names = {}
    for method in methods:
        rivals = [other for other in methods if other[0] == method[0]]
        places = range(1, len(METHOD_KEYS))
        told = [place for place in places if len({other[place] for other in rivals}) > 1]
        said = [f"{METHOD_KEYS[place].rpartition('.')[2]}={method[place]}" for place in told]
        algorithm = spoken_name(method[0]) if spoken else method[0]
        names[method] = (", " if spoken else " ").join([algorithm, *said])
    return names


def levels_of(tracks: Sequence[Track]) -> list[float]:
    """The best round values of the metric that some track reaches, the best one last."""
    metric = tracks[0].metric
    best = metric.best(score for track in tracks for score in track.scores)
    assert best is not None
    ladder = LEVELS if not metric.minimised and 0 <= best <= 1 else _ladder(best, minimised=metric.minimised)
    return [level for level in ladder if metric.reaches(best, level)][-MOST_LEVELS:]


def _ladder(best: float, *, minimised: bool) -> list[float]:
    """Round numbers about a positive one, the best last; none about another."""
    if best <= 0:
        return []
    power = math.floor(math.log10(best))
    ladder = [float(f"{step:g}e{exponent}") for exponent in (power - 1, power, power + 1) for step in LADDER_STEPS]
    return ladder[::-1] if minimised else ladder


def budgets_of(tracks: Sequence[Track], unit_bytes: float) -> list[float]:
    """Some round budgets in units, between what the shortest and what the longest track spends, or the tenth of that."""
    ends = [track.wire_bytes[-1] / unit_bytes for track in tracks]
    low, high = min(ends), max(ends)
    low = min(low, high / 10)
    if low <= 0:
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ladder = [step * 10.0**power for power in powers for step in BUDGET_STEPS if low <= step * 10.0**power <= high * (1 + 1e-9)]
    if len(ladder) <= MOST_BUDGETS:
        return ladder
    return [ladder[round(place * (len(ladder) - 1) / (MOST_BUDGETS - 1))] for place in range(MOST_BUDGETS)]


@dataclass(frozen=True, slots=True)
class Frontier:
    """Everything that the page and the terminal say of several tracks.

    Attributes:
        unit_bytes: a FedAvg round without a codec, or None where it is not known.
        corners: of the frontier.
        methods: what each method is called, in the order of their first tracks.
        levels: of the metric, whose cost is stated.
        budgets: in bytes, for which the metric is stated.
    """

    tracks: Sequence[Track]
    unit_bytes: float | None
    corners: Sequence[Step]
    methods: Mapping[Method, str]
    levels: Sequence[float]
    budgets: Sequence[float]

    @classmethod
    def of(cls, tracks: Sequence[Track], unit_bytes: float | None) -> Frontier:
        unit = unit_bytes or 1.0
        budgets = [unit * budget for budget in budgets_of(tracks, unit)]
        return cls(tracks, unit_bytes, front(tracks), method_names(tracks), levels_of(tracks), budgets)

    def of_method(self, method: Method) -> list[Track]:
        """Its settings."""
        return [track for track in self.tracks if track.method == method]

    @property
    def metric(self) -> MainMetric:
        """What models are compared by."""
        return self.tracks[0].metric

    @property
    def looks(self) -> dict[Method, Look]:
        """Of each method, the same in the picture and in the table."""
        looks = looks_of([method[0] for method in self.methods])
        return dict(zip(self.methods, looks, strict=True))

    def name_of(self, method: Method) -> str:
        """What the pictures call it: its only setting, or how many it is the best of."""
        own = self.of_method(method)
        return own[0].label if len(own) == 1 else f"{self.methods[method]}, best of {len(own)} settings"

    @property
    def end_bytes(self) -> float:
        """What the longest track spends."""
        return max(track.wire_bytes[-1] for track in self.tracks)

    def as_json(self) -> dict[str, Any]:
        """In code names."""
        methods = method_names(self.tracks, spoken=False)
        return {
            "fedavg_round_bytes": self.unit_bytes,
            "levels": list(self.levels),
            "budgets_bytes": [round(budget) for budget in self.budgets],
            "corners": [
                {
                    "wire_bytes": round(corner.wire_bytes),
                    self.metric.code: round(corner.score, 6),
                    "label": self.tracks[corner.track].code,
                }
                for corner in self.corners
            ],
            "rows": {track.code: {"method": methods[track.method], **self._row(track)} for track in self.tracks},
        }

    def _row(self, track: Track) -> dict[str, Any]:
        return {
            "bytes_to_level": [_rounded(track.bytes_to(level), 0) for level in self.levels],
            f"{self.metric.code}_at_budget": [_rounded(track.score_at(budget), 6) for budget in self.budgets],
            "ended_before_budget": [track.ended_before(budget) for budget in self.budgets],
        }


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)
