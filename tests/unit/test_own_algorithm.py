"""Algorithms and local objectives of one's own, by import path, with settings of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd
from torch import Tensor

from feddkd import algorithms
from feddkd.algorithms.base import Cohort
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.local_training import LocalObjective
from feddkd.algorithms.site import Site
from feddkd.config import Config, CustomAlgorithmConfig, CustomObjectiveConfig
from feddkd.errors import ConfigError
from feddkd.tensors import Tensors


class Timid(FedAvg):
    """Follows the mean update part of the way."""

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        assert isinstance(self.config.algorithm, CustomAlgorithmConfig)
        return model + cohort.exchange("local_train", model).scaled(self.config.algorithm.settings["courage"])


class Louder(LocalObjective):
    """The cross-entropy times a factor."""

    def __init__(self, site: Site, settings: CustomObjectiveConfig) -> None:
        super().__init__(site, settings)
        self.factor = float(settings.settings["factor"])

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.factor * super().loss(index, inputs, labels)


def no_class() -> None:
    """Neither an algorithm nor an objective."""


LOUDER = {"name": "test_own_algorithm:Louder", "factor": 3}


def test_an_algorithm_with_settings_of_its_own(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "test_own_algorithm:Timid", "courage": 0.5})

    def one_round(w: Vector, _: list[int]) -> Vector:
        average = mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]
        return 0.5 * w + 0.5 * average

    assert_follows(federation, one_round)


@pytest.mark.parametrize("name", ["fedavg", "test_own_algorithm:Timid"])
def test_an_objective_of_ones_own_serves_any_algorithm_that_leaves_the_loss_alone(tmp_path: Path, name: str) -> None:
    own = {} if name == "fedavg" else {"courage": 1}
    federation = Federation(tmp_path, {"name": name, "local_objective": LOUDER, **own})

    def one_round(w: Vector, _: list[int]) -> Vector:
        return mean([sgd(w, lambda v, own=own: 3 * gradient(v, own), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]

    assert_follows(federation, one_round)


@pytest.mark.parametrize("name", ["feddkd", "fedavg_sgd", "fednova", "fedavgm", "fedexp", "fedyogi"])
def test_a_built_in_objective_changes_what_an_algorithm_trains(tmp_path: Path, name: str) -> None:
    plain = Federation(tmp_path / "plain", {"name": name}, dkd={"steps": 1})
    held = Federation(tmp_path / "held", {"name": name, "local_objective": {"name": "fedprox", "mu": 0.5}}, dkd={"steps": 1})
    none = Federation(tmp_path / "none", {"name": name, "local_objective": {"name": "fedprox", "mu": 0}}, dkd={"steps": 1})
    for federation in (plain, held, none):
        federation.run()
    np.testing.assert_array_equal(plain.models, none.models)
    assert not np.allclose(plain.models[-1], held.models[-1])


@pytest.mark.parametrize("name", ["fedprox", "fedntd", "fedmax", "moon"])
def test_fedavg_with_the_objective_of_an_algorithm_is_that_algorithm(tmp_path: Path, name: str) -> None:
    objective = Federation(tmp_path / "objective", {"name": "fedavg", "local_objective": name}, model="by_hand:network").run()
    assert objective.model.sha256() == Federation(tmp_path / "own", {"name": name}, model="by_hand:network").run().model.sha256()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_own_algorithm:no_class", "not a subclass of feddkd.algorithms.base.Algorithm"),
        ("test_own_algorithm:Louder", "not a subclass of feddkd.algorithms.base.Algorithm"),
        ("test_own_algorithm:Nobody", "Nobody"),
        ("no_such_module:Nobody", "there is no module 'no_such_module'"),
    ],
)
def test_what_is_no_algorithm_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        algorithms.find(name)
    assert f"algorithm.name = {name!r}" in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_own_algorithm:no_class", "not a subclass of feddkd.algorithms.local_training.LocalObjective"),
        ("test_own_algorithm:Timid", "not a subclass of feddkd.algorithms.local_training.LocalObjective"),
        ("test_own_algorithm:Nobody", "Nobody"),
        ("no_such_module:Nobody", "there is no module 'no_such_module'"),
    ],
)
def test_what_is_no_objective_is_refused(name: str, message: str) -> None:
    config = Config.parse({"algorithm": {"name": "fedavg", "local_objective": name}})
    with pytest.raises(ConfigError) as refused:
        algorithms.objective_factory(config)
    assert f"algorithm.local_objective.name = {name!r}" in str(refused.value)
    assert message in str(refused.value)
