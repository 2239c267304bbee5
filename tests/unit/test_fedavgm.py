"""FedAvgM: momentum on the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("server_lr", "beta"), [(1.0, 0.9), (0.3, 0.5)])
def test_the_server_steps_with_momentum(tmp_path: Path, server_lr: float, beta: float, nesterov: bool) -> None:
    settings = {"name": "fedavgm", "server_lr": server_lr, "server_momentum": beta, "nesterov": nesterov}
    federation = Federation(tmp_path, settings, rounds=4)
    velocity = np.zeros(len(federation.initial))

    def one_round(w: Vector, _: list[int]) -> Vector:
        nonlocal velocity
        step = mean([sgd(w, lambda v, own=own: gradient(v, own), 3, 0.25) for own in THREE], THREE) - w  # type: ignore[misc]
        velocity = beta * velocity + step
        return w + server_lr * (step + beta * velocity if nesterov else velocity)

    assert_follows(federation, one_round)


def test_without_momentum_and_at_rate_one_it_is_fedavg(tmp_path: Path) -> None:
    plain = Federation(tmp_path / "m", {"name": "fedavgm", "server_momentum": 0, "server_lr": 1}).run()
    assert plain.model.sha256() == Federation(tmp_path / "avg", {"name": "fedavg"}).run().model.sha256()
