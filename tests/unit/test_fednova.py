"""FedNova: clients that take more steps do not pull harder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import Federation, Vector, assert_follows, copies, gradient, length, mean, sgd, shares
from hypothesis import given
from hypothesis import strategies as st

from feddkd.algorithms.learning_rate import effective_steps
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
