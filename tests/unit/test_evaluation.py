"""How a model does, altogether and class by class."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from by_hand import THREE, Federation
from harness import RUN_ID
from torch import nn

from feddkd.data.examples import MemoryExamples
from feddkd.dkd import mean_entropy
from feddkd.evaluation import evaluate
from feddkd.exchange import Evaluation, ExchangeId, Task
from feddkd.tensors import Tensors

CPU = torch.device("cpu")


def one_hot_examples(predicted: list[int], labels: list[int], classes: int) -> MemoryExamples:
    """Inputs that are the logits already."""
    return MemoryExamples(torch.eye(classes)[torch.tensor(predicted, dtype=torch.int64)], torch.tensor(labels))


def test_accuracy_by_class_on_known_predictions() -> None:
    examples = one_hot_examples([0, 0, 1, 3, 3, 0], [0, 1, 1, 3, 3, 3], classes=4)
    found = evaluate(nn.Identity(), examples, CPU)
    assert (found.examples, found.correct) == (6, 4)
    assert found.examples_by_class == (1, 2, 0, 3)
    assert found.correct_by_class == (1, 1, 0, 2)
    assert found.class_accuracy == [1.0, 0.5, None, 2 / 3]
    right, wrong = math.log(math.e + 3) - 1, math.log(math.e + 3)
    assert found.loss == pytest.approx((4 * right + 2 * wrong) / 6)


def test_a_model_that_is_always_wrong() -> None:
    found = evaluate(nn.Identity(), one_hot_examples([1, 1, 0], [0, 0, 1], classes=2), CPU)
    assert (found.correct, found.class_accuracy) == (0, [0.0, 0.0])


def test_batches_do_not_mix_up_the_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, labels = torch.randint(5, (2, 50), generator=generator)
    examples = one_hot_examples(predicted.tolist(), labels.tolist(), classes=5)
    expected = evaluate(nn.Identity(), examples, CPU)
    found = evaluate(nn.Identity(), examples, CPU, batch_size=7)
    assert found.examples_by_class == expected.examples_by_class == tuple(int((labels == c).sum()) for c in range(5))
    assert found.correct_by_class == expected.correct_by_class == tuple(int(((labels == c) & (predicted == c)).sum()) for c in range(5))


def test_where_classes_are_not_known_there_is_no_accuracy_by_class() -> None:
    assert Evaluation(3, 2, 1.0).class_accuracy is None


def test_a_client_does_not_tell_which_classes_it_has(tmp_path: Path) -> None:
    worker = Federation(tmp_path, {"name": "fedavg"}, data={"holdout": 0.3, "test_set": False}).workers["client-2"]
    task = Task(ExchangeId(RUN_ID, 1, 0, "local_train", 0), Tensors.of_module(worker.site.module), evaluate=True)
    evaluation = worker.carry_out(task).evaluation
    assert evaluation is not None
    assert evaluation.examples == round(0.3 * len(THREE[2]))
    assert (evaluation.examples_by_class, evaluation.correct_by_class, evaluation.class_accuracy) == ((), (), None)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_entropy_of_a_teacher_that_knows_nothing_is_that_of_the_uniform_distribution(classes: int) -> None:
    assert mean_entropy(torch.full((5, classes), 3.0)) == pytest.approx(math.log(classes))


def test_the_entropy_of_a_teacher_that_is_certain_is_zero() -> None:
    assert mean_entropy(1e4 * torch.eye(4)) == pytest.approx(0, abs=1e-12)
    assert mean_entropy(3e38 * (2 * torch.eye(4) - 1)) == pytest.approx(0, abs=1e-12)


def test_the_entropy_is_a_mean_over_the_examples() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    assert mean_entropy(logits) == pytest.approx((math.log(2) - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 2)
