"""No forward pass takes more examples than one of training, unless the configuration says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feddkd.config import Config
from feddkd.engines.simulation import prepare, run_federation

LARGEST: dict[bool, int] = {}


class Counting(nn.Module):
    """A network that notes the largest batch in train mode and in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        LARGEST[self.training] = max(LARGEST.get(self.training, 0), len(inputs))
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


def net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Counting(classes)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    LARGEST.clear()
    yield
    LARGEST.clear()


TABLES: dict[str, dict[str, Any]] = {
    "feddkd": {"dkd": {"steps": 2, "batch_size": 7}},
    "feddkd on all examples": {"dkd": {"steps": 2, "batch_size": 0}},
    "previous": {"dkd": {"steps": 2, "start": "previous"}},
    "piggyback": {"algorithm": {"name": "fedavg"}, "dkd": {"piggyback": True}},
    "auto": {"dkd": {"steps": 3, "teacher": "auto"}},
    "fedavg_sgd": {"algorithm": {"name": "fedavg_sgd"}, "dkd": {"steps": 2}},
    "fedntd": {"algorithm": {"name": "fedntd"}},
    "moon": {"algorithm": {"name": "moon"}, "rounds": 2},
    "semifl": {"algorithm": {"name": "semifl"}, "data": {"subset": 120, "labelled_share": 0.5}},
    "self_training": {"algorithm": {"name": "self_training"}, "data": {"subset": 120, "labelled_share": 0.5}, "dkd": {"steps": 2}},
}


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(("key", "most"), [(None, 3), (5, 5)])
def test_batches_outside_of_training_are_no_larger_than_is_said(tmp_path: Any, tables: dict[str, Any], key: int | None, most: int) -> None:
    small = {
        "rounds": 1,
        "data": {"subset": 120},
        "model": {"name": f"{__name__}:net"},
        "training": {"epochs": 1, "batch_size": 3},
        "partition": {"name": "iid", "clients": 2},
        "runtime": {} if key is None else {"eval_batch_size": key},
    }
    federation = prepare(Config.parse(small | tables))
    LARGEST.clear()
    run_federation(federation, "in-process", tmp_path)
    assert LARGEST[False] == most
    assert LARGEST[True] == 3


def test_the_size_of_these_batches_changes_results_by_rounding_alone(tmp_path: Any) -> None:
    def final(key: int) -> Tensor:
        config = Config.parse({"rounds": 1, "data": {"subset": 200}, "dkd": {"steps": 3}, "runtime": {"eval_batch_size": key}})
        model = run_federation(config, "in-process", tmp_path / str(key)).model
        return torch.cat([tensor.flatten() for _, tensor in model.items()])

    torch.testing.assert_close(final(5), final(512), rtol=1e-3, atol=1e-4)
