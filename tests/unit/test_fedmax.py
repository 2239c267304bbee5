"""FedMAX: activations that are spread out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import HIDDEN, NETWORK, THREE, Data, Federation, Vector, assert_follows, autograd, cross_entropy, forward, mean, sgd
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.algorithms.fedmax import kl_from_uniform


def divergence(activations: Vector) -> float:
    """KL(uniform || softmax(a)), a mean over the rows, from the definition."""
    p = np.exp(activations)
    p /= p.sum(1, keepdims=True)
    u = 1 / activations.shape[1]
    return float((u * np.log(u / p)).sum(1).mean())


@given(st.integers(0, 10**6), st.integers(1, 20), st.floats(0, 5))
def test_the_divergence_is_the_papers(seed: int, width: int, scale: float) -> None:
    activations = scale * np.random.default_rng(seed).normal(size=(7, width))
    assert float(kl_from_uniform(torch.from_numpy(activations))) == pytest.approx(divergence(activations), abs=1e-12)


@pytest.mark.parametrize("level", [-3.0, 0.0, 40.0])
def test_uniform_activations_cost_nothing(level: float) -> None:
    assert float(kl_from_uniform(torch.full((4, 9), level, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)


def loss_of(own: Data, beta: float, at: Tensor) -> Tensor:
    features, logits = forward(at, torch.from_numpy(own.x))
    log_p = features - torch.logsumexp(features, 1, keepdim=True)
    divergence: Tensor = -math.log(HIDDEN) - log_p.sum(1) / HIDDEN
    return cross_entropy(logits, torch.from_numpy(own.y)) + beta * divergence.mean()


@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_rounds_are_those_of_the_paper(tmp_path: Path, beta: float) -> None:
    federation = Federation(tmp_path, {"name": "fedmax", "beta": beta}, model=NETWORK)

    def one_round(w: Vector, _: list[int]) -> Vector:
        return mean([sgd(w, lambda v, own=own: autograd(lambda at: loss_of(own, beta, at), v), 3, 0.25) for own in THREE], THREE)  # type: ignore[misc]

    assert_follows(federation, one_round)


def test_with_beta_zero_it_is_fedavg(tmp_path: Path) -> None:
    fedmax = Federation(tmp_path / "max", {"name": "fedmax", "beta": 0}, model=NETWORK)
    avg = Federation(tmp_path / "avg", {"name": "fedavg"}, model=NETWORK)
    fedmax.run(), avg.run()
    np.testing.assert_allclose(fedmax.models, avg.models, rtol=1e-12)
