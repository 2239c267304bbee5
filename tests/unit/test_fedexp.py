"""FedExP: the length of the server's step, and the mean of the last two iterates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_hand import THREE, Data, Federation, Vector, assert_follows, data, gradient, mean, sgd, shares
from harness import RUN_ID

from feddkd.exchange import UPDATE_NORM_SQUARED, ExchangeId, Task
from feddkd.scheduler.cohort import DRIFT_DIVERSITY
from feddkd.tensors import Tensors

LR = 0.25


def opposed() -> list[Data]:
    """Clients with the same inputs and all the same label each: their updates nearly cancel out."""
    x = data(6, 1).x
    return [Data(x, np.full(6, label)) for label in range(4)]


@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
@pytest.mark.parametrize("clients", [THREE, opposed()], ids=["ordinary", "opposed"])
def test_rounds_are_those_of_the_paper(tmp_path: Path, clients: list[Data], epsilon: float) -> None:
    federation = Federation(tmp_path, {"name": "fedexp", "epsilon": epsilon}, clients, rounds=4)
    iterate, rates = federation.initial, list[float]()

    def one_round(_: Vector, __: list[int]) -> Vector:
        nonlocal iterate
        before = iterate
        updates = [sgd(before, lambda v, own=own: gradient(v, own), 3, LR) - before for own in clients]  # type: ignore[misc]
        step = mean(updates, clients)
        norms_squared = np.array([each @ each for each in updates])
        rates.append(max(1.0, float(shares(clients) @ norms_squared / (2 * (step @ step + epsilon)))))
        iterate = before + rates[-1] * step
        return np.asarray((before + iterate) / 2)

    assert_follows(federation, one_round)
    assert (max(rates) > 1) == (epsilon < 1)


def test_the_norm_travels_once_and_is_on_record(tmp_path: Path) -> None:
    exp, avg = Federation(tmp_path / "exp", {"name": "fedexp"}, rounds=1), Federation(tmp_path / "avg", {"name": "fedavg"}, rounds=1)
    exp.run(), avg.run()
    found, expected = exp.follower.exchanges[0].metrics, avg.follower.exchanges[0].metrics
    assert found == pytest.approx(expected, rel=1e-12)
    assert set(found) == {UPDATE_NORM_SQUARED, DRIFT_DIVERSITY}
    worker = exp.workers["client-0"]
    reply = worker.carry_out(Task(ExchangeId(RUN_ID, 2, 0, "local_train", 0), Tensors.of_module(worker.site.module)))
    assert reply.metrics == {}


def test_where_clients_agree_the_rate_is_one_and_the_model_halfway_to_fedavgs(tmp_path: Path) -> None:
    one = THREE[2:]
    exp, avg = Federation(tmp_path / "exp", {"name": "fedexp"}, one), Federation(tmp_path / "avg", {"name": "fedavg"}, one)
    exp.run(), avg.run()
    iterates = [avg.initial, *avg.models]
    for found, before, after in zip(exp.models, iterates[:-1], iterates[1:], strict=True):
        np.testing.assert_allclose(found, (before + after) / 2, rtol=1e-10)
