"""How many models a server holds while it takes the steps of a round, counted from torch's own allocations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from uncoded import UncodedCohort

from feddkd.algorithms.feddkd import FedDKD
from feddkd.algorithms.snapshot import Snapshot
from feddkd.config import Config
from feddkd.exchange import ExchangeKind
from feddkd.tensors import Schema, Tensors, TensorSpec

PLAIN = Schema(TensorSpec(f"{layer}.weight", torch.float32, (1 << 18,)) for layer in range(4))
WITH_BUFFERS = Schema(
    spec
    for layer in range(4)
    for spec in (
        TensorSpec(f"{layer}.weight", torch.float32, (1 << 18,)),
        TensorSpec(f"{layer}.mean", torch.float32, (16,), trainable=False),
    )
)


class ConstantCohort(UncodedCohort):
    """Answers with constants, of which `previous_loss` is the lowest: steps that may start over do."""

    weights, share, most_examples = (1.0, 1.0), 1.0, 1
    loss: float | None = 0.02  # above the previous model's: the steps start over from that

    def __init__(self, model: Schema, kinds: Mapping[str, ExchangeKind]) -> None:
        self._model, self._kinds = model, kinds

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        self.sent = payload
        schema = self._kinds[name].reply
        assert schema is not None
        answer = Tensors(schema(self._model))
        for name, tensor in answer.items():
            tensor.fill_(0.005 if name.startswith("previous_loss") else 0.01)
        return answer


def test_the_peak_counts_what_lives_at_a_time() -> None:
    def compute(given: list[torch.Tensor]) -> torch.Tensor:
        first = torch.zeros(1000, dtype=torch.uint8)
        second = first.clone()
        del second
        given.clear()
        return torch.cat([first, first, first])

    def prepare() -> list[torch.Tensor]:
        return [torch.zeros(1500, dtype=torch.uint8)]

    assert 2500 <= peak_bytes(prepare, compute) < 2700  # 1000 + 3000 - 1500, and what the library adds to align


@pytest.mark.parametrize("schema", [PLAIN, WITH_BUFFERS], ids=["plain", "buffers"])
@pytest.mark.parametrize(
    "settings",
    [
        *({"optimizer": name} for name in ("adam", "sgd", "momentum", "nesterov", "yogi", "adagrad")),
        {"optimizer_state": "reset"},
        {"clip_norm": 0.1},
        {"start": "average", "tail": 1.0},
        {"start": "previous", "tail": 0.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_round_holds_at_most_five_models_above_those_that_outlive_it(schema: Schema, settings: dict[str, Any]) -> None:
    server = FedDKD(Config.parse({"dkd": {"steps": 5, **settings}}))
    kinds = server.exchanges(server.config)

    def next_round(model: Tensors) -> Tensors:
        with Snapshot(server.state_dict()):
            return server.run_round(ConstantCohort(schema, kinds), model)

    models = peak_bytes(lambda: next_round(Tensors(schema)), next_round) / schema.size_bytes
    assert 3 < models < 5.1
