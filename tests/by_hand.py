"""Federations that can be followed by hand: small networks in float64, and their losses and gradients without autograd or engine.

What a test expects is computed here and in the test in numpy (or in torch, where a gradient is needed), from the formulas
of the papers; what it finds comes out of the real scheduler, engine, algorithm and local training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from harness import RUN_ID
from numpy.typing import NDArray
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.algorithms.base import Algorithm
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import DataInfo
from feddkd.data.examples import MemoryExamples
from feddkd.engines.in_process import InProcessEngine
from feddkd.models.registry import build_model
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.scheduler.selection import select_cohort
from feddkd.tensors import Tensors

Vector = NDArray[np.float64]
Gradient = Callable[[Vector], Vector]

FEATURES, CLASSES, HIDDEN = 3, 4, 5
INFO = DataInfo((FEATURES,), CLASSES)
REGRESSION, NETWORK = "by_hand:regression", "by_hand:network"


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def regression(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Softmax regression."""
    return nn.Sequential(ToDouble(), nn.Linear(FEATURES, num_classes).double())


def network(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """With one hidden layer, which is what comes before the classifier."""
    return nn.Sequential(ToDouble(), nn.Linear(FEATURES, HIDDEN).double(), nn.Tanh(), nn.Linear(HIDDEN, num_classes).double())


@dataclass(frozen=True)
class Data:
    """One client's examples: x float64 [n, FEATURES], exact in float32 as well, and y int64 [n]."""

    x: Vector
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


def data(n: int, seed: int) -> Data:
    rng = np.random.default_rng(seed)
    return Data(rng.integers(-8, 9, (n, FEATURES)) / 4, rng.integers(CLASSES, size=n))


def copies(n: int, seed: int) -> Data:
    """The same example n times: every mini-batch has the same gradient, however the examples are shuffled."""
    one = data(1, seed)
    return Data(one.x.repeat(n, axis=0), one.y.repeat(n))


THREE = [data(4, 1), data(7, 2), data(9, 3)]


def gradient(w: Vector, of: Data) -> Vector:
    """Of the mean cross-entropy of `regression`: (softmax(z) - onehot(y)) x^T."""
    weight, bias = w[: CLASSES * FEATURES].reshape(CLASSES, FEATURES), w[CLASSES * FEATURES :]
    z = of.x @ weight.T + bias
    error = np.exp(z - z.max(1, keepdims=True))
    error /= error.sum(1, keepdims=True)
    error[np.arange(len(of)), of.y] -= 1
    error /= len(of)
    return np.concatenate([(error.T @ of.x).ravel(), error.sum(0)])


def probabilities(w: Vector, x: Vector) -> Vector:
    z = x @ w[: CLASSES * FEATURES].reshape(CLASSES, FEATURES).T + w[CLASSES * FEATURES :]
    p = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def distance(v: Vector, teacher: Vector, of: Data) -> float:
    """Mean KL(teacher || v)."""
    p, q = probabilities(teacher, of.x), probabilities(v, of.x)
    return float((p * np.log(p / q)).sum(1).mean())


def distilled(v: Vector, teacher: Vector, of: Data) -> Vector:
    """The gradient of `distance` with respect to v: (q - p) x^T."""
    error = (probabilities(v, of.x) - probabilities(teacher, of.x)) / len(of)
    return np.concatenate([(error.T @ of.x).ravel(), error.sum(0)])


def forward(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features [n, HIDDEN] and logits [n, CLASSES] of `network` at the weights `w`."""
    first, bias, second, last = torch.split_with_sizes(w, [HIDDEN * FEATURES, HIDDEN, CLASSES * HIDDEN, CLASSES])
    features = torch.tanh(x @ first.view(HIDDEN, FEATURES).T + bias)
    return features, features @ second.view(CLASSES, HIDDEN).T + last


def autograd(loss: Callable[[Tensor], Tensor], w: Vector) -> Vector:
    """The gradient of a scalar function of the weights."""
    at = torch.from_numpy(w).clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(at), at)
    return found.numpy()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return (torch.logsumexp(logits, 1) - logits[torch.arange(len(y)), y]).mean()


def sgd(w: Vector, of: Gradient, steps: int, lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Vector:
    velocity = np.zeros_like(w)
    for _ in range(steps):
        velocity = momentum * velocity + of(w) + weight_decay * w
        w = w - lr * velocity
    return w


def sgd_at(w: Vector, of: Gradient, rates: Sequence[float], momentum: float = 0.0) -> Vector:
    """Steps of SGD, each at a learning rate of its own."""
    velocity = np.zeros_like(w)
    for rate in rates:
        velocity = momentum * velocity + of(w)
        w = w - rate * velocity
    return w


def length_at(rates: Sequence[float], momentum: float) -> float:
    """How far steps at these rates go at a constant gradient of 1, by brute force."""
    velocity, way = 0.0, 0.0
    for rate in rates:
        velocity = momentum * velocity + 1
        way += rate * velocity
    return way


def length(steps: int, momentum: float) -> float:
    """How far so many steps go at a constant gradient of 1, by brute force."""
    velocity, way = 0.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1
        way += velocity
    return way


def vector(model: Tensors) -> Vector:
    """The floating-point tensors of a model in the order of its parameters."""
    return np.concatenate([tensor.double().numpy().ravel() for tensor in model.values() if tensor.dtype.is_floating_point])


def shares(clients: Sequence[Data]) -> Vector:
    sizes = np.array([len(each) for each in clients], dtype=float)
    return np.asarray(sizes / sizes.sum())


def mean(of: Sequence[Vector], clients: Sequence[Data]) -> Vector:
    """Weighted by the clients' examples."""
    return np.average(np.stack(of), axis=0, weights=shares(clients))


@dataclass
class Follower(Observer):
    """Writes down what a run does.

    Attributes:
        models: the global model after each round.
    """

    essential: ClassVar[bool] = True
    models: list[Vector] = field(default_factory=list)
    exchanges: list[ExchangeRecord] = field(default_factory=list)
    rounds: list[RoundRecord] = field(default_factory=list)

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self.models.append(vector(model))

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.exchanges.append(record)

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record)


class Federation:
    """Three clients (or as many as there are `clients`) on the reference engine.

    Attributes:
        initial: the model before round 1.
        models: the global model after each round, once it has run.
        cohorts: positions of the clients that are drawn in each round.
    """

    def __init__(
        self, folder: Path, algorithm: dict[str, Any], clients: Sequence[Data] = THREE, model: str = REGRESSION, **tables: Any
    ) -> None:
        defaults = {"epochs": 3, "batch_size": 100, "lr": 0.25, "momentum": 0.0, "weight_decay": 0.0}
        self.config = Config.parse(
            {
                "rounds": 3,
                "data": {"holdout": 0, "test_set": False},
                "model": {"name": model},
                "algorithm": algorithm,
                **tables,
                "training": {**defaults, **tables.get("training", {})},
            }
        )
        self.algorithm: Algorithm = algorithms.build(self.config)
        names = [f"client-{index}" for index in range(len(clients))]
        self.workers = {
            name: Worker(
                self.config, name, MemoryExamples(torch.from_numpy(each.x), torch.from_numpy(each.y)), StateDir(folder / name, name), INFO
            )
            for name, each in zip(names, clients, strict=True)
        }
        self._model = Tensors.of_module(build_model(self.config.model, INFO, self.config.seed))
        self.initial = vector(self._model)
        self.follower = Follower()
        drawn = [select_cohort(self.config.scheduler, names, self.config.seed, number, 0) for number in range(1, self.config.rounds + 1)]
        self.cohorts = [[names.index(name) for name in cohort] for cohort in drawn]

    def run(self) -> RunRecord:
        engine = InProcessEngine(self.workers, self.config.transport.chunk_bytes)
        record = Scheduler(self.config, self.algorithm, engine, run_id=RUN_ID, observers=[self.follower]).run(self._model)
        assert all(exchange.clients_missing == {} for exchange in self.follower.exchanges)
        return record

    @property
    def models(self) -> list[Vector]:
        return self.follower.models


def assert_follows(federation: Federation, one_round: Callable[[Vector, list[int]], Vector], rtol: float = 1e-8) -> None:
    """Run it, and compare each round's model with what `one_round(model, cohort)` makes of the one before."""
    federation.run()
    assert len(federation.models) == federation.config.rounds
    expected = federation.initial
    for found, cohort in zip(federation.models, federation.cohorts, strict=True):
        expected = one_round(expected, cohort)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 100)
    assert not np.allclose(expected, federation.initial, atol=1e-3)
