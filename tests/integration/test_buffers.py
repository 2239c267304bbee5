"""BatchNorm through every algorithm: running statistics, and a counter that stays an integer."""

from pathlib import Path

import pytest
import torch
from harness import run_in_process, small_config

from feddkd.algorithms import ALGORITHMS
from feddkd.client.simulated import simulated_workers
from feddkd.models.initial import build_initial

COUNTER, MEAN, VARIANCE = "2.num_batches_tracked", "2.running_mean", "2.running_var"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, []) for name in ALGORITHMS),
        *((name, ["dkd.start=previous"]) for name in ("feddkd", "fedavg_sgd")),
        ("fedavg", ["dkd.piggyback=true"]),
    ],
)
def test_buffers_are_averaged_and_keep_their_dtype(name: str, settings: list[str], tmp_path: Path) -> None:
    network = ('model.name="gated:batch_norm_mlp"', "training.batch_size=50")
    config = small_config(f"algorithm.name={name}", *settings, *network, "partition.name=iid", "data.holdout=0")
    before, model = build_initial(config).model, run_in_process(config, tmp_path).model
    assert model.schema == before.schema
    assert [tensor.dtype for tensor in model.values()] == [tensor.dtype for tensor in before.values()]
    sizes = [worker.counts.total for worker in simulated_workers(config, tmp_path / "clients").values()]
    assert {2 * -(-size // 50) for size in sizes} == {int(model[COUNTER])}
    assert model[COUNTER].dtype == torch.int64
    assert not model[MEAN].equal(before[MEAN])
    assert (model[VARIANCE] > 0).all()
    assert all(tensor.isfinite().all() for tensor in model.values())
