"""Learning tasks: targets, losses, and the loss of a DKD step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from feddkd.config import Config
from feddkd.dkd import Distillation, step_loss
from feddkd.errors import ConfigError, DataError
from feddkd.tasks.base import UNLABELLED, LearningTask, Shapes
from feddkd.tasks.chosen import task_of

OF_CLASSES: list[dict[str, Any]] = [
    {"temperature": 2.0},
    {"not_true": True},
    {"correct_teacher": True},
    {"confidence": 0.9},
    {"bootstrap": 0.5},
    {"divergence": "js"},
]


def task(name: str, **settings: Any) -> LearningTask[Any]:
    return task_of(Config.parse({"task": {"name": name, **settings}}))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestClassification:
    def test_the_loss_of_an_example_is_the_cross_entropy(self) -> None:
        outputs, labels = noise(6, 4), torch.arange(6) % 4
        assert task("classification").loss(outputs, labels).equal(F.cross_entropy(outputs, labels))

    @given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(2, 5))
    def test_the_loss_of_places_is_the_mean_over_those_with_a_class(self, places: list[int], classes: int) -> None:
        outputs = noise(3, classes, *places)
        targets = torch.randint(classes, (3, *places), generator=torch.Generator().manual_seed(1))
        targets[0] = UNLABELLED
        targets.flatten(1)[1, 0] = UNLABELLED
        of_each = [F.cross_entropy(outputs[k : k + 1], targets[k : k + 1], ignore_index=UNLABELLED) for k in (1, 2)]
        expected = torch.stack([loss for loss in of_each if loss.isfinite()]).mean()
        torch.testing.assert_close(task("classification").loss(outputs, targets), expected)

    def test_without_any_class_there_is_no_loss_and_no_nan(self) -> None:
        outputs = noise(2, 3, 4).requires_grad_()
        loss = task("classification").loss(outputs, torch.full((2, 4), UNLABELLED))
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert loss.item() == 0
        assert not gradient.any()

    def test_an_ignored_class_number_is_no_class(self) -> None:
        mask = np.array([[0, 255], [2, 1]], dtype=np.uint8)
        assert task("classification", ignore_index=255).target(mask).tolist() == [[0, UNLABELLED], [2, 1]]

    def test_class_weights_multiply_the_losses(self) -> None:
        outputs, labels, weights = noise(6, 3), torch.arange(6) % 3, [1.0, 2.0, 0.0]
        losses = F.cross_entropy(outputs, labels, reduction="none") * torch.tensor(weights)[labels]
        weighted = task("classification", class_weights=weights)
        torch.testing.assert_close(weighted.loss(outputs, labels), losses.mean())
        by_labels = step_loss(weighted, Distillation(hard_label_weight=1.0))
        torch.testing.assert_close(by_labels.loss(outputs, None, labels), losses.mean())
        assert weighted.loss(outputs[2:3], labels[2:3]) == 0

    @pytest.mark.parametrize("raw", [0.5, np.array([0.0, 1.0]), torch.tensor([True]), "cat", None, torch.tensor([1j])])
    def test_what_is_no_class_number_is_refused(self, raw: Any) -> None:
        with pytest.raises(DataError, match="target"):
            task("classification").target(raw)

    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [
            (noise(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
            (noise(2, 3), torch.zeros(2, 4, dtype=torch.int64)),
            ([1], torch.arange(2)),
        ],
    )
    def test_outputs_that_do_not_fit_targets_are_refused(self, outputs: Any, targets: Tensor) -> None:
        with pytest.raises(ConfigError, match="logits"):
            task("classification").check_outputs(outputs, targets, 3, "model maps 2 inputs")

    def test_an_output_for_each_place_names_the_key_that_is_missing(self) -> None:
        with pytest.raises(ConfigError, match=r"set data.target_shape = \[4, 5\]"):
            task("classification").check_outputs(noise(2, 3, 4, 5), torch.arange(2), 3, "model maps 2 inputs")


class TestMultilabel:
    def test_the_loss_is_the_binary_cross_entropy_of_known_labels(self) -> None:
        outputs, targets = noise(5, 3), torch.arange(15).reshape(5, 3) % 2
        expected = F.binary_cross_entropy_with_logits(outputs, targets.float())
        torch.testing.assert_close(task("multilabel").loss(outputs, targets), expected)
        targets[:, 1] = UNLABELLED
        known = F.binary_cross_entropy_with_logits(outputs[:, [0, 2]], targets[:, [0, 2]].float())
        torch.testing.assert_close(task("multilabel").loss(outputs, targets), known)

    @pytest.mark.parametrize("raw", [[0, 2], [0.5, 1], [-2, 0], ["a", "b"]])
    def test_what_is_no_zero_or_one_is_refused(self, raw: Any) -> None:
        with pytest.raises(DataError, match="target"):
            task("multilabel").target(raw)

    @pytest.mark.parametrize("raw", [[0, 1, -1], [0.0, 1.0, -1.0], np.array([0, 1, -1])])
    def test_numbers_of_any_dtype_are_read(self, raw: Any) -> None:
        assert task("multilabel").target(raw).tolist() == [0, 1, -1]

    def test_positive_weights_are_those_of_torch_in_training_and_in_steps(self) -> None:
        outputs, targets, weights = noise(5, 3), torch.arange(15).reshape(5, 3) % 2, [1.0, 4.0, 0.5]
        weighted = task("multilabel", positive_weights=weights)
        expected = F.binary_cross_entropy_with_logits(outputs, targets.float(), pos_weight=torch.tensor(weights))
        torch.testing.assert_close(weighted.loss(outputs, targets), expected)
        for share in (1.0, 0.5):
            found = step_loss(weighted, Distillation(hard_label_weight=share)).loss(outputs, outputs, targets)
            torch.testing.assert_close(found, share * expected)  # a teacher that says the same adds nothing


class TestRegression:
    @pytest.mark.parametrize(("name", "loss"), [("squared", F.mse_loss), ("absolute", F.l1_loss), ("huber", F.huber_loss)])
    def test_one_number_may_come_in_a_column(self, name: str, loss: Any) -> None:
        outputs, targets = noise(7, 1), noise(7, seed=1)
        torch.testing.assert_close(task("regression", loss=name).loss(outputs, targets), loss(outputs.squeeze(1), targets))

    @pytest.mark.parametrize("raw", [math.nan, [1.0, math.inf], "3", True])
    def test_what_is_no_finite_number_is_refused(self, raw: Any) -> None:
        with pytest.raises(DataError, match="target"):
            task("regression").target(raw)

    @pytest.mark.parametrize("shape", [(4, 2), (4, 1, 1), (3,)])
    def test_outputs_that_do_not_fit_targets_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError, match="numbers"):
            task("regression").check_outputs(noise(*shape), noise(4), None, "model maps 4 inputs")


def cut(batch: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(batch, size))


class TestBatchSize:
    """Sums over batches and means of pieces are the same for all sizes, with weights and with places that are missing."""

    @pytest.mark.parametrize("size", [1, 3, 5])
    @pytest.mark.parametrize(
        ("name", "settings", "outputs"),
        [
            ("classification", {}, (8, 3, 4)),
            ("classification", {"class_weights": [1.0, 20.0, 0.5]}, (8, 3, 4)),
            ("classification", {"class_weights": [1.0, 20.0, 0.5]}, (8, 3)),
            ("multilabel", {"positive_weights": [1.0, 20.0, 0.5]}, (8, 3)),
            ("regression", {"loss": "huber"}, (8, 3)),
        ],
    )
    def test_a_sum_of_losses_does_not_depend_on_the_batch_size(
        self, name: str, settings: dict[str, Any], outputs: tuple[int, ...], size: int
    ) -> None:
        learning, batch = task(name, **settings), noise(*outputs)
        generator = torch.Generator().manual_seed(7)
        targets: Tensor = noise(*outputs, seed=3)
        if name != "regression":
            places = (8, 4) if len(outputs) == 3 else (8,) if name == "classification" else (8, 3)
            targets = torch.randint(2, places, generator=generator)
            if targets.ndim > 1:
                targets[torch.rand(places, generator=generator) < 0.4] = UNLABELLED
                targets[:, 0] = 1
        whole = learning.loss_sum(batch, targets)
        parts = sum(learning.loss_sum(part, known) for part, known in zip(cut(batch, size), cut(targets, size), strict=True))
        assert parts == pytest.approx(whole, rel=1e-5)
        for share in (0.5, 1.0):
            loss = step_loss(learning, Distillation(hard_label_weight=share)).loss
            teacher = noise(*outputs, seed=9)
            pieces = zip(cut(batch, size), cut(teacher, size), cut(targets, size), strict=True)
            mean = sum(float(loss(student, soft, known)) * len(student) for student, soft, known in pieces) / len(batch)
            assert mean == pytest.approx(float(loss(batch, teacher, targets)), rel=1e-5)


class TestStepLoss:
    def test_kl_of_pixels_is_that_of_their_distributions(self) -> None:
        teacher, student, targets = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1), torch.zeros(2, 4, 5, dtype=torch.int64)
        found = step_loss(task("classification"), Distillation()).loss(student, teacher, targets)
        p, q = (Categorical(logits=each.movedim(1, -1)) for each in (teacher, student))
        torch.testing.assert_close(found, kl_divergence(p, q).mean())

    def test_kl_of_labels_is_that_of_bernoulli_distributions(self) -> None:
        teacher, student, targets = noise(6, 3), noise(6, 3, seed=1), torch.zeros(6, 3, dtype=torch.int64)
        found = step_loss(task("multilabel"), Distillation()).loss(student, teacher, targets)
        torch.testing.assert_close(found, kl_divergence(Bernoulli(logits=teacher), Bernoulli(logits=student)).mean())

    def test_kl_of_numbers_is_that_of_normal_distributions_of_variance_a_half(self) -> None:
        teacher, student, targets = noise(6, 2), noise(6, 2, seed=1), noise(6, 2, seed=2)
        found = step_loss(task("regression"), Distillation()).loss(student, teacher, targets)
        width = math.sqrt(0.5)
        torch.testing.assert_close(found, kl_divergence(Normal(teacher, width), Normal(student, width)).mean())

    @pytest.mark.parametrize(
        ("name", "outputs", "targets"),
        [
            ("classification", (4, 3, 2), torch.arange(8).reshape(4, 2) % 3),
            ("multilabel", (4, 3), torch.arange(12).reshape(4, 3) % 2),
            ("regression", (4, 3), noise(4, 3, seed=5)),
        ],
    )
    def test_targets_and_teacher_share_the_loss(self, name: str, outputs: tuple[int, ...], targets: Tensor) -> None:
        learning, student, teacher = task(name), noise(*outputs), noise(*outputs, seed=1)
        both = step_loss(learning, Distillation(hard_label_weight=0.3)).loss(student, teacher, targets)
        soft = step_loss(learning, Distillation()).loss(student, teacher, targets)
        torch.testing.assert_close(both, 0.7 * soft + 0.3 * learning.loss(student, targets))
        torch.testing.assert_close(
            step_loss(learning, Distillation(hard_label_weight=1.0)).loss(student, None, targets), learning.loss(student, targets)
        )

    @pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
    def test_an_example_without_a_target_follows_its_teacher(self, name: str) -> None:
        learning = task(name)
        outputs = (4, 3, 2) if name == "classification" else (4, 3)
        targets = {"classification": torch.zeros(4, 2, dtype=torch.int64), "multilabel": torch.zeros(4, 3, dtype=torch.int64)}.get(
            name, torch.zeros(4, 3)
        )
        targets[1:] = learning.missing(targets[1:])
        student, teacher = noise(*outputs), noise(*outputs, seed=1)
        assert learning.is_labelled(targets).tolist() == [True, False, False, False]
        found = step_loss(learning, Distillation(hard_label_weight=0.5)).loss(student, teacher, targets)
        first, others = slice(0, 1), slice(1, None)
        half = step_loss(learning, Distillation(hard_label_weight=0.5)).loss(student[first], teacher[first], targets[first])
        soft = step_loss(learning, Distillation()).loss(student[others], teacher[others], targets[others])
        torch.testing.assert_close(found, 0.25 * half + 0.75 * soft)

    @pytest.mark.parametrize("asked", OF_CLASSES)
    def test_what_speaks_of_classes_is_refused_without_classes(self, asked: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=r"dkd\..*regression"):
            step_loss(task("regression"), Distillation(**asked))

    def test_a_label_has_no_class_left_without_the_true_one(self) -> None:
        with pytest.raises(ConfigError, match=r"dkd\.not_true"):
            step_loss(task("multilabel"), Distillation(not_true=True))

    @pytest.mark.parametrize("name", ["classification", "regression"])
    def test_a_divergence_of_ones_own_is_called_with_what_the_task_compares(self, name: str) -> None:
        found = step_loss(task(name), Distillation(divergence="tests.unit.test_tasks:furthest"))
        student, teacher = noise(4, 3), noise(4, 3, seed=1)
        targets = torch.zeros(4, dtype=torch.int64) if name == "classification" else torch.zeros(4, 3)
        torch.testing.assert_close(found.loss(student, teacher, targets), (student - teacher).abs().max())


def furthest(teacher: Tensor, student: Tensor, _: float) -> Tensor:
    return (teacher - student).abs().max()


@pytest.mark.parametrize("name", ["classification", "multilabel", "regression"])
def test_a_trial_batch_can_be_trained_on(name: str) -> None:
    learning = task(name)
    target_shape = {"classification": (2,), "multilabel": (3,), "regression": (3,)}[name]
    inputs, targets = learning.trial_batch(Shapes((5,), 3, target_shape), torch.float32, 2)
    assert tuple(inputs.shape) == (2, 5)
    assert tuple(targets.shape) == (2, *target_shape)
    outputs = noise(2, 3, 2) if name == "classification" else noise(2, 3)
    learning.check_outputs(outputs, targets, 3, "model")
    assert math.isfinite(learning.loss(outputs, targets))


def test_a_task_of_ones_own_is_a_subclass() -> None:
    with pytest.raises(ConfigError, match=r"subclass of feddkd\.tasks\.base\.LearningTask"):
        task("torch.nn:Linear")
