"""`dkd.scope`: which parameters the steps move and send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import CLASSES, FEATURES, THREE, Federation, Vector, assert_follows, distilled, gradient, mean, sgd

from feddkd import algorithms
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples
from feddkd.dkd import Distillation, distillation_gradient
from feddkd.dkd.scope import in_scope, in_scope_and_untrained
from feddkd.errors import ConfigError
from feddkd.tensors import Schema, TensorSpec

MODEL = Schema(
    [
        TensorSpec("conv.weight", torch.float32, (3, 4)),
        TensorSpec("norm.mean", torch.float64, (3,), trainable=False),
        TensorSpec("fc1.weight", torch.float32, (2, 2)),
        TensorSpec("fc1.bias", torch.float64, (2,)),
        TensorSpec("fc2.bias", torch.float32, (7,)),
    ]
)
ETA, WEIGHTS = 0.5, CLASSES * FEATURES


@pytest.mark.parametrize(
    ("scope", "names"),
    [
        ("full", ["fc1.bias", "conv.weight", "fc1.weight", "fc2.bias"]),
        (["fc2.*"], ["fc2.bias"]),
        (["fc?.bias", "conv.weight"], ["fc1.bias", "conv.weight", "fc2.bias"]),
        (["*"], ["fc1.bias", "conv.weight", "fc1.weight", "fc2.bias"]),
    ],
)
def test_names_and_patterns_select_parameters_in_the_models_order(scope: Any, names: list[str]) -> None:
    assert list(in_scope(MODEL, scope).by_name) == names
    assert set(in_scope_and_untrained(MODEL, scope).by_name) == {*names, "norm.mean"}


@pytest.mark.parametrize("pattern", ["fc3.*", "norm.mean", "FC2.*", "fc2"])
def test_a_pattern_that_matches_nothing_is_refused_by_server_and_client(tmp_path: Path, pattern: str) -> None:
    message = rf"^dkd\.scope: '{pattern.replace('*', '[*]')}' matches none of the parameters, which are 1\.weight, 1\.bias$"
    model = Schema([TensorSpec("1.weight", torch.float32, (2,)), TensorSpec("1.bias", torch.float32, (2,))])
    algorithms.check_fits(algorithms.build(Config.parse({"dkd": {"scope": ["1.*"]}})), model)
    for start in ("better", "previous"):
        config = Config.parse({"dkd": {"scope": ["1.*", pattern], "start": start}})
        with pytest.raises(ConfigError, match=message):
            algorithms.check_fits(algorithms.build(config), model)
    with pytest.raises(ConfigError, match=message):
        Federation(tmp_path, {"name": "feddkd"}, dkd={"scope": [pattern]})


def test_a_gradient_of_some_parameters_is_that_part_of_the_whole() -> None:
    module = torch.nn.Linear(3, 2)
    examples = MemoryExamples(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 1, 0, 1]))
    hard, order, cpu = Distillation(hard_label_weight=1.0), torch.arange(5), torch.device("cpu")
    bias = Schema([TensorSpec("bias", torch.float32, (2,))])
    whole, loss = distillation_gradient(module, examples, None, order, hard, cpu)
    part, same_loss = distillation_gradient(module, examples, None, order, hard, cpu, schema=bias)
    assert list(part) == ["bias"]
    assert part["bias"].equal(whole["bias"])
    assert loss == same_loss


class OnlyBiases:
    """FedDKD by hand whose steps move the biases alone."""

    def __init__(self, start: str, steps: int) -> None:
        self.start, self.steps = start, steps

    def one_round(self, w: Vector, _: list[int]) -> Vector:
        teachers = [sgd(w, lambda at, own=own: gradient(at, own), 3, 0.25) for own in THREE]  # type: ignore[misc]
        student = mean(teachers, THREE) if self.start == "average" else w
        for _step in range(self.steps):
            step = -ETA * mean([distilled(student, teacher, own) for own, teacher in zip(THREE, teachers, strict=True)], THREE)
            step[:WEIGHTS] = 0
            student = student + step
        return student


@pytest.mark.parametrize("start", ["average", "previous"])
def test_steps_move_and_send_what_is_in_scope(tmp_path: Path, start: str) -> None:
    dkd = {"steps": 3, "optimizer": "sgd", "lr": ETA, "batch_size": 0, "start": start, "tail": 0, "hard_label_weight": 0.0}
    federation = Federation(tmp_path, {"name": "feddkd"}, dkd={**dkd, "scope": ["*.bias"]})
    assert_follows(federation, OnlyBiases(start, 3).one_round, rtol=1e-5)
    clients, size = len(THREE), 8
    training, *steps = (record for record in federation.follower.exchanges if record.id.round == 1)
    trained = WEIGHTS + CLASSES if start == "average" else CLASSES + 1  # the first gradient, and its loss
    assert training.traffic.payload_bytes_up == clients * size * trained
    assert {step.traffic.payload_bytes_up for step in steps if step.id.name == "dkd_step"} == {clients * size * CLASSES}


def test_a_gradient_that_rides_along_has_the_same_scope(tmp_path: Path) -> None:
    dkd = {"steps": 0, "piggyback": True, "optimizer": "sgd", "lr": ETA, "batch_size": 0}
    models = []
    for scope in ("full", ["*.bias"]):
        federation = Federation(tmp_path / str(len(scope)), {"name": "fedavg"}, dkd={**dkd, "scope": scope}, rounds=1)
        federation.run()
        models.append(federation.models[0])
    plain = Federation(tmp_path / "plain", {"name": "fedavg"}, rounds=1)
    plain.run()
    np.testing.assert_allclose(models[1][:WEIGHTS], plain.models[0][:WEIGHTS], atol=1e-12)
    np.testing.assert_allclose(models[1][WEIGHTS:], models[0][WEIGHTS:], atol=1e-12)
    assert not np.allclose(models[0][:WEIGHTS], plain.models[0][:WEIGHTS])
