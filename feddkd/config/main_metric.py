"""The metric that says how good the models of a run are: what it is called, how it is written, which value is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feddkd.config.task import TaskTable
from feddkd.text import SHARES, shown_score

if TYPE_CHECKING:
    from feddkd.config import Config

TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "iou": "IoU",
    "mcc": "MCC",
    "exact_match": "exact match",
    "mae": "MAE",
    "mse": "MSE",
    "rmse": "RMSE",
    "mape": "MAPE",
    "r2": "R²",
}
"""What people call metrics whose names in the configuration are not words."""

SHORT_TITLES = {
    "accuracy": "acc.",
    "balanced_accuracy": "bal. acc.",
    "average_precision": "av. prec.",
    "exact_match": "ex. match",
}
"""For columns."""


def code_of(name: str) -> str:
    """Return a metric's name as part of the name of a field or a file: of `package.module:function` the function."""
    return name.rpartition(":")[2]


def title_of(name: str) -> str:
    """Return what people call a metric."""
    return TITLES.get(name, code_of(name))


@dataclass(frozen=True, slots=True)
class MainMetric:
    """The metric that decides which round is the best.

    Attributes:
        name: as `task.metric` has it.
        minimised: whether a smaller value is better.
        others: further metrics of every evaluation, as `task.metrics` has them.
        task: the name of the task.
    """

    name: str = "accuracy"
    minimised: bool = False
    others: tuple[str, ...] = ()
    task: str = "classification"

    @classmethod
    def of(cls, config: Config) -> MainMetric:
        """Read it from the configuration of a run."""
        task = config.task
        assert isinstance(task, TaskTable)
        return cls(task.metric, task.minimised, tuple(name for name in task.metrics if name != task.metric), task.name)

    @property
    def names(self) -> tuple[str, ...]:
        """All metrics of an evaluation, this one first."""
        return (self.name, *self.others)

    @property
    def code(self) -> str:
        """Its name as part of the name of a field or a file."""
        return code_of(self.name)

    @property
    def title(self) -> str:
        """What people call it."""
        return title_of(self.name)

    @property
    def heading(self) -> str:
        """The same at the beginning of a sentence."""
        return f"{self.title[0].upper()}{self.title[1:]}"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of 1, written in percent."""
        return self.name in SHARES

    @property
    def unit(self) -> str:
        """What follows its title at the head of a column of `cell`."""
        return " (%)" if self.is_share else ""

    def cell(self, value: float) -> str:
        """Write a value below a head with `unit`."""
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4g}"

    def cell_of_deviation(self, value: float) -> str:
        """Write a standard deviation beside a `cell`."""
        return f"{100 * value:.2f}" if self.is_share else f"{value:.2g}"

    def text(self, value: float) -> str:
        """Write a value for people."""
        return shown_score(self.name, value)

    def best(self, values: Iterable[float]) -> float | None:
        """Return the best of some values; None where there are none."""
        choose = min if self.minimised else max
        return choose(values, default=None)

    def is_better(self, one: float, other: float) -> bool:
        """Return whether one value is better than another, and not equal."""
        return one < other if self.minimised else one > other

    def reaches(self, value: float, level: float) -> bool:
        """Return whether a value is as good as a level, or better."""
        return not self.is_better(level, value)

    def lead(self, one: float, other: float) -> float:
        """Return by how much one value is better than another; negative where it is worse."""
        return other - one if self.minimised else one - other


ACCURACY = MainMetric()
"""The metric of classification where the configuration names no other."""


def metric_difference(one: Config, other: Config) -> str | None:
    """Say what makes the metrics of two runs different quantities; None where they can be compared."""
    ours, theirs = (config.task.model_dump(mode="json") for config in (one, other))
    keys = ["name", "metric", "lower_is_better"]
    if ours["metric"] == "loss":  # other settings make another loss
        keys = [key for key in dict.fromkeys([*ours, *theirs]) if key != "metrics"]
    found = next((key for key in keys if ours.get(key) != theirs.get(key)), None)
    return None if found is None else f"task.{found} = {ours.get(found)!r} in one, {theirs.get(found)!r} in the other"
