"""Server sides are replayable: all that outlives a round is in their state, and the rest of a round follows from the answers."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from harness import SCHEMA, filled
from torch import Tensor
from uncoded import UncodedCohort

from feddkd.algorithms import ALGORITHMS, build
from feddkd.algorithms.base import Algorithm
from feddkd.config import Config
from feddkd.tensors import Tensors

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": {"name": name}} for name in ALGORITHMS},
    **{
        f"feddkd_keeps_{optimizer}": {"dkd": {"optimizer": optimizer, "optimizer_state": "keep"}}
        for optimizer in ("momentum", "adam", "yogi", "adagrad")
    },
    "fedavgm_nesterov": {"algorithm": {"name": "fedavgm", "nesterov": True}},
    "feddkd_from_the_previous_model": {"dkd": {"start": "previous"}},
    **{
        f"{name}_with_a_gradient": {"algorithm": {"name": name}, "dkd": {"piggyback": True, "steps": 0, "optimizer_state": "keep"}}
        for name in ("fedavg", "feddkd", "fedavgm", "fedadam", "fednova")
    },
}
STATEFUL = {"scaffold", "fedavgm", "fedavgm_nesterov", "fedadagrad", "fedadam", "fedyogi", "feddyn", "fedexp"}
STATEFUL |= {name for name in CONFIGURATIONS if name.startswith("feddkd_keeps") or name.endswith("with_a_gradient")}
UPDATES = {"local_train", "pseudo_train"}
"""The exchanges that buffers are averaged in."""


def server_of(name: str) -> Algorithm:
    tables = {"dkd": {}, **CONFIGURATIONS[name]}
    config = Config.parse({**tables, "dkd": {"steps": 3, "optimizer_state": "reset", **tables["dkd"]}})
    return build(config)


class Answers(UncodedCohort):
    """Answers that depend on what was asked alone, as those of clients and of a journal do."""

    weights, share, most_examples = (1.0, 2.0, 3.0), 0.4, 3
    loss: float | None = 0.5

    def __init__(self, server: Algorithm, number: int) -> None:
        self.kinds = server.exchanges(server.config)
        self.number = number
        self.asked: list[tuple[str, int, str]] = []
        self.answered: list[Tensors] = []

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        self.sent = payload
        self.asked.append((name, step, payload.sha256()))
        assert payload.schema == self.kinds[name].broadcast(SCHEMA)
        answer = self.kinds[name].reply
        assert answer is not None
        digest = hashlib.sha256(f"{self.number}{self.asked[-1]}".encode()).digest()
        found = filled(answer(SCHEMA), int.from_bytes(digest[:4], "little"))
        for tensor_name, tensor in found.items():
            if tensor_name.partition("/")[0] in ("update_norm_squared", "effective_steps", "previous_loss", "loss", "received_loss"):
                tensor.abs_()
        self.answered.append(found)
        return found


def run_round(server: Algorithm, number: int, model: Tensors) -> tuple[Tensors, list[tuple[str, int, str]]]:
    cohort = Answers(server, number)
    before = model.sha256()
    after = server.run_round(cohort, model)
    assert model.sha256() == before, "a round must not write into the model it began from"
    assert after.schema == SCHEMA
    return after, cohort.asked


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_server_that_takes_over_goes_on_with_the_same_bits(name: str) -> None:
    server, model = server_of(name), filled(SCHEMA, 0)
    for number in (1, 2, 3):
        state = copy.deepcopy(server.state_dict())
        frozen = copy.deepcopy(state)
        successor = server_of(name)
        successor.load_state_dict(state)
        following, asked = run_round(server, number, model)
        repeated, asked_again = run_round(successor, number, model)
        assert asked == asked_again
        assert following.sha256() == repeated.sha256()
        assert same(server.state_dict(), successor.state_dict())
        assert same(state, frozen), "loading a state must not tie it to what the server does next"
        # And the same server again, as after a round that too few clients answered.
        server.load_state_dict(copy.deepcopy(frozen))
        again, asked_again = run_round(server, number, model)
        assert (again.sha256(), asked_again) == (following.sha256(), asked)
        model = following


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_not_in_the_state_makes_no_difference(name: str) -> None:
    """And what is in it does: a server that begins anew in round 2 goes elsewhere, if its algorithm remembers anything."""
    server = server_of(name)
    model, _ = run_round(server, 1, filled(SCHEMA, 0))
    assert bool(server.state_dict()) or name not in STATEFUL
    expected, _ = run_round(server, 2, model)
    forgetful, _ = run_round(server_of(name), 2, model)
    assert (forgetful.sha256() != expected.sha256()) == (name in STATEFUL)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_buffers_follow_the_mean_update_in_their_own_dtype(name: str) -> None:
    server, model = server_of(name), filled(SCHEMA, 0)
    for number in (1, 2):
        cohort = Answers(server, number)
        following = server.run_round(cohort, model)
        if cohort.notes.get("averaged") == 0:
            assert number == 2  # it went back to where round 1 began
            continue
        updates = [mean.select(SCHEMA) for (asked, *_), mean in zip(cohort.asked, cohort.answered, strict=True) if asked in UPDATES]
        assert following["norm.count"].dtype == torch.int64
        assert int(following["norm.count"]) == int(model["norm.count"]) + sum(int(mean["norm.count"]) for mean in updates)
        assert following["mask"].equal(functools.reduce(torch.logical_xor, [mean["mask"] for mean in updates], model["mask"]))
        model = following


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
