"""MOON: features pulled towards the global model's and pushed away from the last local model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import NETWORK, THREE, Data, Federation, Vector, assert_follows, autograd, cross_entropy, forward, mean, sgd
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.algorithms.moon import contrast

MU, TEMPERATURE = 2.0, 0.5


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def written_out(features: Vector, towards: Vector, away: Vector, temperature: float) -> float:
    """-log( e^{sim/T} / (e^{sim/T} + e^{sim_previous/T}) ), example by example."""
    losses = []
    for z, z_global, z_previous in zip(features, towards, away, strict=True):
        positive, negative = np.exp(cosine(z, z_global) / temperature), np.exp(cosine(z, z_previous) / temperature)
        losses.append(-np.log(positive / (positive + negative)))
    return float(np.mean(losses))


@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_the_contrast_is_the_papers_formula(seed: int, temperature: float) -> None:
    features, towards, away = np.random.default_rng(seed).normal(size=(3, 6, 5))
    found = contrast(torch.from_numpy(features), torch.from_numpy(towards), torch.from_numpy(away), temperature)
    assert float(found) == pytest.approx(written_out(features, towards, away, temperature), rel=1e-9)


def test_known_values_of_the_contrast() -> None:
    up, right = torch.tensor([[0.0, 3.0]]), torch.tensor([[5.0, 0.0]])
    assert float(contrast(up, up, up, 0.5)) == pytest.approx(np.log(2))
    assert float(contrast(up, up, right, 0.5)) == pytest.approx(np.log(1 + np.exp(-2)))
    assert float(contrast(up, right, up, 0.5)) == pytest.approx(np.log(1 + np.exp(2)))


def loss_of(own: Data, w: Vector, previous: Vector | None, at: Tensor) -> Tensor:
    x, y = torch.from_numpy(own.x), torch.from_numpy(own.y)
    features, logits = forward(at, x)
    loss = cross_entropy(logits, y)
    if previous is None:
        return loss
    with torch.no_grad():
        towards, away = forward(torch.from_numpy(w), x)[0], forward(torch.from_numpy(previous), x)[0]

    def sim(other: Tensor) -> Tensor:
        products: Tensor = (features * other).sum(1)
        lengths: Tensor = (features.square().sum(1) * other.square().sum(1)).sqrt()
        cosines: Tensor = products / lengths
        return cosines / TEMPERATURE

    contrastive: Tensor = torch.logaddexp(sim(towards), sim(away)) - sim(towards)
    return loss + MU * contrastive.mean()


@pytest.mark.parametrize("cohort", ["all", 2, 1])
def test_rounds_are_those_of_the_paper(tmp_path: Path, cohort: str | int) -> None:
    settings = {"name": "moon", "mu": MU, "temperature": TEMPERATURE}
    federation = Federation(tmp_path, settings, model=NETWORK, rounds=5, scheduler={"cohort": cohort})
    previous: list[Vector | None] = [None] * 3

    def one_round(w: Vector, drawn: list[int]) -> Vector:
        for k in drawn:
            before = previous[k]
            previous[k] = sgd(w, lambda v: autograd(lambda at: loss_of(THREE[k], w, before, at), v), 3, 0.25)  # noqa: B023
        return mean([each for k in drawn if (each := previous[k]) is not None], [THREE[k] for k in drawn])

    assert_follows(federation, one_round)


def test_a_first_round_is_fedavgs_and_the_second_is_not(tmp_path: Path) -> None:
    moon = Federation(tmp_path / "moon", {"name": "moon"}, model=NETWORK, rounds=2)
    avg = Federation(tmp_path / "avg", {"name": "fedavg"}, model=NETWORK, rounds=2)
    moon.run(), avg.run()
    np.testing.assert_array_equal(moon.models[0], avg.models[0])
    assert not np.allclose(moon.models[1], avg.models[1])


def test_with_mu_zero_it_is_fedavg(tmp_path: Path) -> None:
    moon = Federation(tmp_path / "moon", {"name": "moon", "mu": 0}, model=NETWORK)
    avg = Federation(tmp_path / "avg", {"name": "fedavg"}, model=NETWORK)
    moon.run(), avg.run()
    np.testing.assert_allclose(moon.models, avg.models, rtol=1e-12)


def test_a_round_that_is_begun_again_is_not_contrasted_with_its_own_first_attempt(tmp_path: Path) -> None:
    first = Federation(tmp_path, {"name": "moon"}, model=NETWORK, rounds=1)
    first.run()
    again = Federation(tmp_path, {"name": "moon"}, model=NETWORK, rounds=1)
    again.run()  # the same run id, and its round 1 once more: there is no round before it
    np.testing.assert_array_equal(first.models, again.models)
