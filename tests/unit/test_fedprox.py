"""FedProx: every local step is pulled back to the global model."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import THREE, Federation, Vector, assert_follows, gradient, mean, sgd
from torch import Tensor, nn


@pytest.mark.parametrize(("mu", "momentum", "weight_decay"), [(0.3, 0.0, 0.0), (1.5, 0.9, 0.0), (0.3, 0.5, 0.01)])
def test_local_steps_descend_the_proximal_loss(tmp_path: Path, mu: float, momentum: float, weight_decay: float) -> None:
    training = {"momentum": momentum, "weight_decay": weight_decay}
    federation = Federation(tmp_path, {"name": "fedprox", "mu": mu}, training=training)

    def one_round(w: Vector, _: list[int]) -> Vector:
        return mean(
            [sgd(w, lambda v, own=own: gradient(v, own) + mu * (v - w), 3, 0.25, momentum, weight_decay) for own in THREE],  # type: ignore[misc]
            THREE,
        )

    assert_follows(federation, one_round)


def test_with_mu_zero_it_is_fedavg(tmp_path: Path) -> None:
    training = {"momentum": 0.9, "weight_decay": 0.01}
    prox = Federation(tmp_path / "prox", {"name": "fedprox", "mu": 0}, training=training).run()
    assert prox.model.sha256() == Federation(tmp_path / "avg", {"name": "fedavg"}, training=training).run().model.sha256()


class HalfUsed(nn.Module):
    """A network with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.used(x)
        return logits


def half_used(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return HalfUsed()


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "feddyn"])
def test_a_parameter_that_takes_no_part_stays_as_it_is(tmp_path: Path, name: str) -> None:
    federation = Federation(tmp_path, {"name": name}, model="test_fedprox:half_used", training={"weight_decay": 0.1})
    before = {key: tensor.clone() for key, tensor in federation.workers["client-0"].site.module.state_dict().items()}
    model = federation.run().model
    assert model["unused.weight"].equal(before["unused.weight"])
    assert not model["used.weight"].equal(before["used.weight"])
