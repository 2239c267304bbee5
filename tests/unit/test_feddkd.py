"""FedDKD and its control by hand: softmax regression, where the distillation's gradient has a closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from by_hand import THREE, Federation, Vector, assert_follows, distance, distilled, gradient, mean, probabilities, sgd, shares

ETA, STEPS = 0.5, 4


class ByHand:
    """One round of FedDKD with plain server steps on all examples, whatever else `[dkd]` asks for."""

    def __init__(self, hard: bool, **dkd: Any) -> None:
        self.hard_label_weight = 1.0 if hard else dkd.get("hard_label_weight", 0.0)
        self.start, self.clip_norm = dkd.get("start", "average"), dkd.get("clip_norm")
        self.tail, self.patience = dkd.get("tail", 0.0), dkd.get("patience", 0)
        self.chosen: list[str] = []
        self.steps: list[int] = []

    def gradient(self, v: Vector, teachers: list[Vector]) -> Vector:
        pairs = zip(THREE, teachers, strict=True)
        a = self.hard_label_weight
        found = mean([a * gradient(v, own) + (1 - a) * distilled(v, teacher, own) for own, teacher in pairs], THREE)
        norm = float(np.sqrt(found @ found))
        return found if self.clip_norm is None or norm < self.clip_norm else found * self.clip_norm / norm

    def loss(self, v: Vector, teachers: list[Vector]) -> float:
        hard = [-np.log(probabilities(v, own.x)[np.arange(len(own)), own.y]).mean() for own in THREE]
        soft = [distance(v, teacher, own) for own, teacher in zip(THREE, teachers, strict=True)]
        a = self.hard_label_weight
        return float(shares(THREE) @ (a * np.array(hard) + (1 - a) * np.array(soft)))

    def one_round(self, w: Vector, _: list[int]) -> Vector:
        teachers = [sgd(w, lambda at, own=own: gradient(at, own), 3, 0.25) for own in THREE]  # type: ignore[misc]
        student, first = mean(teachers, THREE), 0
        better = self.start == "better" and self.loss(w, teachers) < self.loss(student, teachers)
        losses = [self.loss(student, teachers)] if better else []
        if better or self.start == "previous":
            student, first = w, int(better)  # finding out took a step
        self.chosen.append("previous" if student is w else "average")
        students = []
        for step in range(first, STEPS):
            losses.append(self.loss(student, teachers))
            student = student - ETA * self.gradient(student, teachers)
            students.append((step, student))
            n = self.patience
            if n and len(losses) >= 2 * n and np.mean(losses[-n:]) > 0.99 * np.mean(losses[-2 * n : -n]):
                break
        self.steps.append(students[-1][0] + 1)
        late = [each for step, each in students if step >= STEPS - round(self.tail * STEPS)]
        return np.asarray(np.mean(late, axis=0)) if late else student


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {"hard_label_weight": 0.3},
    "previous": {"start": "previous"},
    "previous_to_a_plateau": {"start": "previous", "patience": 1, "tail": 0.5, "hard_label_weight": 0.3},
    "better": {"start": "better"},
    "clipped": {"clip_norm": 0.02},
    "tail": {"tail": 0.5},
    "whole_tail": {"tail": 1.0},
    "patience": {"patience": 1, "tail": 0.5},
}


@pytest.mark.parametrize("name", ["feddkd", "fedavg_sgd"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_rounds_are_those_of_the_algorithm(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    dkd = {"steps": STEPS, "optimizer": "sgd", "lr": ETA, "batch_size": 0, "start": "average", "tail": 0, "patience": 0}
    dkd |= {"hard_label_weight": 0.0, **settings}
    federation = Federation(tmp_path, {"name": name}, dkd=dkd)
    hand = ByHand(name == "fedavg_sgd", **settings)
    assert_follows(federation, hand.one_round, rtol=1e-5)  # the teachers' logits are kept in float32
    done = [record for record in federation.follower.exchanges if record.id.name != "deliver"]
    taken = [count + (hand.start != "previous") for count in hand.steps]  # else local training is the first step
    assert [sum(record.id.round == number for record in done) for number in (1, 2, 3)] == taken


def test_better_chooses_the_previous_model_where_the_average_is_worse(tmp_path: Path) -> None:
    """Local training at a rate at which it diverges."""
    for lr, expected in ((0.25, "average"), (40.0, "previous")):
        dkd = {"steps": 2, "optimizer": "sgd", "lr": 1e-12, "batch_size": 0, "start": "better", "tail": 0, "hard_label_weight": 1}
        federation = Federation(tmp_path / expected, {"name": "feddkd"}, dkd=dkd, training={"lr": lr}, rounds=1)
        federation.run()
        average = mean([sgd(federation.initial, lambda at, own=own: gradient(at, own), 3, lr) for own in THREE], THREE)  # type: ignore[misc]
        start = average if expected == "average" else federation.initial
        np.testing.assert_allclose(federation.models[0], start, atol=1e-9)


def test_the_record_says_which_rounds_threw_the_average_away(tmp_path: Path) -> None:
    dkd = {"steps": 2, "optimizer": "sgd", "lr": 1e-3, "batch_size": 0, "hard_label_weight": 1}
    started_over = {}
    for start, lr in (("better", 0.25), ("better", 40.0), ("average", 40.0), ("previous", 40.0)):
        federation = Federation(tmp_path / f"{start}-{lr}", {"name": "feddkd"}, dkd={**dkd, "start": start}, training={"lr": lr}, rounds=1)
        federation.run()
        (record,) = federation.follower.rounds
        started_over[start, lr] = record.metrics.get("started_over")
    assert list(started_over.values()) == [0, 1, None, None]


@pytest.mark.parametrize("name", ["feddkd", "fedavg_sgd"])
def test_a_round_from_the_previous_model_uploads_one_gradient_a_step(tmp_path: Path, name: str) -> None:
    dkd = {"steps": 2, "batch_size": 5, "patience": 0, "start": "previous"}
    federation = Federation(tmp_path, {"name": name}, dkd=dkd, rounds=1)
    federation.run()
    training, step, _ = federation.follower.exchanges
    assert [training.id.name, step.id.name] == ["local_train", "dkd_step" if name == "feddkd" else "sgd_step"]
    assert training.traffic.payload_bytes_up == step.traffic.payload_bytes_up + 3 * 8  # the loss that the gradient is of
    # Three epochs of 4, 7 and 9 examples for the teachers, which the control does not need; batches of 4, 5 and 5.
    assert training.gradient_evaluations == 14 + (3 * 20 if name == "feddkd" else 0)
    assert step.gradient_evaluations == 14
    assert ("teacher_entropy" in training.metrics) == (name == "feddkd")


def test_a_teacher_that_no_later_exchange_needs_is_not_stored(tmp_path: Path) -> None:
    for start, steps, stored in (("previous", 1, False), ("previous", 2, True), ("average", 0, False), ("average", 1, True)):
        folder = tmp_path / f"{start}-{steps}"
        Federation(folder, {"name": "feddkd"}, dkd={"steps": steps, "start": start}, rounds=1).run()
        assert bool(list(folder.rglob("teacher.safetensors"))) == stored


def test_work_is_counted(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "feddkd"}, dkd={"steps": 2, "batch_size": 5, "patience": 0}, rounds=1)
    federation.run()
    # Three epochs of 4, 7 and 9 examples; batches of 4, 5 and 5, once more in local training for the loss of the model it got.
    assert [record.gradient_evaluations for record in federation.follower.exchanges] == [3 * 20 + 14, 14, 14, 0]


def test_a_single_step_asks_nobody_for_the_loss_of_the_model_it_got(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "feddkd"}, dkd={"steps": 1, "batch_size": 5, "patience": 0}, rounds=1)
    federation.run()
    assert [record.gradient_evaluations for record in federation.follower.exchanges] == [3 * 20, 14, 0]


def test_the_teachers_entropy_comes_with_the_first_step(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "feddkd"}, dkd={"steps": 2, "patience": 0}, rounds=1)
    federation.run()
    entropies = []
    for own in THREE:
        p = probabilities(sgd(federation.initial, lambda at, own=own: gradient(at, own), 3, 0.25), own.x)  # type: ignore[misc]
        entropies.append(-(p * np.log(p)).sum(1).mean())
    first, second = (record.metrics for record in federation.follower.exchanges if record.id.name == "dkd_step")
    assert first["teacher_entropy"] == pytest.approx(shares(THREE) @ entropies, rel=1e-6)
    assert "teacher_entropy" not in second
