"""Metrics of evaluations, computed by torchmetrics and added up over clients."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feddkd.errors import ConfigError
from feddkd.imports import load_object, named, one_line
from feddkd.structures import Structure, map_leaves
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION
from feddkd.torchvision_compat import import_torchvision

if TYPE_CHECKING:
    from torchmetrics import Metric

Sums = Mapping[str, tuple[float, ...]]
"""The state of each metric, as numbers that add up over clients."""

COUNTED = frozenset({"loss", "accuracy"})
"""Metrics that an evaluation counts itself, where the task says which examples are predicted correctly."""

THRESHOLDS = 200
"""Of curves: with given thresholds their counts add up exactly over clients."""

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
        "exact_match": lambda tm: tm.MultilabelExactMatch(labels),
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
    def sizes(self) -> Mapping[str, int]:
        """How many numbers the state of each metric has."""
        return {
            name: sum(state.numel() for state in _states(metric).values()) if _adds_up(metric) else 2
            for name, metric in self._metrics.items()
        }

    def begin(self) -> None:
        """Begin an evaluation."""
        for metric in self._metrics.values():
            metric.reset()

    def add(self, outputs: Structure, targets: Structure) -> None:
        """Take in the outputs and targets of a batch."""
        if not self._metrics:
            return
        predictions, measured = (map_leaves(_exact, part) for part in self.task.measured(outputs, targets))
        for name, metric in self._metrics.items():
            try:
                metric.update(predictions, measured)
            except Exception as error:  # a user's metric may raise anything
                raise ConfigError(f"task.metrics: {name} cannot be computed: {one_line(error)}") from error

    def sums(self, examples: int) -> dict[str, tuple[float, ...]]:
        """Return the states of the evaluation so far, over so many examples."""
        found = {}
        for name, metric in self._metrics.items():
            if _adds_up(metric):
                numbers = [state.detach().double().cpu().flatten() for state in _states(metric).values()]
                found[name] = tuple(torch.cat(numbers).tolist())
            else:
                value = _value(metric)
                found[name] = (value * examples, float(examples))
        return found

    def values(self, sums: Sums) -> dict[str, float]:
        """Compute the metrics from states, added up over clients; those that are not defined for them are left out."""
        found = {name: self._value_of(metric, sums[name]) for name, metric in self._metrics.items() if name in sums}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _value_of(self, metric: Metric, numbers: tuple[float, ...]) -> float:
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


def _value(metric: Metric) -> float:
    """Compute a metric's value; NaN where it is not defined, as for no example at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of states that were set without an update, and of classes without an example
        try:
            found = metric.compute()
        except (ValueError, RuntimeError, ZeroDivisionError):
            return math.nan
    return float(found) if isinstance(found, Tensor) and found.numel() == 1 else math.nan


OF_CLASSIFICATION = TaskMetrics(CLASSIFICATION, num_classes=2)
"""Accuracy and cross-entropy, of any number of classes."""
