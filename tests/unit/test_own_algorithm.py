"""Algorithms and local objectives of one's own, by import path, with settings of their own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd
from pydantic import Field
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.algorithms.base import Cohort
from feddkd.algorithms.fedavg import FedAvg
from feddkd.algorithms.fedavgm import FedAvgM
from feddkd.algorithms.fedopt import FedYogi
from feddkd.algorithms.fedprox import FedProx, FedProxConfig, Proximal
from feddkd.algorithms.scaffold import SCAFFOLD
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import Config, CustomAlgorithmConfig, CustomObjectiveConfig
from feddkd.errors import ConfigError
from feddkd.tensors import Tensors


class Timid(FedAvg):
    """Follows the mean update part of the way."""

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        assert isinstance(self.config.algorithm, CustomAlgorithmConfig)
        return model + cohort.exchange("local_train", model).scaled(self.config.algorithm.settings["courage"])


class MySCAFFOLD(SCAFFOLD):
    """A built-in algorithm by another name, with the built-in's objective and settings."""


class MyFedProx(FedProx):
    pass


class ClippedConfig(FedProxConfig):
    max_norm: float = Field(1.0, gt=0)


class Clipped(Proximal):
    """FedProx with gradients of a limited length."""

    table = ClippedConfig

    def __init__(self, site: Site, settings: ClippedConfig) -> None:
        super().__init__(site, settings)
        self.max_norm = settings.max_norm

    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().add_to_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters.values(), self.max_norm)


class ClippedFedProx(FedProx):
    local_objective = Clipped


class MyFedAvgM(FedAvgM):
    pass


class MyFedYogi(FedYogi):
    pass


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


def table_of(subclass: str, settings: dict[str, float]) -> dict[str, Any]:
    return {"algorithm": {"name": f"test_own_algorithm:{subclass}", **settings}}


SUBCLASSES = [
    ("scaffold", "MySCAFFOLD", {"server_lr": 0.5}),
    ("fedprox", "MyFedProx", {"mu": 0.5}),
    ("fedavgm", "MyFedAvgM", {"server_momentum": 0.5}),
    ("fedyogi", "MyFedYogi", {"beta2": 0.5}),
]


@pytest.mark.parametrize(("name", "subclass", "settings"), SUBCLASSES)
def test_a_subclass_of_a_built_in_algorithm_trains_as_that_algorithm(
    tmp_path: Path, name: str, subclass: str, settings: dict[str, float]
) -> None:
    built_in = Federation(tmp_path / "built-in", {"name": name, **settings}).run()
    mine = Federation(tmp_path / "mine", {"name": f"test_own_algorithm:{subclass}", **settings}).run()
    # What a server tells its clients is the whole table, defaults included.
    algorithms.objective_factory(Config.parse(tomllib.loads(Config.parse(table_of(subclass, settings)).to_toml())))
    assert mine.model.sha256() == built_in.model.sha256()
    assert mine.model.sha256() != Federation(tmp_path / "plain", {"name": "fedavg"}).run().model.sha256()


@pytest.mark.parametrize(
    ("subclass", "settings", "message"),
    [
        (
            "MySCAFFOLD",
            {"server_rl": 0.5},
            "[algorithm] of test_own_algorithm:MySCAFFOLD: unknown key 'server_rl' (did you mean 'server_lr'?)",
        ),
        ("MyFedProx", {"mu": -1}, "[algorithm] of test_own_algorithm:MyFedProx: mu = -1: input should be greater than or equal to 0"),
        ("MyFedProx", {"local_objective": "fedntd"}, "algorithm.local_objective: test_own_algorithm:MyFedProx has an objective of its own"),
    ],
)
def test_settings_that_the_built_in_algorithm_does_not_have_are_refused(subclass: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        algorithms.build(Config.parse(table_of(subclass, settings)))
    assert message in str(refused.value)


def test_a_subclass_with_a_key_of_its_own(tmp_path: Path) -> None:
    shorter = Federation(tmp_path / "a", {"name": "test_own_algorithm:ClippedFedProx", "mu": 0.5, "max_norm": 1e-6}).run()
    prox = Federation(tmp_path / "b", {"name": "fedprox", "mu": 0.5}).run()
    longer = Federation(tmp_path / "c", {"name": "test_own_algorithm:ClippedFedProx", "mu": 0.5, "max_norm": 1e6}).run()
    assert longer.model.sha256() == prox.model.sha256()
    assert shorter.model.sha256() != prox.model.sha256()
    with pytest.raises(ConfigError, match="max_norm = 0: input should be greater than 0"):
        algorithms.build(Config.parse(table_of("ClippedFedProx", {"max_norm": 0})))


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
        ("test_own_algorithm:no_class", "not a subclass of feddkd.algorithms.site.LocalObjective"),
        ("test_own_algorithm:Timid", "not a subclass of feddkd.algorithms.site.LocalObjective"),
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
