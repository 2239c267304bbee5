"""Choose what a round's steps go by: local teachers, the global model's own predictions, or the labels.

Distillation helps where the teachers are right about the clients' own examples, or at least more often than
the global model is. Clients count on the labelled examples that they hold out who is right, and the
server decides by the sums, because one client has too few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from feddkd.algorithms.feddkd import DKD_STEP
from feddkd.dkd import OwnPredictions
from feddkd.tensors import Schema, TensorSpec

SELF_STEP, SGD_STEP = "self_step", "sgd_step"
"""The exchanges of a step without a local teacher: by own predictions and labels, and by labels alone."""

COUNTS = Schema([TensorSpec("value", torch.float64, (6,), trainable=False)])
"""Of held-out examples: all, those that the teacher is right about, those that only it is, those that only the global
model is, those of which the global model is sure among the client's classes, those of which it is sure and right."""

HELD_OUT = "held_out"
"""The name under which the counts travel."""

DECAY = 0.5
"""Weight of what earlier rounds counted: the same few examples, judged by earlier models."""

MARGIN = 1.0
"""Standard deviations by which one is ahead of the other."""

PRECISE = 0.9
"""Share of right predictions that is good enough to label examples by."""

FEWEST_SURE = 5.0
"""Sure predictions below which nothing is known of their precision."""


def count_held_out(teacher: Tensor, student: Tensor, labels: Tensor, own: OwnPredictions) -> Tensor:
    """Count who is right on held-out examples.

    Args:
        teacher: logits [n, C] of the local model.
        student: logits [n, C] of the global model that it was trained from.
        labels: int64 [n].
        own: how the global model would label examples.

    Returns:
        float64 [6], in the order of `COUNTS`.
    """
    teacher_right, student_right = teacher.argmax(1) == labels, student.argmax(1) == labels
    sure, predicted = own.predictions(student)
    all_of_them = torch.ones_like(teacher_right)
    only_one = teacher_right & ~student_right, student_right & ~teacher_right
    counted = (all_of_them, teacher_right, *only_one, sure, sure & (predicted == labels))
    return torch.stack([found.sum() for found in counted]).double()


class TeacherChoice:
    """Decides by the counts of all rounds so far, of which recent ones weigh more."""

    def __init__(self, counts: Tensor | None = None) -> None:
        """Begin without counts, or go on from `state`."""
        self._counts = torch.zeros(6, dtype=torch.float64) if counts is None else counts

    def choose(self, counts: Tensor, most: float) -> str:
        """Decide for a round.

        Teacher and global model are compared on the examples that only one of them is right about: the
        difference of the two counts has a standard deviation of at most the root of their sum
        (McNemar 1947). The steps go

        1. by the local teachers, if they are ahead, or are nearly always right and not behind;
        2. else by the global model's own predictions, if those that it is sure of are nearly always right;
        3. else by the labels.

        Args:
            counts: float64 [6], in the order of `COUNTS`, summed over the clients.
            most: limit of each, so that no client decides for more than a few rounds.

        Returns:
            The exchange to ask for.
        """
        # Rounded: a sum of shares misses whole numbers by a last bit, and the limits below are whole numbers.
        self._counts = DECAY * self._counts + counts.round().clamp(0.0, most)
        examples, teacher_right, teacher, student, sure, right = self._counts.tolist()
        deviation = MARGIN * math.sqrt(student + teacher)
        is_precise = teacher_right >= PRECISE * examples
        if teacher - student > deviation or (is_precise and student - teacher <= deviation):
            return DKD_STEP
        return SELF_STEP if sure >= FEWEST_SURE and right >= PRECISE * sure else SGD_STEP

    def state(self) -> Tensor:
        """Return what to go on from; float64 [6]."""
        return self._counts
