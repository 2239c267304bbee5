"""A gradient that rides along with the update: the rounds by hand, and when a round averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import NETWORK, THREE, Data, Federation, Vector, assert_follows, distilled, gradient, mean, probabilities, sgd, shares
from hypothesis import given
from hypothesis import strategies as st

from feddkd.algorithms import ALGORITHMS, build, chosen
from feddkd.algorithms.piggyback import GOOD_FALL, MOST_RISE, PATIENCE, Averaging, Piggyback
from feddkd.config import Config
from feddkd.errors import ConfigError

ETA = 0.5
DKD: dict[str, Any] = {"piggyback": True, "steps": 0, "optimizer": "sgd", "lr": ETA, "batch_size": 0}
UNFIT = ["fedavg_sgd", "feddyn", "fedexp", "scaffold", "self_training", "semifl"]
FIT = [name for name in ALGORITHMS if name not in UNFIT]


def cross_entropy(w: Vector, of: Data) -> float:
    return float(-np.log(probabilities(w, of.x)[np.arange(len(of)), of.y]).mean())


class ByHand:
    """FedAvg and one plain step; goes back where averages are worse.

    Attributes:
        averaged: for each round, whether its model is an average.
    """

    def __init__(self, lr: float, rounds: int, weight: float = 0.0) -> None:
        self.lr, self.rounds, self.weight = lr, rounds, weight
        self.averaged: list[bool] = []
        self.losses: list[float] = []  # since averages are taken
        self.pause, self.next_pause = 0, 1
        self.alone: Vector
        self.credited = 0.0

    def one_round(self, w: Vector, _: list[int]) -> Vector:
        loss = float(shares(THREE) @ [cross_entropy(w, own) for own in THREE])
        lowest = all(loss < each for each in self.losses)
        stale = len(self.losses) >= PATIENCE and self.losses.index(min(self.losses)) <= len(self.losses) - PATIENCE and not lowest
        if self.losses and (stale or loss > (1 + MOST_RISE) * min(self.losses)):
            self.pause, self.next_pause, self.losses = self.next_pause, 2 * self.next_pause, []
            self.averaged.append(False)
            return self.alone
        teachers = [sgd(w, lambda at, own=own: gradient(at, own), 3, self.lr) for own in THREE]  # type: ignore[misc]
        pairs = list(zip(THREE, teachers, strict=True))
        soft, hard = [distilled(w, teacher, own) for own, teacher in pairs], [gradient(w, own) for own in THREE]
        step = -ETA * mean([self.weight * h + (1 - self.weight) * s for s, h in zip(soft, hard, strict=True)], THREE)
        if self.losses and lowest and loss < (1 - GOOD_FALL) * self.credited:
            self.next_pause, self.credited = max(self.next_pause // 2, 1), loss
        if self.pause > 0 or (not self.losses and self.averaged and len(self.averaged) + 1 == self.rounds):
            self.pause = max(self.pause - 1, 0)
            self.averaged.append(False)
            return w + step
        self.alone = w + step if lowest else self.alone
        self.credited = self.credited if self.losses else loss
        self.losses.append(loss)
        self.averaged.append(True)
        return mean(teachers, THREE) + step


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["fedavg", "feddkd"])
def test_rounds_are_an_average_and_a_step(tmp_path: Path, name: str, weight: float) -> None:
    federation = Federation(tmp_path, {"name": name}, dkd={**DKD, "hard_label_weight": weight})
    hand = ByHand(0.25, 3, weight)
    assert_follows(federation, hand.one_round, rtol=1e-5)  # the teachers' logits are kept in float32
    assert hand.averaged == [True] * 3
    assert [record.metrics["averaged"] for record in federation.follower.rounds] == [1] * 3
    assert [record.id.name for record in federation.follower.exchanges] == ["local_train"] * 3 + ["deliver"]
    # Three epochs of 4, 7 and 9 examples, and one gradient of all.
    assert {record.gradient_evaluations for record in federation.follower.exchanges[:3]} == {3 * 20 + 20}


def test_where_averages_are_worse_a_round_is_a_step_alone_and_trials_become_rare(tmp_path: Path) -> None:
    lr, rounds = 40.0, 9  # local training diverges at this rate
    dkd = {**DKD, "hard_label_weight": 1.0}  # exact: no logits in float32
    federation = Federation(tmp_path, {"name": "fedavg"}, dkd=dkd, training={"lr": lr}, rounds=rounds)
    hand = ByHand(lr, rounds, weight=1.0)
    assert_follows(federation, hand.one_round)
    assert hand.averaged == [True, False, False, True, False, False, False, True, False]
    assert [record.metrics["averaged"] for record in federation.follower.rounds] == hand.averaged


def test_after_an_average_that_is_worse_the_algorithm_starts_without_momentum(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "fedavgm"}, dkd=DKD, training={"lr": 40.0}, rounds=2)
    federation.run()
    assert [record.metrics["averaged"] for record in federation.follower.rounds] == [1, 0]
    assert not any(name.startswith("algorithm/") for name in federation.algorithm.state_dict())


def test_the_optimizer_goes_back_as_well(tmp_path: Path) -> None:
    """Gradients at bad models would stay in Adam's moments."""
    tables: dict[str, Any] = {"training": {"lr": 40.0}, "dkd": {**DKD, "optimizer": "adam", "optimizer_state": "keep"}}
    moments = []
    for rounds in (1, 2):
        federation = Federation(tmp_path / str(rounds), {"name": "fedavg"}, rounds=rounds, **tables)
        federation.run()
        state = federation.algorithm.state_dict()
        moments.append({name: value for name, value in state.items() if name.startswith("optimizer/")})
    assert [record.metrics["averaged"] for record in federation.follower.rounds] == [1, 0]
    assert moments[0].keys() == moments[1].keys()
    assert len(moments[0]) > 0
    assert all(moments[0][name].equal(moments[1][name]) for name in moments[0])


def decisions(losses: list[float], last_round: int = 1000) -> list[str]:
    averaging = Averaging()
    return [averaging.decide(loss, last_round) for loss in losses]


def test_losses_that_rise_a_little_for_a_while_do_not_stop_the_averaging() -> None:
    assert decisions([10.0, 2.0, 5.9, 2.1, 1.9, 2.1, 5.0, 1.0]) == ["average"] * 8


def test_a_large_rise_above_the_lowest_loss_does() -> None:
    assert decisions([10.0, 1.0, 2.9, 3.1]) == ["average", "average", "average", "back"]


def test_a_loss_above_that_of_the_untrained_model_does() -> None:
    assert decisions([2.3, 2.4, 2.5]) == ["average", "average", "back"]


def test_losses_that_do_not_fall_do() -> None:
    assert decisions([10.0, 1.0, *[1.1] * PATIENCE]) == ["average"] * (PATIENCE + 1) + ["back"]


def test_the_model_to_go_back_to_is_that_of_the_lowest_loss() -> None:
    averaging, lowest = Averaging(), []
    for loss in (10.0, 2.0, 2.1, 1.5, 1.6, 1.7):
        assert averaging.decide(loss, 1000) == "average"
        lowest.append(averaging.at_lowest)
    assert lowest == [True, True, False, True, False, False]
    assert averaging.decide(4.6, 1000) == "back"


def test_worse_averages_double_the_rounds_without_one_and_better_ones_halve_them() -> None:
    averaging, pauses = Averaging(), []
    for losses in ([1.0], [1.0], [1.0, 0.95], [1.0, 0.85, 0.8, 0.7], [1.0]):
        for loss in losses:
            assert averaging.decide(loss, 1000) == "average"
        assert averaging.decide(9.0, 1000) == "back"
        pauses.append(0)
        while Averaging(averaging.state()).decide(1.0, 1000) == "alone":
            averaging.decide(1.0, 1000)
            pauses[-1] += 1
    assert pauses == [1, 2, 4, 2, 4]


def test_the_last_round_tries_nothing_that_nobody_would_judge() -> None:
    assert decisions([1.0, 9.0, 1.0, 1.0], last_round=4) == ["average", "back", "alone", "alone"]
    assert decisions([1.0, 1.0, 1.0], last_round=3) == ["average"] * 3
    assert decisions([1.0], last_round=1) == ["average"]


def test_a_negative_loss_decides_nothing() -> None:
    assert decisions([1.0, -1.0, -5.0, -1.0, 1.0, 9.0]) == ["average"] * 5 + ["back"]
    assert decisions([-1.0, 9.0, 9.0]) == ["average"] * 3


def test_a_negative_first_loss_is_nothing_to_compare_with() -> None:
    averaging = Averaging()
    assert [averaging.decide(loss, 10) for loss in (-0.5, 2.0, 1.9)] == ["average"] * 3


@given(st.lists(st.floats(-1, 1e30), max_size=30), st.lists(st.floats(-1, 1e30), max_size=10))
def test_decisions_go_on_from_the_state(before: list[float], after: list[float]) -> None:
    averaging = Averaging()
    for loss in before:
        averaging.decide(loss, 35)
    successor = Averaging(averaging.state())
    assert [successor.decide(loss, 35) for loss in after] == [averaging.decide(loss, 35) for loss in after]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 4.0]), max_size=40))
def test_there_is_always_a_model_to_go_back_to(losses: list[float]) -> None:
    averaging, kept = Averaging(), False
    for loss in losses:
        decision = averaging.decide(loss, 40)
        if decision == "back":
            assert kept
            kept = False
        elif decision == "average" and averaging.at_lowest:
            kept = True


@pytest.mark.parametrize("name", FIT)
def test_algorithms_that_average_carry_a_gradient(tmp_path: Path, name: str) -> None:
    federation = Federation(tmp_path, {"name": name}, model=NETWORK, dkd={**DKD, "lr": 1e-3}, rounds=2)
    assert isinstance(federation.algorithm, Piggyback)
    federation.run()
    plain = Federation(tmp_path / "plain", {"name": name}, model=NETWORK, dkd={"steps": 0}, rounds=2)
    plain.run()
    assert 0 < np.abs(federation.models[0] - plain.models[0]).max() < 1e-2
    up = [run.follower.exchanges[0].traffic.payload_bytes_up for run in (federation, plain)]
    assert up[0] == 2 * up[1] + 3 * 8 - (3 * 8 if name == "fednova" else 0)  # an update, a gradient and a loss


@pytest.mark.parametrize("name", UNFIT)
def test_others_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^dkd\.piggyback: algorithm {name} cannot carry a gradient: .{{20}}"):
        build(Config.parse({"algorithm": {"name": name}, "dkd": DKD}))


def test_steps_and_a_gradient_that_rides_along_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"^dkd\.piggyback: algorithm feddkd .*: dkd.steps = 20 takes steps anyway; set it to 0$"):
        chosen(Config.parse({"dkd": {"piggyback": True}}))


@pytest.mark.parametrize("name", ["scripted:Counting"])
def test_an_algorithm_of_other_exchanges_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="its round is more than the exchange local_train"):
        chosen(Config.parse({"algorithm": {"name": name}, "dkd": DKD}))
