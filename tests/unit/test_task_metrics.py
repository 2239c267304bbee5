"""Metrics of evaluations that add up over clients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.tasks.chosen import task_of
from feddkd.tasks.metrics import KNOWN, Sums, TaskMetrics, import_torchmetrics
from feddkd.text import SHARES

CLASSES = 4
EXAMPLES = 40


def metrics_of(name: str, **given: Any) -> TaskMetrics:
    target_shape = {"classification": (3,), "multilabel": (CLASSES,), "regression": ()}[name]
    return TaskMetrics(task_of(Config.parse({"task": {"name": name, **given}})), CLASSES, target_shape)


def data(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if name == "classification":
        return torch.randn(EXAMPLES, CLASSES, 3, generator=generator), torch.randint(CLASSES, (EXAMPLES, 3), generator=generator)
    if name == "multilabel":
        return torch.randn(EXAMPLES, CLASSES, generator=generator), torch.randint(-1, 2, (EXAMPLES, CLASSES), generator=generator)
    return torch.randn(EXAMPLES, 1, generator=generator), torch.randn(EXAMPLES, generator=generator)


def sums_over(metrics: TaskMetrics, outputs: Tensor, targets: Tensor) -> Sums:
    metrics.begin()
    metrics.add(outputs, targets)
    return metrics.sums(len(outputs))


def added(parts: list[Sums]) -> Sums:
    return {name: tuple(map(math.fsum, zip(*(part[name] for part in parts), strict=True))) for name in parts[0]}


ALL = {name: metrics_of(name, metrics=list(KNOWN[name](CLASSES))) for name in KNOWN}


@settings(max_examples=20)
@given(name=st.sampled_from(sorted(KNOWN)), cuts=st.lists(st.integers(1, EXAMPLES - 1), unique=True, max_size=3).map(sorted))
def test_the_states_of_parts_add_up_to_the_metrics_of_the_whole(name: str, cuts: list[int]) -> None:
    metrics, (outputs, targets) = ALL[name], data(name)
    whole = metrics.values(sums_over(metrics, outputs, targets))
    pieces = zip([0, *cuts], [*cuts, EXAMPLES], strict=True)
    parts = [sums_over(metrics, outputs[low:high], targets[low:high]) for low, high in pieces]
    assert {name: len(numbers) for name, numbers in parts[0].items()} == metrics.sizes
    assert metrics.values(added(parts)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_metrics_are_those_of_torchmetrics(name: str) -> None:
    outputs, targets = data(name)
    found = ALL[name].values(sums_over(ALL[name], outputs, targets))
    if name == "classification":
        expected = {"accuracy": float((outputs.argmax(1) == targets).double().mean())}
    elif name == "multilabel":
        expected = {"accuracy": float(((outputs > 0) == targets)[targets >= 0].double().mean())}
    else:
        errors = outputs.squeeze(1).double() - targets.double()
        expected = {"mae": float(errors.abs().mean()), "mse": float((errors**2).mean()), "rmse": float((errors**2).mean().sqrt())}
        expected["r2"] = 1 - float((errors**2).sum() / ((targets - targets.mean()).double() ** 2).sum())
    assert set(found) == set(KNOWN[name](CLASSES))
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)


def pearson(_: int) -> Any:
    return import_torchmetrics("regression").PearsonCorrCoef()


def nothing(_: int) -> None:
    return None


def fails(_: int) -> None:
    raise RuntimeError("no such metric\nat all")


def test_a_metric_that_does_not_add_up_is_a_mean_over_examples() -> None:
    name = "tests.unit.test_task_metrics:pearson"
    metrics, (outputs, targets) = metrics_of("regression", metrics=[name]), data("regression")
    first, second = sums_over(metrics, outputs[:10], targets[:10]), sums_over(metrics, outputs[10:], targets[10:])
    expected = (10 * metrics.values(first)[name] + 30 * metrics.values(second)[name]) / 40
    assert metrics.values(added([first, second]))[name] == pytest.approx(expected)


class UndefinedError(Exception):
    pass


def broken(_: int) -> Any:
    """A metric whose updates fail where a target is above 1."""

    class Broken(import_torchmetrics("metric").Metric):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("seen", default=torch.tensor(0.0), dist_reduce_fx="sum")

        def update(self, _: Tensor, targets: Tensor) -> None:
            if bool((targets > 1).any()):
                raise UndefinedError("above one")
            self.seen += len(targets)

        def compute(self) -> Tensor:
            if self.seen > 1e20:
                raise IndexError("too many")
            seen: Tensor = self.seen.clone()
            return seen

    return Broken()


def several(_: int) -> Any:
    return import_torchmetrics("regression").MeanAbsoluteError(num_outputs=2)


OWN = "tests.unit.test_task_metrics"


def test_a_metric_that_fails_is_left_out_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    name = f"{OWN}:broken"
    metrics, outputs = metrics_of("regression", metrics=[name]), torch.zeros(2, 1)
    bad = sums_over(metrics, outputs, torch.tensor([0.0, 5.0]))
    bad_again = sums_over(metrics, outputs, torch.tensor([0.0, 5.0]))
    assert len(caplog.records) == 1
    good = sums_over(metrics, outputs, torch.tensor([0.0, 0.5]))
    assert metrics.values(bad).keys() == {"mae"}
    assert metrics.values(added([bad, bad_again, good]))[name] == 2
    assert metrics.values({**good, name: (1e30,)}).keys() == {"mae"}


def test_a_mean_leaves_out_clients_where_it_is_not_defined() -> None:
    name = f"{OWN}:pearson"
    metrics, (outputs, targets) = metrics_of("regression", metrics=[name]), data("regression")
    constant = sums_over(metrics, outputs[:10], torch.ones(10))
    defined = sums_over(metrics, outputs[10:], targets[10:])
    assert all(map(math.isfinite, constant[name]))
    assert name not in metrics.values(constant)
    assert metrics.values(added([constant, defined]))[name] == pytest.approx(metrics.values(defined)[name])


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "cannot be computed: UndefinedError: above one"), ("several", r"shape \[2\], not one number")]
)
def test_a_metric_is_tried_before_a_run(name: str, message: str) -> None:
    metrics = metrics_of("regression", metrics=[f"{OWN}:{name}"])
    shape = (4, 2) if name == "several" else (4,)
    with pytest.raises(ConfigError, match=message):
        metrics.check(torch.zeros(shape), torch.full(shape, 3.0))


@given(name=st.sampled_from(sorted(KNOWN)), numbers=st.data())
def test_whatever_states_a_client_sends_a_share_lies_between_0_and_1(name: str, numbers: st.DataObject) -> None:
    metrics = ALL[name]
    one = numbers.draw(st.sampled_from(metrics.names))
    states = numbers.draw(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=8))
    sums = tuple(states[k % len(states)] for k in range(metrics.sizes[one]))
    value = metrics.values({one: sums}).get(one, 0.5)
    assert math.isfinite(value)
    assert one not in SHARES or 0 <= value <= 1


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_an_honest_state_is_in_its_range(name: str) -> None:
    metrics, (outputs, targets) = ALL[name], data(name)
    sums = sums_over(metrics, outputs, targets)
    for metric, states in metrics.ranges.items():
        numbers = iter(sums[metric])
        for state in states:
            for number in itertools.islice(numbers, state.numbers):
                assert state.least <= number <= state.most_per_example * EXAMPLES


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("f2", "'f2' is not known: regression has loss, mae"),
        ("tests.unit.test_task_metrics:nothing", "returned NoneType, not a torchmetrics.Metric"),
        ("tests.unit.test_task_metrics:fails", r"function\(4\) failed with RuntimeError: no such metric"),
        ("tests.unit.test_task_metrics:absent", "absent"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metrics_of("regression", metrics=[wanted])


def test_states_that_are_too_large_to_be_sent_are_refused() -> None:
    learning = task_of(Config.parse({"task": {"metrics": ["iou"]}}))
    with pytest.raises(ConfigError, match=r"accuracy, iou have 1,000,004 numbers"):
        TaskMetrics(learning, 1000, (3,))


def test_accuracy_of_examples_is_counted_without_torchmetrics() -> None:
    assert TaskMetrics(task_of(Config()), CLASSES).names == ()
    assert TaskMetrics(task_of(Config()), CLASSES, (5,)).names == ("accuracy",)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(["f1", "f1"], "named twice"), *(([name], "metrics") for name in ("", "evil-mod:fn", "evil:fn x", "evil:fn\n", "a b", "é:f"))],
)
def test_the_list_of_metrics_is_checked(metrics: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse({"task": {"metrics": metrics}})


def test_weights_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ConfigError, match="class_weights: all are 0"):
        Config.parse({"task": {"class_weights": [0.0, 0.0]}})


@pytest.mark.parametrize(
    ("task", "minimised"),
    [
        ({"name": "regression"}, True),
        ({"name": "regression", "metric": "r2"}, False),
        ({}, False),
        ({"metric": "loss"}, True),
        ({"metric": "f1", "lower_is_better": True}, True),
    ],
)
def test_the_direction_of_a_metric_is_known(task: dict[str, Any], minimised: bool) -> None:
    settings = Config.parse({"task": task}).task
    assert getattr(settings, "minimised") is minimised  # noqa: B009  # of a subclass


@pytest.mark.parametrize("goal", [95.0, 0.0, -0.1])
def test_a_goal_that_a_share_cannot_reach_is_refused(goal: float) -> None:
    with pytest.raises(ConfigError, match="lies between 0 and 1"):
        Config.parse({"scheduler": {"stop_at": goal}})
    assert Config.parse({"scheduler": {"stop_at": goal}, "task": {"name": "regression"}}).scheduler.stop_at == goal
