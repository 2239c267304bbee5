"""FedDyn: the dynamic regularizer at the clients, and h on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, sgd, shares

CASES: dict[str, dict[str, Any]] = {
    "everybody": {},
    "momentum": {"training": {"momentum": 0.5, "weight_decay": 0.01}},
    "some_clients": {"scheduler": {"cohort": 2}},
    "uniform": {"scheduler": {"cohort": 1, "weights": "uniform"}},
}


@pytest.mark.parametrize("alpha", [0.1, 1.0])
@pytest.mark.parametrize("tables", CASES.values(), ids=CASES)
def test_rounds_are_those_of_the_paper(tmp_path: Path, tables: dict[str, Any], alpha: float) -> None:
    federation = Federation(tmp_path, {"name": "feddyn", "alpha": alpha}, rounds=5, **tables)
    training = federation.config.training
    weights = np.full(3, 1 / 3) if federation.config.scheduler.weights == "uniform" else shares(THREE)
    own = [np.zeros(len(federation.initial)) for _ in THREE]
    h = np.zeros(len(federation.initial))

    def one_round(w: Vector, cohort: list[int]) -> Vector:
        nonlocal h
        local = {}
        for k in cohort:
            local[k] = sgd(
                w,
                lambda v, k=k: gradient(v, THREE[k]) - own[k] + alpha * (v - w),  # type: ignore[misc]
                3,
                0.25,
                training.momentum,
                training.weight_decay,
            )
        for k in cohort:
            own[k] = own[k] - alpha * (local[k] - w)
        # Weights are shares of all clients, so this is the paper's alpha / N times the sum over the cohort.
        h = h - alpha * sum(weights[k] * (local[k] - w) for k in cohort)
        average = sum(weights[k] * local[k] for k in cohort) / sum(weights[k] for k in cohort)
        return np.asarray(average - h / alpha)

    assert_follows(federation, one_round)
    found = np.concatenate([tensor.numpy().ravel() for tensor in federation.algorithm.state_dict().values()])
    np.testing.assert_allclose(found, h, rtol=1e-8, atol=1e-10)
    # What the server holds is the mean of what the clients hold, whoever took part.
    np.testing.assert_allclose(h, weights @ np.stack(own), atol=1e-12)
