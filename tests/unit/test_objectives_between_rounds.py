"""An objective keeps nothing of a round on the device until the next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import run_in_process, small_config
from torch import Tensor, nn

from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.site import LocalObjective
from feddkd.client.simulated import simulated_workers

LASTING = ("site", "_memory", "_features", "change")
"""What an objective works with; the change of a control variate is part of the reply."""


def tensors_in(found: Any) -> int:
    """Count the elements of all tensors that an object holds."""
    if isinstance(found, Tensor):
        return found.numel()
    if isinstance(found, nn.Module):
        return tensors_in(list(found.parameters()))
    if isinstance(found, Mapping):
        return tensors_in(found.values())
    if isinstance(found, Iterable) and not isinstance(found, str):
        return sum(map(tensors_in, found))
    return 0


def kept_by(objective: LocalObjective) -> dict[str, int]:
    counts = {name: tensors_in(value) for name, value in vars(objective).items() if name not in LASTING}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("name", ["fedavg", "feddyn", "fedmax", "fedntd", "fedprox", "moon", "scaffold"])
def test_what_a_round_needs_goes_with_it(name: str, tmp_path: Path) -> None:
    config = small_config(f"algorithm.name={name}", "training.steps=1", "partition.clients=2", "partition.name=iid")
    workers = simulated_workers(config, tmp_path)
    run_in_process(config, tmp_path, workers=workers)
    for worker in workers.values():
        assert isinstance(worker._client_side, FedAvgClient)
        assert kept_by(worker._client_side.objective) == {}
