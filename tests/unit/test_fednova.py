"""FedNova: clients that take more steps do not pull harder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import Federation, Vector, assert_follows, copies, gradient, length, length_at, mean, sgd, sgd_at, shares
from hypothesis import given
from hypothesis import strategies as st

from feddkd import algorithms
from feddkd.algorithms.learning_rate import LearningRate, effective_steps
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.scheduler.cohort import DRIFT_DIVERSITY

UNEQUAL = [copies(2, 1), copies(6, 2), copies(10, 3)]


@given(st.integers(0, 500), st.floats(0, 0.99))
def test_effective_steps_are_the_way_at_a_constant_gradient(steps: int, momentum: float) -> None:
    assert effective_steps(steps, momentum) == pytest.approx(length(steps, momentum), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_without_momentum_effective_steps_are_the_steps(steps: int) -> None:
    assert effective_steps(steps, 0.0) == steps


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_updates_are_averaged_per_step(tmp_path: Path, momentum: float) -> None:
    training = {"batch_size": 2, "epochs": 2, "momentum": momentum}
    federation = Federation(tmp_path, {"name": "fednova"}, UNEQUAL, training=training)

    def one_round(w: Vector, _: list[int]) -> Vector:
        p, steps = shares(UNEQUAL), [2 * 1, 2 * 3, 2 * 5]
        local = [sgd(w, lambda v, own=own: gradient(v, own), k, 0.25, momentum) for own, k in zip(UNEQUAL, steps, strict=True)]  # type: ignore[misc]
        a = np.array([length(k, momentum) for k in steps])
        per_step = mean([(each - w) / way for each, way in zip(local, a, strict=True)], UNEQUAL)
        return w + float(p @ a) * per_step

    assert_follows(federation, one_round)


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_over_rounds": {"schedule": "cosine"},
    "cosine_over_steps": {"schedule": "cosine", "schedule_over": "steps"},
    "exponential_over_steps": {"schedule": "exponential", "schedule_over": "steps", "schedule_options": {"gamma": 0.8}},
    "both_warm_ups": {"warmup_rounds": 2, "warmup_steps": 3},
    "warm_up_and_steps": {"schedule": "linear", "schedule_over": "steps", "warmup_rounds": 1, "warmup_steps": 1},
}


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_with_a_schedule_updates_are_averaged_per_length_of_the_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, schedule: dict[str, Any], momentum: float, weights: str
) -> None:
    """The paper's a_k where steps differ: sum_s lr_s times what momentum makes of it; nothing honest is bounded."""
    training = {"batch_size": 2, "epochs": 2, "momentum": momentum, "lr": 0.1, **schedule}
    federation = Federation(tmp_path, {"name": "fednova"}, UNEQUAL, training=training, scheduler={"weights": weights})
    rate, number = LearningRate(federation.config), iter(range(1, 4))
    p = shares(UNEQUAL) if weights == "examples" else np.full(3, 1 / 3)

    def one_round(w: Vector, _: list[int]) -> Vector:
        at = next(number)
        rates = [list(rate.rates(at, steps)) for steps in (2 * 1, 2 * 3, 2 * 5)]
        local = [sgd_at(w, lambda v, own=own: gradient(v, own), each, momentum) for own, each in zip(UNEQUAL, rates, strict=True)]  # type: ignore[misc]
        a = np.array([length_at(each, momentum) for each in rates])
        return w + float(p @ a) * np.average([(each - w) / way for each, way in zip(local, a, strict=True)], axis=0, weights=p)

    assert_follows(federation, one_round)
    assert "effective_steps" not in caplog.text


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": "adamw"}, r"^training\.optimizer = 'adamw': fednova needs sgd, because "),
        ({"optimizer": "torch.optim:SGD"}, r"^training\.optimizer = 'torch\.optim:SGD': fednova needs sgd, because "),
        ({"optimizer_options": {"nesterov": True}}, r"^training\.optimizer_options\.nesterov: fednova needs sgd without options, because "),
        ({"schedule": "test_fednova:own"}, r"^training\.schedule = 'test_fednova:own': fednova needs a built-in schedule"),
    ],
)
def test_local_training_that_has_no_effective_steps_is_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithms.build(Config.parse({"algorithm": {"name": "fednova"}, "training": training}))


def own(number: int, rounds: int, step: int, steps: int) -> float:
    return 1.0


def test_clipped_gradients_are_averaged_per_step_as_others_are(tmp_path: Path) -> None:
    algorithms.build(Config.parse({"algorithm": {"name": "fednova"}, "training": {"clip_norm": 1.0}}))
    equal = [Federation(tmp_path / name, {"name": name}, training={"clip_norm": 0.1}) for name in ("fednova", "fedavg")]
    equal[0].run(), equal[1].run()
    np.testing.assert_allclose(equal[0].models, equal[1].models, rtol=1e-12)


def test_with_equal_steps_it_is_fedavg(tmp_path: Path) -> None:
    nova, avg = Federation(tmp_path / "nova", {"name": "fednova"}), Federation(tmp_path / "avg", {"name": "fedavg"})
    nova.run(), avg.run()
    np.testing.assert_allclose(nova.models, avg.models, rtol=1e-12)


def test_drift_diversity_is_that_of_the_updates_it_averages(tmp_path: Path) -> None:
    """Clients with the same example agree, although one goes further than the other."""
    same = [copies(2, 1), copies(20, 1)]
    for name, diversity in (("fednova", 1), ("fedavg", (2 * 1 + 20 * 10**2) / 22 / ((2 * 1 + 20 * 10) / 22) ** 2)):
        federation = Federation(tmp_path / name, {"name": name}, same, training={"batch_size": 2, "epochs": 1, "lr": 1e-6})
        federation.run()
        assert federation.follower.exchanges[0].metrics[DRIFT_DIVERSITY] == pytest.approx(diversity, rel=1e-4)
