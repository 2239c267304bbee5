"""What a report shows in which order, with the words around each picture."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from feddkd.config import MainMetric
from feddkd.config.task import LOWER_IS_BETTER
from feddkd.observability.wall_time import Link
from feddkd.report import bars, frontier_picture, pictures, series
from feddkd.report.codecs import codec_table
from feddkd.report.frontier import Frontier, are_comparable, fedavg_round_bytes, tracks_of
from feddkd.report.frontier_table import frontier_table
from feddkd.report.groups import Group
from feddkd.report.site_pictures import metric_at_sites, teachers_and_global_model
from feddkd.report.sites import site_table
from feddkd.report.table import Table
from feddkd.report.time_table import time_table
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS


@dataclass(frozen=True, slots=True)
class Metric:
    """What the page says of a metric.

    Attributes:
        axis_top: the axis reaches it at least, so that next to nothing looks like nothing.
        is_share: whether the axis is in percent.
    """

    title: str
    axis: str
    caption: str
    axis_top: float = 0.0
    is_share: bool = False


def _choice(title: str, axis: str, yes: str, no: str = "elsewhere") -> Metric:
    """A metric that is 1 in rounds in which the server chose something, and 0 in others."""
    caption = f"100 % where {yes}, 0 % {no}. Over several seeds, the share of the runs that did."
    return Metric(title, f"runs {axis}", caption, axis_top=1.0, is_share=True)


METRICS = {
    "drift_diversity": Metric(
        "Drift diversity",
        "drift diversity",
        "How far the clients' updates of a round point apart: mean squared length over the squared length of the mean. 1 when all agree.",
    ),
    "teacher_entropy": Metric(
        "Teacher entropy",
        "teacher entropy (nats)",
        "Mean entropy of the teachers' predictions. Near 0 a teacher says no more than a hard label.",
        axis_top=0.01,
    ),
    "teacher_accuracy": Metric(
        "Accuracy of the teachers",
        "accuracy of the teachers",
        "On the labelled examples that their sites hold out; weighted mean.",
        axis_top=1.0,
        is_share=True,
    ),
    "teacher_score": Metric(
        "Metric of the teachers",
        "metric of the teachers",
        "The metric of the task on the labelled examples that their sites hold out; weighted mean.",
    ),
    "label_disagreement": Metric(
        "Labels that teachers contradict",
        "labels that teachers contradict",
        "Share of a site's labels that are not its teacher's most likely class; weighted mean.",
        axis_top=0.1,
        is_share=True,
    ),
    "steps_by_teachers": _choice("Rounds by teachers", "whose steps used teachers", "the server let the steps go by the local teachers"),
    "steps_by_own_predictions": _choice(
        "Rounds by own predictions",
        "whose steps used own predictions",
        "the server let the steps go by the global model's own predictions",
    ),
    "steps_by_labels": _choice("Rounds by labels", "whose steps used labels", "the server let the steps go by the labels alone"),
    "started_over": _choice(
        "Averages thrown away",
        "that threw the average away",
        "the previous model had the lower loss and FedDKD's steps started over from it",
        "where they kept the average",
    ),
    "averaged": _choice(
        "Rounds that average",
        "that averaged",
        "a round with a gradient that rides along ended with an average",
        "where averages were worse and it took its step alone",
    ),
    "first_step_loss": Metric(
        "Loss that came with local training", "loss", "The loss of the steps at the model that the clients received, after local training."
    ),
    "learning_rate": Metric(
        "Learning rate", "learning rate of local training", "Of the steps of local training, as the schedule sets it; weighted mean."
    ),
    "update_norm_squared": Metric(
        "Length of the updates", "squared norm of an update", "Squared length of a client's update after local training, in the mean."
    ),
}
MOST_METRICS = 40
"""Clients name their metrics; each one drawn takes a quarter of a second."""

CODEC_METRICS = (*CODEC_SECONDS.values(), *CODEC_ERROR.values())
"""They have a table of their own."""

EXPECTED_METRICS = ("drift_diversity", "teacher_entropy")
"""Where one of these is missing the page says so."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture: its file's name without suffix, and what the page says of it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(slots=True)
class Section:
    """Pictures that belong together.

    Attributes:
        table: below the pictures, with a line on what it says.
        absent: titles of the pictures whose numbers were not recorded.
        left_out: recorded metrics that are not drawn, because there are too many.
    """

    title: str
    drawings: list[Drawing] = field(default_factory=list)
    table: Table | None = None
    absent: list[str] = field(default_factory=list)
    left_out: int = 0

    def add(self, name: str, title: str, caption: str, figure: Figure | None, of: Sequence[Group]) -> None:
        """Take up a picture, or note that it was not recorded."""
        if figure is None:
            self.absent.append(title)
        else:
            labels = ", ".join(group.label for group in of)
            self.drawings.append(Drawing(_unique(name, [d.name for d in self.drawings]), title, caption, f"{title}: {labels}", figure))


def sections_of(groups: Sequence[Group], link: Link | None = None) -> list[Section]:
    """All sections of a report, empty ones included; those on classes only where there are some.

    Args:
        link: a network over which the runs' time is estimated.
    """
    frontier = _frontier(groups)
    at_cost = [section for section in (frontier, _time(groups, link) if link else None) if section is not None]
    sites = _sites(groups)
    first = [_score(groups), *at_cost, _cost(groups), _steps(groups), *([sites] if sites else [])]
    if not _have_classes(groups):
        return first
    classes, partitions = _classes(groups), _partitions(groups)
    if len(classes.drawings) <= 1 and len(partitions.drawings) <= 1:
        # One picture each: side by side.
        last = [Section("Classes", classes.drawings + partitions.drawings, absent=classes.absent + partitions.absent)]
    else:
        last = [classes, partitions]
    return [*first, *last]


def _score(groups: Sequence[Group]) -> Section:
    """How good the global model is: the metric that decides, and then the others."""
    metric, at_clients, where = groups[0].metric, is_at_clients(groups), "on the test set"
    section = Section(metric.heading)
    if at_clients:
        where = "on what the clients hold out, for the server had no test set"
    spread = " Lines are means over seeds, bands reach from the lowest to the highest." if any(len(g.runs) > 1 for g in groups) else ""
    by_round = pictures.score_by_round(groups, metric, at_clients=at_clients)
    section.add(f"{metric.code}_by_round", f"{metric.heading} by round", f"After each round, {where}.{spread}", by_round, groups)
    caption = f"The same {metric.title} over what it cost: all clients, both directions."
    by_bytes = pictures.score_by_bytes(groups, metric, at_clients=at_clients)
    section.add(f"{metric.code}_by_bytes", f"{metric.heading} by bytes on the wire", caption, by_bytes, groups)
    for name in dict.fromkeys(name for group in groups for name in group.metric.others):
        other = MainMetric(name, minimised=name in LOWER_IS_BETTER)
        by_round = pictures.score_by_round(groups, other, at_clients=at_clients)
        section.add(f"{other.code}_by_round", f"{other.heading} by round", f"After each round, {where}.{spread}", by_round, groups)
    return section


def _frontier(groups: Sequence[Group]) -> Section | None:
    """What a good model costs, for several configurations of one problem; None for others."""
    if len(groups) == 1 or not are_comparable(group.runs[0].config for group in groups):
        return None
    metric, found = groups[0].metric, tracks_of(groups, shown_scores(groups))
    tracks = [track for track in found if track is not None]
    if len(tracks) < 2:
        return None
    frontier = Frontier.of(tracks, fedavg_round_bytes(run for group in groups for run in group.runs))
    section = Section(f"{metric.heading} for its bytes", table=frontier_table(frontier))
    caption = (
        "A colour is a method here. Bold: the best that any of its settings, and so its best codec, had reached for the bytes. "
        "The band is the best of all, and the strip at the bottom says whose it is."
    )
    section.add("frontier", f"Frontier: {metric.title} by bytes on the wire", caption, frontier_picture.draw(frontier), groups)
    return section


def _time(groups: Sequence[Group], link: Link) -> Section:
    """What a good model costs in time over a given network."""
    metric = groups[0].metric
    section = Section("Time over a network", table=time_table(groups, link))
    figure = pictures.score_by_time(groups, metric, link, at_clients=is_at_clients(groups))
    caption = f"As estimated from the records, for lines of {link}."
    section.add(f"{metric.code}_by_time", f"{metric.heading} by time over the network", caption, figure, groups)
    return section


def is_at_clients(groups: Sequence[Group]) -> bool:
    """Whether the pictures show the metric on what the clients hold out: no run has it on a test set of the server."""
    on_test_set = series.score_values(groups[0].metric.name)
    # Without a test set a round's own metric is that on what clients hold out.
    return not any(run.config.data.test_set and on_test_set(run) for group in groups for run in group.runs)


def shown_scores(groups: Sequence[Group]) -> series.Values:
    """Reads the metric that the pictures show."""
    return series.score_values(groups[0].metric.name, at_clients=is_at_clients(groups))


def _cost(groups: Sequence[Group]) -> Section:
    section = Section("Cost")
    per_run = " A run's mean over its seeds." if any(len(group.runs) > 1 for group in groups) else ""
    caption = f"Serialized messages of all clients, retries included.{per_run}"
    section.add("bytes_by_exchange", "Bytes by exchange", caption, bars.bytes_by_exchange(groups), groups)
    caption = f"From broadcast to reduced result, all rounds together.{per_run} Start-up is in none of them."
    section.add("time_by_phase", "Time by phase", caption, bars.time_by_phase(groups), groups)
    section.table = codec_table(groups)
    return section


def _steps(groups: Sequence[Group]) -> Section:
    section = Section("Distillation and drift")
    caption = (
        "The loss that a round's steps descend (not the test loss), at the first model that they measure and before the last step. "
        "The first is the average of the local models, unless dkd.start is previous; where the previous model has the lower loss, "
        "FedDKD's steps start over from it."
    )
    section.add("step_loss", "Loss at the first and at the last step", caption, pictures.step_loss(groups), groups)
    recorded = [name for name in series.metric_names(run for group in groups for run in group.runs) if name not in CODEC_METRICS]
    expected = [name for name in EXPECTED_METRICS if name != "teacher_entropy" or groups[0].metric.task in pictures.IN_NATS]
    names = list(dict.fromkeys((*expected, *recorded)))
    section.left_out = max(len(names) - MOST_METRICS, 0)
    for name in names[:MOST_METRICS]:
        metric = METRICS.get(name, Metric(name, name, "Weighted mean over the clients."))
        figure = pictures.metric_by_round(groups, name, metric.axis, metric.axis_top, is_share=metric.is_share)
        section.add(_file_name(name), metric.title, metric.caption, figure, groups)
    return section


def _sites(groups: Sequence[Group]) -> Section | None:
    """What sites said of themselves; None where nothing tells them apart."""
    table = site_table(groups)
    if table is None:
        return None
    section = Section("Sites", table=table)
    caption = "On the labelled examples that each site holds out: its teacher, and the global model that this was trained from."
    for group in groups:
        several, seeds = len(groups) > 1, " Mean over seeds." if len(group.runs) > 1 else ""
        figure = metric_at_sites(group)
        if figure is not None:
            title = f"{group.metric.heading} by round"
            name = f"sites_{group.metric.code}-{_file_name(group.code)}" if several else f"sites_{group.metric.code}"
            own = f"Of the global model on the labelled examples that each site holds out.{seeds}"
            section.add(name, f"{title}: {group.label}" if several else title, own, figure, [group])
        figure = teachers_and_global_model(group)
        if figure is not None:
            title = group.label if several else "Teachers and global model by round"
            name = f"sites-{_file_name(group.code)}" if several else "sites"
            section.add(name, title, caption + seeds, figure, [group])
    return section


def _classes(groups: Sequence[Group]) -> Section:
    section = Section("Accuracy by class")
    for group in groups:
        several = len(groups) > 1
        figure = pictures.class_accuracy(group)
        caption = "Of the global model on each class's test examples; empty where there are none."
        caption += " Mean over seeds." if len(group.runs) > 1 else ""
        title = group.label if several else "Accuracy by class and round"
        section.add(f"class_accuracy-{_file_name(group.code)}" if several else "class_accuracy", title, caption, figure, [group])
    return section


def _have_classes(groups: Sequence[Group]) -> bool:
    """Whether an example has one class, so that accuracies of the classes are recorded, or would be by a newer version."""
    configs = [group.runs[0].config for group in groups]
    return any(config.task.name == "classification" and not config.data.target_shape for config in configs)


def _partitions(groups: Sequence[Group]) -> Section:
    """One picture for each different partition: runs with the same seed mostly share theirs."""
    section = Section("Partition")
    owners: dict[str, list[tuple[Group, int]]] = {}
    counts = {}
    for group in groups:
        for run in group.runs:
            if run.partition:
                key = json.dumps(run.partition)
                counts[key] = run.partition
                owners.setdefault(key, []).append((group, run.config.seed))
    if not counts:
        section.absent.append("Examples by client and class")
    for number, (key, of) in enumerate(owners.items()):
        seeds = sorted({seed for _, seed in of})
        title = "Examples by client and class"
        if len(owners) > 1:
            title = f"Seed {', '.join(map(str, seeds))}"
            if len({group.label for group, _ in of}) < len(groups):
                title += f": {', '.join(dict.fromkeys(group.label for group, _ in of))}"
        name = "partition" if len(owners) == 1 else f"partition-{number + 1}"
        figure = pictures.partition(counts[key])
        section.add(name, title, "Empty where a client holds none of a class.", figure, [group for group, _ in of])
    return section


def _file_name(text: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:80].strip("-_.") or "unnamed"


def _unique(name: str, taken: Sequence[str]) -> str:
    return name if name not in taken else next(f"{name}-{n}" for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)
