"""FedAvg by hand; it is also what tells whether the hand follows the machine at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import THREE, Federation, Vector, assert_follows, copies, gradient, mean, sgd


@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.01)])
def test_the_model_is_the_weighted_mean_of_the_local_models(tmp_path: Path, momentum: float, weight_decay: float) -> None:
    federation = Federation(tmp_path, {"name": "fedavg"}, training={"momentum": momentum, "weight_decay": weight_decay})

    def one_round(w: Vector, _: list[int]) -> Vector:
        return mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25, momentum, weight_decay) for own in THREE], THREE)  # type: ignore[misc]

    assert_follows(federation, one_round)


def test_clients_that_take_more_steps_pull_harder(tmp_path: Path) -> None:
    one, three = copies(2, 1), copies(6, 2)
    federation = Federation(tmp_path, {"name": "fedavg"}, [one, three], training={"batch_size": 2, "epochs": 1})

    def one_round(w: Vector, _: list[int]) -> Vector:
        return 0.25 * sgd(w, lambda v: gradient(v, one), 1, 0.25) + 0.75 * sgd(w, lambda v: gradient(v, three), 3, 0.25)

    assert_follows(federation, one_round)


def test_only_those_who_are_drawn_count(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "fedavg"}, scheduler={"cohort": 2})
    assert {len(cohort) for cohort in federation.cohorts} == {2}

    def one_round(w: Vector, cohort: list[int]) -> Vector:
        drawn = [THREE[k] for k in cohort]
        return mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25) for own in drawn], drawn)  # type: ignore[misc]

    assert_follows(federation, one_round)


def test_gradient_evaluations_are_epochs_times_examples(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "fedavg"}, training={"epochs": 5, "batch_size": 3}, rounds=2)
    record = federation.run()
    assert [exchange.gradient_evaluations for exchange in federation.follower.exchanges] == [5 * 20, 5 * 20, 0]
    assert record.gradient_evaluations == 2 * 5 * 20
