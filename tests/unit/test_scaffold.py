"""SCAFFOLD: the corrected local step, the control variates, and what becomes of them on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import (
    CLASSES,
    THREE,
    Data,
    Federation,
    Vector,
    assert_follows,
    data,
    gradient,
    length,
    length_at,
    mean,
    sgd,
    sgd_at,
    shares,
    vector,
)
from harness import RUN_ID
from torch import Tensor

from feddkd import algorithms
from feddkd.algorithms.learning_rate import LearningRate
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.scaffold import ControlVariates, SCAFFOLDConfig
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors

STEPS, LR = 3, 0.25


class ByHand:
    """The paper's algorithm 1 with option II, and K' for K where there is momentum."""

    def __init__(self, size: int, clients: list[Data], weights: Vector, server_lr: float, momentum: float, weight_decay: float) -> None:
        self.clients, self.weights, self.server_lr, self.momentum, self.weight_decay = clients, weights, server_lr, momentum, weight_decay
        self.c = np.zeros(size)
        self.own = [np.zeros(size) for _ in clients]

    def one_round(self, w: Vector, cohort: list[int]) -> Vector:
        p = self.weights[cohort] / self.weights[cohort].sum()
        updates, changes = [], []
        for k in cohort:
            local = sgd(
                w,
                lambda v, k=k: gradient(v, self.clients[k]) - self.own[k] + self.c,  # type: ignore[misc]
                STEPS,
                LR,
                self.momentum,
                self.weight_decay,
            )
            after = self.own[k] - self.c + (w - local) / (length(STEPS, self.momentum) * LR)
            updates.append(local - w)
            changes.append(after - self.own[k])
            self.own[k] = after
        self.c = self.c + self.weights[cohort].sum() * np.average(changes, axis=0, weights=p)
        return w + self.server_lr * np.average(updates, axis=0, weights=p)


CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "plain": (1.0, {}),
    "server_lr": (0.5, {}),
    "momentum": (1.0, {"training": {"momentum": 0.9}}),
    "weight_decay": (1.0, {"training": {"momentum": 0.5, "weight_decay": 0.05}}),
    "some_clients": (1.0, {"scheduler": {"cohort": 2}}),
    "uniform": (1.0, {"scheduler": {"cohort": 1, "weights": "uniform"}}),
}


@pytest.mark.parametrize(("server_lr", "tables"), CASES.values(), ids=CASES)
def test_rounds_are_those_of_the_paper(tmp_path: Path, server_lr: float, tables: dict[str, Any]) -> None:
    federation = Federation(tmp_path, {"name": "scaffold", "server_lr": server_lr}, rounds=5, **tables)
    training = federation.config.training
    weights = np.full(3, 1 / 3) if federation.config.scheduler.weights == "uniform" else shares(THREE)
    hand = ByHand(len(federation.initial), THREE, weights, server_lr, training.momentum, training.weight_decay)
    assert_follows(federation, hand.one_round)
    control = np.concatenate([tensor.numpy().ravel() for tensor in federation.algorithm.state_dict().values()])
    np.testing.assert_allclose(control, hand.c, rtol=1e-8, atol=1e-10)
    # With and without all of them taking part, the server's variate is the weighted mean of the clients'.
    np.testing.assert_allclose(hand.c, weights @ np.stack(hand.own), atol=1e-12)


def own(number: int, rounds: int, step: int, steps: int) -> float:
    """Differs with the round and with the step."""
    return 0.8**number / (step + 1)


SCHEDULES: dict[str, dict[str, Any]] = {
    "over_rounds": {"schedule": "cosine"},
    "over_steps": {"schedule": "exponential", "schedule_over": "steps", "schedule_options": {"gamma": 0.5}},
    "warm_ups": {"schedule": "linear", "warmup_rounds": 1, "warmup_steps": 2},
    "own": {"schedule": "test_scaffold:own"},
}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_with_a_schedule_the_variates_are_the_way_over_the_sum_of_the_rates(
    tmp_path: Path, schedule: dict[str, Any], momentum: float
) -> None:
    federation = Federation(tmp_path, {"name": "scaffold"}, rounds=4, training={"momentum": momentum, "lr": LR, **schedule})
    rate, number, p = LearningRate(federation.config), iter(range(1, 5)), shares(THREE)
    control, variates = np.zeros(len(federation.initial)), [np.zeros(len(federation.initial)) for _ in THREE]

    def one_round(w: Vector, _: list[int]) -> Vector:
        nonlocal control
        rates = list(rate.rates(next(number), STEPS))
        updates, before = [], control
        for k, own in enumerate(THREE):
            local = sgd_at(w, lambda v, k=k, own=own: gradient(v, own) - variates[k] + before, rates, momentum)  # type: ignore[misc]
            after = variates[k] - before + (w - local) / length_at(rates, momentum)
            control = control + p[k] * (after - variates[k])
            variates[k] = after
            updates.append(local - w)
        return w + np.average(updates, axis=0, weights=p)

    assert_follows(federation, one_round)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"optimizer": "adam"}, r"^training\.optimizer = 'adam': scaffold needs sgd, because its control variates are mean gradients"),
        (
            {"optimizer_options": {"dampening": 0.5}},
            r"^training\.optimizer_options\.dampening: scaffold needs sgd without options, because ",
        ),
        ({"clip_norm": 1.0}, r"^training\.clip_norm = 1: scaffold needs gradients that are not clipped, because "),
    ],
)
def test_steps_that_are_not_along_the_gradient_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithms.build(Config.parse({"algorithm": {"name": "scaffold"}, "training": training}))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clients_keep_their_variates(tmp_path: Path, momentum: float) -> None:
    federation = Federation(tmp_path, {"name": "scaffold"}, training={"momentum": momentum})
    hand = ByHand(len(federation.initial), THREE, shares(THREE), 1.0, momentum, 0.0)
    assert_follows(federation, hand.one_round)
    after = ExchangeId(RUN_ID, 4, 0, "local_train", 0)
    for worker, expected in zip(federation.workers.values(), hand.own, strict=True):
        kept = RoundMemory(worker.site.store, "scaffold-control").recall(after, worker.model_schema.trainable)
        assert kept is not None
        np.testing.assert_allclose(vector(kept), expected, rtol=1e-8, atol=1e-10)


class ConstantGradient(ControlVariates):
    """A linear loss: the gradient is the same wherever the weights are."""

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        parameters = dict(self.site.module.named_parameters())
        direction = torch.arange(1.0, 1 + CLASSES, dtype=torch.float64)
        return parameters["1.weight"].sum(1) @ direction - parameters["1.bias"].sum()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_at_a_constant_gradient_the_variate_is_the_gradient(tmp_path: Path, momentum: float) -> None:
    """So it does not grow 1 / (1 - momentum) times a round, as it would if K stood where K' stands."""
    site = (
        Federation(tmp_path, {"name": "scaffold"}, [data(20, 1)], training={"momentum": momentum, "batch_size": 7}).workers["client-0"].site
    )
    objective = ConstantGradient(site, SCAFFOLDConfig())
    schema = site.model_schema.trainable
    expected = Tensors(schema)
    expected["1.weight"].copy_(torch.arange(1.0, 1 + CLASSES).unsqueeze(1))
    expected["1.bias"].fill_(-1)
    control = Tensors(schema)
    for tensor in control.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    for number in (1, 2, 3):
        task = Task(ExchangeId(RUN_ID, number, 0, "local_train", 0), Tensors.of_module(site.module).beside(control=control))
        steps = train_locally(site, task, objective).steps
        assert steps == 9
        kept = RoundMemory(site.store, "scaffold-control").recall(ExchangeId(RUN_ID, number + 1, 0, "local_train", 0), schema)
        assert kept is not None
        np.testing.assert_allclose(vector(kept), vector(expected), rtol=1e-12)
        change = vector(expected) if number == 1 else np.zeros(len(vector(expected)))
        np.testing.assert_allclose(vector(objective.change), change, atol=1e-12)


def test_before_anybody_knows_anything_a_round_is_fedavg(tmp_path: Path) -> None:
    scaffold = Federation(tmp_path / "scaffold", {"name": "scaffold"}, rounds=1)
    assert_follows(scaffold, lambda w, _: mean([sgd(w, lambda v, own=own: gradient(v, own), STEPS, LR) for own in THREE], THREE))  # type: ignore[misc]
