"""With a codec, clients hold another model than the server broadcast: every algorithm goes on from theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from harness import filled
from uncoded import UncodedCohort

from feddkd.algorithms import ALGORITHMS, build
from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.scaffold import SCAFFOLD
from feddkd.config import Config
from feddkd.exchange import ExchangeKind
from feddkd.tensors import Schema, Tensors, TensorSpec

MODEL = Schema(
    [
        TensorSpec("weight", torch.float32, (3, 4)),
        TensorSpec("mean", torch.float32, (4,), trainable=False),
        TensorSpec("count", torch.int64, (), trainable=False),
    ]
)
STARTS = [{"start": start} for start in ("average", "better", "previous")]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALGORITHMS),
    *(("feddkd", start) for start in STARTS),
]


def coded(tensors: Tensors) -> Tensors:
    """What a codec leaves: multiples of 1/8, which it leaves as they are."""
    rounded = {name: (tensor * 8).round() / 8 for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
    return tensors.replace(rounded)


class CodedCohort(UncodedCohort):
    """Sends codes; answers each exchange with tensors of its own, and a loss that makes FedDKD start over.

    Attributes:
        adopted: the exchanges whose codec models were adopted with, and whether for the mean.
    """

    weights: Sequence[float] = (1.0, 3.0)
    share = 0.5
    most_examples = 2
    loss: float | None = 9.0

    def __init__(self, kinds: Mapping[str, ExchangeKind]) -> None:
        self._kinds = kinds
        self.adopted: list[tuple[str, bool]] = []

    def adopt(self, name: str, model: Tensors, *, in_mean: bool = False) -> Tensors:
        self.adopted.append((name, in_mean))
        self.sent = coded(model)
        return self.sent

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        self.sent = coded(payload)
        schema = self._kinds[name].reply
        assert schema is not None
        return filled(schema(MODEL), seed=step)


def rounds(algorithm: Algorithm, models: Sequence[Tensors]) -> list[Tensors]:
    return [algorithm.run_round(CodedCohort(algorithm.exchanges(algorithm.config)), model) for model in models]


@pytest.mark.parametrize(("name", "dkd"), CASES)
def test_a_round_goes_on_from_what_the_clients_received(name: str, dkd: dict[str, Any]) -> None:
    config = Config.parse({"algorithm": {"name": name}, "dkd": {"steps": 4, "lr": 0.5, "tail": 0.5, **dkd}})
    models = [filled(MODEL, seed) for seed in (10, 11)]
    broadcast, received = rounds(build(config), models), rounds(build(config), [coded(model) for model in models])
    assert [model.sha256() for model in broadcast] == [model.sha256() for model in received]
    assert not broadcast[0]["weight"].equal(coded(models[0])["weight"])


def test_scaffold_goes_on_from_the_control_variate_that_the_clients_received() -> None:
    algorithm = build(Config.parse({"algorithm": {"name": "scaffold"}}))
    assert isinstance(algorithm, SCAFFOLD)
    control = filled(MODEL.trainable, 5)
    after = []
    for start in (control, coded(control)):
        algorithm.load_state_dict(start)
        rounds(algorithm, [filled(MODEL, 10)])
        after.append(algorithm.state_dict()["weight"])
    assert after[0].equal(after[1])


@pytest.mark.parametrize("dkd", STARTS)
def test_each_student_of_feddkd_is_adopted_the_last_included(dkd: dict[str, Any]) -> None:
    algorithm = build(Config.parse({"dkd": {"steps": 4, "lr": 0.5, "tail": 0.5, **dkd}}))
    cohort = CodedCohort(algorithm.exchanges(algorithm.config))
    model = algorithm.run_round(cohort, filled(MODEL, 10))
    # `better` spends its first step on finding out that the previous model is the better start.
    assert cohort.adopted == [("dkd_step", step >= 2) for step in range(1 if dkd["start"] == "better" else 0, 4)]
    assert model["mean"].equal(cohort.sent["mean"])
