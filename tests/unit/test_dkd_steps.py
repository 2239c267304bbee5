"""What the server does with the steps of a round: clip, average the last students, stop at a plateau."""

from __future__ import annotations

import pytest
import torch
from harness import filled
from threads import with_every_number_of_threads

from feddkd.dkd.steps import TailMean, clipped
from feddkd.tensors import Schema, Tensors, TensorSpec

LARGE = Schema([TensorSpec("weight", torch.float64, (90_000,)), TensorSpec("count", torch.float64, (5,), trainable=False)])


@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_is_shortened_to_the_same_bits_with_every_number_of_threads(seed: int) -> None:
    gradient = filled(LARGE.trainable, seed)
    short = with_every_number_of_threads(lambda: clipped(gradient, 0.5))
    assert len({each.sha256() for each in short}) == 1
    assert short[0].norm() == pytest.approx(0.5)
    assert clipped(gradient, gradient.norm()) is gradient
    assert clipped(gradient, None) is gradient


def test_the_mean_of_the_last_students_is_the_same_bits_with_every_number_of_threads() -> None:
    students = [filled(LARGE, seed) for seed in range(4)]

    def averaged() -> Tensors:
        tail = TailMean(first_step=1)
        for step, student in enumerate(students):
            tail.add(step, student)
        return tail.of(students[-1])

    means = with_every_number_of_threads(averaged)
    assert len({each.sha256() for each in means}) == 1
    expected = torch.stack([student["weight"] for student in students[1:]]).mean(0)
    torch.testing.assert_close(means[0]["weight"], expected)
    assert torch.equal(means[0]["count"], students[-1]["count"])
