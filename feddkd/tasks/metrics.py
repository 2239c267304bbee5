"""Metrics of evaluations, computed by torchmetrics and added up over clients."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from feddkd.errors import ConfigError
from feddkd.imports import load_object, named, one_line
from feddkd.structures import Structure, leaves, map_leaves
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION
from feddkd.text import SHARES
from feddkd.torchvision_compat import import_torchvision

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from torchmetrics import Metric

Sums = Mapping[str, tuple[float, ...]]
"""The state of each metric, as numbers that add up over clients."""

COUNTED = frozenset({"loss", "accuracy"})
"""Metrics that an evaluation counts itself, where the task says which examples are predicted correctly."""

THRESHOLDS = 200
"""Of curves: with given thresholds their counts add up exactly over clients."""

COUNTS = frozenset({"total", "num_obs", "n_obs"})
"""Names of torchmetrics' states that are counts, and floating-point numbers."""

TRUE_NEGATIVES = "tn"
"""Name of a state that counts each example once for each class that it is not."""

SIGNED = frozenset({"sum_error"})
"""Names of its states that may be negative."""

MOST_NUMBERS = 1 << 17
"""In the states of all metrics of one evaluation; they travel in a message."""


def _classification(classes: int) -> Mapping[str, Callable[[Any], Metric]]:
    return {
        "accuracy": lambda tm: tm.MulticlassAccuracy(classes, average="micro"),
        "balanced_accuracy": lambda tm: tm.MulticlassAccuracy(classes, average="macro"),
        "precision": lambda tm: tm.MulticlassPrecision(classes, average="macro"),
        "recall": lambda tm: tm.MulticlassRecall(classes, average="macro"),
        "f1": lambda tm: tm.MulticlassF1Score(classes, average="macro"),
        "auroc": lambda tm: tm.MulticlassAUROC(classes, thresholds=THRESHOLDS),
        "average_precision": lambda tm: tm.MulticlassAveragePrecision(classes, thresholds=THRESHOLDS),
        "iou": lambda tm: tm.MulticlassJaccardIndex(classes),
        "kappa": lambda tm: tm.MulticlassCohenKappa(classes),
        "mcc": lambda tm: tm.MulticlassMatthewsCorrCoef(classes),
    }


def _multilabel(labels: int) -> Mapping[str, Callable[[Any], Metric]]:
    known: dict[str, Any] = {"num_labels": labels, "ignore_index": -1}
    return {
        "accuracy": lambda tm: tm.MultilabelAccuracy(**known, average="micro"),
        "precision": lambda tm: tm.MultilabelPrecision(**known),
        "recall": lambda tm: tm.MultilabelRecall(**known),
        "f1": lambda tm: tm.MultilabelF1Score(**known),
        "auroc": lambda tm: tm.MultilabelAUROC(**known, thresholds=THRESHOLDS),
        "average_precision": lambda tm: tm.MultilabelAveragePrecision(**known, thresholds=THRESHOLDS),
        "exact_match": lambda tm: tm.MultilabelExactMatch(**known),
    }


def _regression(_: int) -> Mapping[str, Callable[[Any], Metric]]:
    return {
        "mae": lambda tm: tm.MeanAbsoluteError(),
        "mse": lambda tm: tm.MeanSquaredError(),
        "rmse": lambda tm: tm.MeanSquaredError(squared=False),
        "mape": lambda tm: tm.MeanAbsolutePercentageError(),
        "r2": lambda tm: tm.R2Score(),
    }


KNOWN = {"classification": _classification, "multilabel": _multilabel, "regression": _regression}
"""Metrics by task; each is built from torchmetrics' modules of classification and regression."""


class StateRange(NamedTuple):
    """What the numbers of a state are.

    Attributes:
        numbers: how many there are.
        least: of each.
        most_per_example: of each, for each example of an evaluation.
    """

    numbers: int
    least: float
    most_per_example: float


class TaskMetrics:
    """The metrics of a task that torchmetrics computes; `Evaluation.sums` has their states.

    A metric whose states all add up (counts, sums, confusion matrices) is exact over clients. Of any
    other, the mean of the clients' values is taken, weighted by their examples.

    Attributes:
        task: whose outputs are measured.
        names: of the metrics.
        has_one_class: whether each example has one class, so that an evaluation counts those that are predicted correctly.
    """

    def __init__(self, task: LearningTask[Any], num_classes: int, target_shape: tuple[int, ...] = ()) -> None:
        """Build the metrics that `[task]` names.

        Raises:
            ConfigError: one is not known, or cannot be built.
        """
        settings = task.settings
        self._failed: set[str] = set()
        self._warned: set[str] = set()
        self._places = math.prod(target_shape)
        self._num_classes = num_classes
        wanted = dict.fromkeys([settings.metric, *settings.metrics])
        self.task = task
        self.has_one_class = task.has_one_class(target_shape)
        counted = COUNTED if self.has_one_class else {"loss"}
        self._metrics = {name: _built(name, settings.name, num_classes) for name in wanted if name not in counted}
        self.names = tuple(self._metrics)
        if (size := sum(self.sizes.values())) > MOST_NUMBERS:
            raise ConfigError(
                f"task.metrics: the states of {', '.join(self.names)} have {size:,} numbers; at most {MOST_NUMBERS:,} can be sent"
            )

    @cached_property
    def ranges(self) -> Mapping[str, tuple[StateRange, ...]]:
        """The states of each metric: how many numbers they have, and between which they lie."""
        mean = (StateRange(1, -math.inf, math.inf), StateRange(1, 0.0, 1.0))
        return {
            name: tuple(self._range_of(name, *state) for state in _states(metric).items()) if _adds_up(metric) else mean
            for name, metric in self._metrics.items()
        }

    def _range_of(self, metric: str, name: str, state: Tensor) -> StateRange:
        """Say what the numbers of one state are; of a metric of the user's own only how many there are."""
        if ":" in metric:
            return StateRange(state.numel(), -math.inf, math.inf)
        is_count = not state.is_floating_point() or name in COUNTS
        most = self._places * (self._num_classes if name == TRUE_NEGATIVES else 1) if is_count else math.inf
        return StateRange(state.numel(), -math.inf if name in SIGNED else 0.0, most)

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """How many numbers the states of each metric have together."""
        return {name: sum(state.numbers for state in ranges) for name, ranges in self.ranges.items()}

    def begin(self) -> None:
        """Begin an evaluation."""
        self._failed.clear()
        for metric in self._metrics.values():
            metric.reset()

    def add(self, outputs: Structure, targets: Structure) -> None:
        """Take in the outputs and targets of a batch. A metric that cannot be computed is left out of the evaluation."""
        for name, problem in self._update(outputs, targets).items():
            if name not in self._failed and name not in self._warned:
                logger.warning("task.metrics: %s cannot be computed and is left out: %s", name, problem)
            self._failed.add(name)
            self._warned.add(name)

    def check(self, outputs: Structure, targets: Structure) -> None:
        """Try the metrics on a batch. Raises ConfigError for one that cannot be computed, or is not one number."""
        self.begin()
        for name, problem in self._update(outputs, targets).items():
            raise ConfigError(f"task.metrics: {name} cannot be computed: {problem}")
        for name, metric in self._metrics.items():
            try:
                found = _computed(metric)
            except Exception as error:  # a user's metric may raise anything
                raise ConfigError(f"task.metrics: {name} cannot be computed: {one_line(error)}") from error
            if not isinstance(found, Tensor | int | float) or (isinstance(found, Tensor) and found.numel() != 1):
                form = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
                raise ConfigError(f"task.metrics: {name} is {form}, not one number")

    def _update(self, outputs: Structure, targets: Structure) -> dict[str, str]:
        """Add a batch to the metrics; return why those cannot be computed that cannot."""
        problems: dict[str, str] = {}
        if not self._metrics:
            return problems
        predictions, measured = (map_leaves(_exact, part) for part in self.task.measured(outputs, targets))
        if all(len(leaf) == 0 for leaf in leaves(measured)):
            return problems  # nothing in the batch has a target
        for name, metric in self._metrics.items():
            try:
                metric.update(predictions, measured)
            except Exception as error:  # noqa: BLE001  # a user's metric may raise anything
                problems[name] = one_line(error)
        return problems

    def sums(self, examples: int) -> dict[str, tuple[float, ...]]:
        """Return the states of the evaluation so far, over so many examples; zeros for a metric that is not defined."""
        return {
            name: self._sums_of(metric, examples) if name not in self._failed else (0.0,) * self.sizes[name]
            for name, metric in self._metrics.items()
        }

    def _sums_of(self, metric: Metric, examples: int) -> tuple[float, ...]:
        if _adds_up(metric):
            numbers = torch.cat([state.detach().double().cpu().flatten() for state in _states(metric).values()])
            return tuple(numbers.tolist()) if bool(numbers.isfinite().all()) else (0.0,) * len(numbers)
        value = _value(metric)
        return (value * examples, float(examples)) if math.isfinite(value) else (0.0, 0.0)

    def values(self, sums: Sums) -> dict[str, float]:
        """Compute the metrics from states, added up over clients; those that are not defined for them are left out."""
        found = {name: self._value_of(metric, sums[name]) for name, metric in self._metrics.items() if name in sums}
        return {name: value for name, value in found.items() if math.isfinite(value) and (name not in SHARES or 0 <= value <= 1)}

    def _value_of(self, metric: Metric, numbers: tuple[float, ...]) -> float:
        if not any(numbers):
            return math.nan
        if not _adds_up(metric):
            total, examples = numbers
            return total / examples if examples else math.nan
        metric.reset()
        position, flat = 0, torch.tensor(numbers, dtype=torch.float64)
        for name, state in _states(metric).items():
            setattr(metric, name, flat[position : position + state.numel()].reshape(state.shape).to(state.dtype))
            position += state.numel()
        return _value(metric)


def _built(name: str, task: str, num_classes: int) -> Metric:
    """Build one metric in float64. Raises ConfigError."""
    where = f"task.metrics: {name!r}"
    if ":" in name:
        return _own(name, num_classes)
    known = KNOWN[task](num_classes) if task in KNOWN else {}
    if name not in known:
        choice = f"{task} has {', '.join(sorted({*known, 'loss'}))}" if known else "a task of your own has loss"
        raise ConfigError(f"{where} is not known: {choice}, and package.module:function is one of your own")
    module = import_torchmetrics("regression" if task == "regression" else "classification")
    try:
        metric = known[name](module)
    except ValueError as error:
        raise ConfigError(f"{where} cannot be built for {num_classes} classes: {one_line(error)}") from error
    return metric.set_dtype(torch.float64)


def import_torchmetrics(module: str) -> Any:
    """Import a module of torchmetrics. It takes seconds, so it is done where metrics are asked for."""
    if importlib.util.find_spec("torchvision") is not None:
        import_torchvision()  # torchmetrics imports it as well
    return importlib.import_module(f"torchmetrics.{module}")


def _own(path: str, num_classes: int) -> Metric:
    """Call `package.module:function` as function(num_classes). Raises ConfigError."""
    metric_class, where, function = import_torchmetrics("metric").Metric, named("task.metrics", path), load_object(path, "task.metrics")
    try:
        metric = function(num_classes)
    except Exception as error:  # a user's function may raise anything
        raise ConfigError(f"{where}: calling it as function({num_classes}) failed with {one_line(error)}") from error
    if not isinstance(metric, metric_class):
        raise ConfigError(f"{where}: it returned {type(metric).__name__}, not a torchmetrics.Metric")
    exact: Metric = metric.set_dtype(torch.float64)
    return exact


def _exact(numbers: Tensor) -> Tensor:
    """Copy to the CPU, in float64: sums over clients are then those over all examples, but for the last digits."""
    found = numbers.detach().cpu()
    return found.double() if found.is_floating_point() else found


def _states(metric: Metric) -> dict[str, Any]:
    return metric.metric_state


def _adds_up(metric: Metric) -> bool:
    """Tell whether the state after two batches is the sum of the states after each."""
    dim_zero_sum = import_torchmetrics("utilities").dim_zero_sum
    # torchmetrics says nowhere else how the states of processes are put together.
    return all(isinstance(metric._defaults[name], Tensor) and metric._reductions[name] is dim_zero_sum for name in metric._defaults)


def _computed(metric: Metric) -> Any:
    """Compute a metric's value; it may raise anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of states that were set without an update, and of classes without an example
        return metric.compute()


def _value(metric: Metric) -> float:
    """Compute a metric's value; NaN where it is not defined, as for no example at all."""
    try:
        found = _computed(metric)
        return float(found) if not isinstance(found, Tensor) or found.numel() == 1 else math.nan
    except Exception:  # noqa: BLE001  # a user's metric may raise anything, and of states that a client sent any may
        return math.nan


OF_CLASSIFICATION = TaskMetrics(CLASSIFICATION, num_classes=2)
"""Accuracy and cross-entropy, of any number of classes."""
