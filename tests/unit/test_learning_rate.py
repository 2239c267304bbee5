"""Schedules of the learning rate: those of torch, as a function of the round and the step alone."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from feddkd.algorithms.learning_rate import LearningRate, effective_steps
from feddkd.config import Config
from feddkd.config.training import ScheduleName
from feddkd.errors import ConfigError

LR = 0.3

OPTIONS: dict[ScheduleName, dict[str, Any]] = {
    "constant": {},
    "step": {"step_size": 3, "gamma": 0.5},
    "multistep": {"milestones": [2, 5], "gamma": 0.3},
    "exponential": {"gamma": 0.9},
    "linear": {"end_factor": 0.1},
    "polynomial": {"power": 2.0},
    "cosine": {"eta_min": 0.01},
    "cosine_restarts": {"T_0": 4},
}
CLASSES: dict[ScheduleName, str] = {
    "step": "StepLR",
    "multistep": "MultiStepLR",
    "exponential": "ExponentialLR",
    "linear": "LinearLR",
    "polynomial": "PolynomialLR",
    "cosine": "CosineAnnealingLR",
    "cosine_restarts": "CosineAnnealingWarmRestarts",
}
HORIZONS = {"linear": "total_iters", "polynomial": "total_iters", "cosine": "T_max"}

schedules = st.sampled_from(list(OPTIONS))


def rate_of(rounds: int = 10, **training: Any) -> LearningRate:
    return LearningRate(Config.parse({"rounds": rounds, "training": {"lr": LR, "momentum": 0.0, **training}}))


def scheduled(name: ScheduleName, **training: Any) -> dict[str, Any]:
    return {"schedule": name, "schedule_options": OPTIONS[name], **training}


def by_torch(name: ScheduleName, count: int, warmup: int = 0) -> list[float]:
    """The rates of torch's own scheduler, one after the other, as a training loop sees them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    left = count - warmup
    arguments = {**({HORIZONS[name]: left} if name in HORIZONS else {}), **({"start_factor": 1.0} if name == "linear" else {})}
    constant = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    scheduler: Any = constant if name == "constant" else getattr(lr_scheduler, CLASSES[name])(optimizer, **arguments, **OPTIONS[name])
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SequentialLR, about an argument that it gives itself
        if warmup:
            ramp = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)
            scheduler = lr_scheduler.SequentialLR(optimizer, [ramp, scheduler], milestones=[warmup])
        for _ in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_over_rounds_the_rates_are_torchs_one_a_round(name: ScheduleName) -> None:
    rate = rate_of(12, **scheduled(name))
    assert [rate.of_round(number) for number in range(1, 13)] == by_torch(name, 12)
    assert all(set(rate.rates(number, 4)) == {rate.of_round(number)} for number in range(1, 13))


@pytest.mark.parametrize("name", OPTIONS)
def test_over_steps_the_rates_are_torchs_in_every_round(name: ScheduleName) -> None:
    rate = rate_of(3, **scheduled(name, schedule_over="steps"))
    assert [list(rate.rates(number, 9)) for number in (1, 2, 3)] == [by_torch(name, 9)] * 3


@given(schedules, st.integers(2, 20), st.data())
def test_a_warm_up_goes_before_a_schedule_as_in_torch(name: ScheduleName, count: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(1, count - 1))
    over_rounds = rate_of(count, **scheduled(name, warmup_rounds=warmup))
    over_steps = rate_of(2, **scheduled(name, schedule_over="steps", warmup_steps=warmup))
    expected = pytest.approx(by_torch(name, count, warmup), rel=1e-9)
    assert [over_rounds.of_round(number) for number in range(1, count + 1)] == expected
    assert list(over_steps.rates(2, count)) == expected


@given(schedules, st.sampled_from(["rounds", "steps"]), st.integers(4, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_rates_are_positive_at_most_lr_and_the_same_whenever_they_are_asked_for(
    name: ScheduleName, over: str, rounds: int, steps: int, warmup_rounds: int, warmup_steps: int
) -> None:
    keys = scheduled(name, schedule_over=over, warmup_rounds=warmup_rounds, warmup_steps=warmup_steps)
    once = [list(rate_of(rounds, **keys).rates(number, steps)) for number in range(1, rounds + 1)]
    backwards = [list(rate_of(rounds, **keys).rates(number, steps)) for number in range(rounds, 0, -1)]
    assert once == backwards[::-1]
    assert all(len(rates) == steps for rates in once)
    assert all(0 < rate <= LR * (1 + 1e-12) for rates in once for rate in rates)


def test_warm_ups_of_rounds_and_of_steps_multiply() -> None:
    rate = rate_of(4, warmup_rounds=1, warmup_steps=2)
    assert list(rate.rates(1, 4)) == pytest.approx([LR / 6, LR / 3, LR / 2, LR / 2])
    assert list(rate.rates(2, 4)) == pytest.approx([LR / 3, 2 * LR / 3, LR, LR])


def test_a_run_may_be_shorter_than_its_warm_up() -> None:
    """As where somebody tries one round, or a site has few examples."""
    rate = rate_of(1, schedule="cosine", warmup_rounds=3, warmup_steps=4)
    rate.check(2)
    assert list(rate.rates(1, 2)) == pytest.approx([LR / 4 / 5, LR / 4 * 2 / 5])


def halves(number: int, rounds: int, step: int, steps: int, base: float = 0.5) -> float:
    return base ** (number - 1) * (1 - step / steps) * rounds


def test_a_function_of_the_users_own_sees_rounds_and_steps() -> None:
    rate = rate_of(4, schedule="test_learning_rate:halves", schedule_options={"base": 0.1}, warmup_steps=1)
    assert list(rate.rates(2, 3)) == pytest.approx([LR * 0.1 * 4 * share for share in (1 / 2, 2 / 3, 1 / 3)])


def fails(number: int, rounds: int, step: int, steps: int) -> float:
    return 1 / (3 - number)


def zero_at_last(number: int, rounds: int, step: int, steps: int) -> float:
    return steps - 1 - step


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"schedule": "step"}, r"^training\.schedule = 'step'.*missing 1 required .*'step_size'"),
        ({"schedule": "cosine", "schedule_options": {"gamma": 1}}, r"^training\.schedule = 'cosine' with .*unexpected keyword .*'gamma'"),
        ({"schedule": "cosine", "schedule_options": {"T_max": 0}}, r"^training\.schedule = 'cosine' with .*ZeroDivisionError"),
        ({"schedule": "step", "schedule_options": {"step_size": "3"}}, r"^training\.schedule = 'step' with .*TypeError"),
        ({"schedule_options": {"gamma": 1}}, r"^training\.schedule = 'constant' with .*takes none"),
        ({"schedule": "exponential", "schedule_options": {"gamma": -0.5}}, r"round 2, step 1 is -0\.15; it must be positive$"),
        ({"schedule": "exponential", "schedule_options": {"gamma": 1e-200}}, r"round 3, step 1 is 0; it must be positive$"),
        ({"schedule": "cosine", "schedule_over": "steps", "schedule_options": {"T_max": 2}}, r"round 1, step 3 is 0; it must be positive$"),
        ({"schedule": "test_learning_rate:fails"}, r"fails': round 3, step 1: ZeroDivisionError: division by zero$"),
        ({"schedule": "test_learning_rate:zero_at_last"}, r"zero_at_last': the learning rate of round 1, step 5 is 0; it must"),
        ({"schedule": "test_learning_rate:halves", "schedule_options": {"bass": 1}}, r"halves' with .*unexpected keyword argument 'bass'"),
        ({"schedule": "test_learning_rate:absent"}, r"^training\.schedule = 'test_learning_rate:absent': module .* has no 'absent'$"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_starts(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rate_of(**training).check(5)


@pytest.mark.parametrize("over", ["rounds", "steps"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_schedule_passes_the_check_at_the_start(name: ScheduleName, over: str) -> None:
    rate_of(**scheduled(name, schedule_over=over, warmup_rounds=2, warmup_steps=2)).check(6)


def test_the_check_takes_no_longer_for_more_rounds_and_steps() -> None:
    config = {"schedule": "cosine", "warmup_rounds": 3}
    rate_of(2**31 - 1, **config).check(2**31 - 1)


@given(schedules, st.sampled_from(["rounds", "steps"]), st.integers(1, 12), st.integers(1, 30), st.floats(0, 0.95), st.integers(0, 3))
def test_effective_steps_are_the_way_at_a_constant_gradient(
    name: ScheduleName, over: str, number: int, steps: int, momentum: float, warmup: int
) -> None:
    """In units of the round's rate: by brute force over the rates of the steps."""
    rate = rate_of(12, **scheduled(name, schedule_over=over, warmup_steps=warmup, warmup_rounds=warmup, momentum=momentum))
    velocity = way = 0.0
    for taken, each in enumerate(rate.rates(number, steps), start=1):
        velocity = momentum * velocity + 1
        way += each * velocity
        assert rate.effective_steps(number, steps, taken) * rate.of_round(number) == pytest.approx(way, rel=1e-9)


@given(schedules, st.integers(1, 60), st.floats(0, 0.95), st.integers(0, 3))
def test_fewer_steps_go_less_far_in_every_schedule(name: ScheduleName, most: int, momentum: float, warmup: int) -> None:
    """So what an honest client reports to FedNova's server is between one step and those of the largest client."""
    rate = rate_of(12, **scheduled(name, schedule_over="steps", warmup_steps=warmup, momentum=momentum))
    lengths = [rate.effective_steps(1, steps) for steps in range(1, most + 1)]
    first = rate.effective_steps(1, most, 1)
    assert all(first * (1 - 1e-9) <= length <= lengths[-1] * (1 + 1e-9) for length in lengths)


def test_without_a_schedule_effective_steps_have_the_bits_of_the_closed_form() -> None:
    rate = rate_of(momentum=0.9)
    assert [rate.effective_steps(3, steps) for steps in range(1, 50)] == [effective_steps(steps, 0.9) for steps in range(1, 50)]


def test_many_rounds_need_no_time() -> None:
    """A rate far out is found without computing what is not asked for."""
    rate = rate_of(2**31 - 1, schedule="cosine", schedule_over="steps")
    assert list(itertools.islice(rate.rates(2**31 - 1, 2**31 - 1), 2)) == pytest.approx([LR, LR])
    assert math.isfinite(rate.of_round(2**31 - 1))
