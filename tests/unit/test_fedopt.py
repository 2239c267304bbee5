"""FedAdagrad, FedAdam and FedYogi: the paper's algorithm 2, element by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd
from uncoded import UncodedCohort

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from feddkd.config import Config
from feddkd.tensors import Schema, Tensors, TensorSpec

ONE = Schema([TensorSpec("value", torch.float64, ())])
LR, TAU, B1, B2 = 0.1, 0.01, 0.8, 0.95


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
@pytest.mark.parametrize("beta1", [0.0, B1])
def test_steps_are_those_of_the_paper_from_v0_equal_to_tau_squared(tmp_path: Path, name: str, beta1: float) -> None:
    settings = {"name": name, "server_lr": LR, "tau": TAU, "beta1": beta1} | ({} if name == "fedadagrad" else {"beta2": B2})
    federation = Federation(tmp_path, settings, rounds=3)
    m, v = np.zeros(len(federation.initial)), np.full(len(federation.initial), TAU**2)

    def one_round(w: Vector, _: list[int]) -> Vector:
        nonlocal m, v
        step = mean([sgd(w, lambda at, own=own: gradient(at, own), 3, 0.25) for own in THREE], THREE) - w  # type: ignore[misc]
        m = beta1 * m + (1 - beta1) * step
        if name == "fedadagrad":
            v = v + step**2
        elif name == "fedadam":
            v = B2 * v + (1 - B2) * step**2
        else:
            v = np.where(v > step**2, v - (1 - B2) * step**2, v + (1 - B2) * step**2)
        return w + LR * m / (np.sqrt(v) + TAU)

    assert_follows(federation, one_round)


class ThreeThenOne(UncodedCohort):
    """A cohort whose mean update of one weight is 3, and then 1."""

    weights, share, most_examples = (1.0,), 1.0, 1
    loss: float | None = 0.5

    def __init__(self) -> None:
        self.values = iter([3.0, 1.0])

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        self.sent = payload
        return Tensors.copy_of(ONE, {"value": torch.tensor(next(self.values), dtype=torch.float64)})


def test_two_steps_of_one_weight_with_pencil_and_paper(tmp_path: Path) -> None:
    """D = 3, then D = 1: with tau = 1 and b2 = 0.5 the numbers are short."""
    expected: dict[type[Algorithm], float] = {
        # v: 1 -> 10 -> 11;  m: 1.5 -> 1.25
        FedAdagrad: 1.5 / (10**0.5 + 1) + 1.25 / (11**0.5 + 1),
        # v: 1 -> 5 -> 3
        FedAdam: 1.5 / (5**0.5 + 1) + 1.25 / (3**0.5 + 1),
        # v: 1 -> 1 + 4.5 (9 is more than 1) -> 5.5 - 0.5 (1 is less than 5.5)
        FedYogi: 1.5 / (5.5**0.5 + 1) + 1.25 / (5**0.5 + 1),
    }
    for algorithm, position in expected.items():
        settings = {"name": algorithm.__name__.lower(), "server_lr": 1, "tau": 1, "beta1": 0.5}
        config = Config.parse({"algorithm": settings | ({} if algorithm is FedAdagrad else {"beta2": 0.5})})
        server, cohort, model = algorithm(config), ThreeThenOne(), Tensors(ONE)
        for _ in range(2):
            model = server.run_round(cohort, model)
        assert float(model["value"]) == pytest.approx(position, rel=1e-12)
