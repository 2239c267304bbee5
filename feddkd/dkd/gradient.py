"""Compute a client's reply to a DKD step: the gradient of its distillation loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddkd.data.examples import Examples
from feddkd.devices import device_for
from feddkd.dkd.divergences import divergence_of, without_true_class
from feddkd.dkd.teacher import soft_labels
from feddkd.errors import DataError
from feddkd.evaluation import BATCH_SIZE, Check, eval_mode, never_stop
from feddkd.registry import DIVERGENCES
from feddkd.tasks.base import UNLABELLED, LearningTask, StepLoss
from feddkd.tasks.classification import CLASSIFICATION
from feddkd.tensors import Schema, Tensors


@dataclass(frozen=True)
class Distillation:
    """The loss of a DKD step: (1 - w) divergence(teacher, student) + w cross-entropy(labels, student).

    Attributes:
        divergence: a name in `DIVERGENCES`; by default KL(teacher || student).
        temperature: T > 0, softens the divergence; the cross-entropy is taken at T = 1.
        not_true: leave each example's true class out of the divergence, on both sides (as FedNTD does in its local loss).
        hard_label_weight: w in [0, 1], for examples that have a label; the others follow their teacher
            alone. 0 is FedDKD (arXiv 2205.00706); 1 needs no teacher and is one step of
            FedSGD (McMahan et al. 2017, arXiv 1602.05629), the control that costs the same bytes.
        correct_teacher: take w = 1 for the examples that the teacher misclassifies (Meng et al.,
            Conditional Teacher-Student Learning, ICASSP 2019, arXiv 1904.12399).
        confidence: leave out the examples without a label whose teacher gives its most likely class no more than this
            probability (Sohn et al., FixMatch, NeurIPS 2020, arXiv 2001.07685); they count in the mean, with a loss of 0.
        bootstrap: share of the student's own most likely class in the true label of the cross-entropy (Reed et al.,
            hard bootstrapping, arXiv 1412.6596).

    Raises:
        ValueError: a value is unknown or out of range.
    """

    divergence: str = "kl"
    temperature: float = 1.0
    hard_label_weight: float = 0.0
    not_true: bool = False
    correct_teacher: bool = False
    confidence: float = 0.0
    bootstrap: float = 0.0

    def __post_init__(self) -> None:
        if ":" not in self.divergence and self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence {self.divergence!r} is not one of {', '.join(DIVERGENCES)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature {self.temperature} is not positive")
        if not 0 <= self.hard_label_weight <= 1:
            raise ValueError(f"hard_label_weight {self.hard_label_weight} is not in [0, 1]")
        if not 0 <= self.confidence < 1:
            raise ValueError(f"confidence {self.confidence} is not in [0, 1)")
        if not 0 <= self.bootstrap <= 1:
            raise ValueError(f"bootstrap {self.bootstrap} is not in [0, 1]")

    @property
    def needs_teacher(self) -> bool:
        """Whether soft labels enter the loss."""
        return self.hard_label_weight < 1

    def loss(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss of a batch, a scalar.

        Args:
            student_logits: [B, C], any floating-point dtype; the loss is computed in float32 at least.
            teacher_logits: [B, C], or None where hard_label_weight is 1.
            labels: int64 [B]; `UNLABELLED` where there is none, and nowhere if hard_label_weight is 1.
            weights: [B], factors of the cross-entropies; None for 1.

        Raises:
            ValueError: there is no teacher although the loss needs one.
        """
        student = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
        if self.hard_label_weight == 1:
            return self._cross_entropy(student, labels, weights)
        if teacher_logits is None:
            raise ValueError(f"hard_label_weight {self.hard_label_weight} needs teacher logits; only 1 does without")
        teacher, labelled = teacher_logits.to(student.dtype), labels != UNLABELLED
        if labelled.all():
            return self._labelled_loss(student, teacher, labels, weights)
        share = labelled.to(student.dtype).mean()
        with_label = self._labelled_loss(student[labelled], teacher[labelled], labels[labelled], _chosen(weights, labelled))
        return share * with_label + (1 - share) * self._unlabelled_loss(student[~labelled], teacher[~labelled])

    def _labelled_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the mean loss of examples that have a label; 0 for an empty batch."""
        if not self.correct_teacher:
            return self._distilled(student, teacher, labels, weights)
        right = teacher.argmax(1) == labels
        share_right = right.to(student.dtype).mean() if len(right) else student.new_zeros(())
        loss = (1 - share_right) * self._cross_entropy(student[~right], labels[~right], _chosen(weights, ~right))
        return loss + share_right * self._distilled(student[right], teacher[right], labels[right], _chosen(weights, right))

    def _unlabelled_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean loss of at least one example that has no label."""
        divergence = divergence_of(self.divergence)
        if self.confidence == 0:
            return divergence(teacher, student, self.temperature)
        sure = F.softmax(teacher, dim=1).amax(1) > self.confidence
        if not sure.any():
            return student.sum() * 0
        return sure.to(student.dtype).mean() * divergence(teacher[sure], student[sure], self.temperature)

    def _distilled(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the mean loss of examples that follow their teacher and their label; 0 for an empty batch."""
        if len(labels) == 0:
            return student_logits.sum()
        teacher, student, weight = teacher_logits, student_logits, self.hard_label_weight
        if self.not_true:
            teacher, student = without_true_class(teacher, labels), without_true_class(student, labels)
        divergence = divergence_of(self.divergence)
        distance = divergence(teacher, student, self.temperature)
        return distance if weight == 0 else (1 - weight) * distance + weight * self._cross_entropy(student_logits, labels, weights)

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the mean cross-entropy of the labels, bootstrapped; 0 for an empty batch, where it would be NaN."""
        if len(labels) == 0:
            return logits.sum()
        loss = _weighted(logits, labels, weights)
        if self.bootstrap == 0:
            return loss
        return (1 - self.bootstrap) * loss + self.bootstrap * _weighted(logits, logits.detach().argmax(1), weights)


def _weighted(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (F.cross_entropy(logits, labels, reduction="none") * weights).mean()


def _chosen(weights: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if weights is None else weights[rows]


@contextmanager
def recurrent_gradients(module: nn.Module) -> Iterator[None]:
    """Let cuDNN take gradients through the recurrent modules of a network that is in eval mode.

    cuDNN computes an LSTM, a GRU or an RNN backwards only if it is in train mode. Their own dropout
    is off meanwhile; without it, train mode and eval mode compute the same.
    """
    recurrent = {each: (each.training, each.dropout) for each in module.modules() if isinstance(each, nn.RNNBase)}
    for each in recurrent:
        each.training, each.dropout = True, 0.0
    try:
        yield
    finally:
        for each, (training, dropout) in recurrent.items():
            each.training, each.dropout = training, dropout


def distillation_gradient(
    module: nn.Module,
    examples: Examples,
    teacher: Tensor | nn.Module | None,
    order: Tensor,
    step_loss: StepLoss,
    device: torch.device,
    check: Check = never_stop,
    schema: Schema | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    task: LearningTask[Any] = CLASSIFICATION,
) -> tuple[Tensors, float]:
    """Compute the gradient of the mean distillation loss at the module's weights: g_k in the paper.

    The student runs in eval mode, so the gradient depends on the weights alone: not on dropout, nor
    on BatchNorm statistics of the batch. Recurrent modules alone are in train mode, without their
    dropout (`recurrent_gradients`). The examples are taken in pieces, whose gradients are
    summed with their sizes as weights; memory is that of one piece. `.grad` is neither read nor
    written.

    Args:
        module: the student, on `device`; weights, buffers and training flags are as before afterwards.
        examples: the client's training examples, n of them; those without a label are labelled `UNLABELLED`.
        teacher: float32 [n, ...] from `teacher_logits`; or a `frozen` network on `device`, which runs on the
            inputs that the student sees, for examples whose reads are random. None only if the loss needs none.
        order: int64 [m], positions of this step's examples; one that occurs twice counts twice, and one
            that cannot be used does not count.
        step_loss: the loss.
        device: where to compute.
        batch_size: examples in one piece.
        check: called before every piece; what it raises ends the computation.
        schema: the parameters to take it with respect to; by default `Schema.of_module(module).trainable`.
        task: says what outputs are.

    Returns:
        The gradient, on the CPU, with that schema (zero for a parameter that the loss does not depend
        on), and the mean loss.

    Raises:
        ValueError: `order` is empty, or the teacher is missing or has not one row for each example.
        DataError: none of the examples can be used.
    """
    if len(order) == 0:
        raise ValueError("a distillation gradient needs at least one example")
    if isinstance(teacher, Tensor) and len(teacher) != len(examples):
        raise ValueError(f"the teacher has logits for {len(teacher)} examples, not for {len(examples)}")
    schema = Schema.of_module(module).trainable if schema is None else schema
    named = dict(module.named_parameters(remove_duplicate=False))
    parameters = [named[name] for name in schema.by_name]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    mean_loss, used = 0.0, 0
    with eval_mode(module), recurrent_gradients(module), torch.enable_grad():
        for index, inputs, targets in device_for(device).batches(examples, order, batch_size):
            check()
            share = len(index) / len(order)
            used += len(index)
            soft = None if teacher is None else soft_labels(teacher, index, inputs, task)
            loss = step_loss.loss(task.outputs(module, inputs), soft, targets)
            mean_loss += share * loss.item()
            if loss.requires_grad:  # False if all parameters that the loss depends on are frozen
                for total, gradient in zip(totals, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True):
                    total.add_(gradient, alpha=share)
    if used < len(order):
        mean_loss *= _of_used(totals, len(order), used)
    return Tensors.copy_of(schema, dict(zip(schema.by_name, totals, strict=True))), mean_loss


def _of_used(totals: list[Tensor], drawn: int, used: int) -> float:
    """Make sums of shares of the drawn examples means over those that could be used; return the factor. Raises DataError."""
    if used == 0:
        raise DataError(f"none of the {drawn} examples of a step can be used")
    for total in totals:
        total.mul_(drawn / used)
    return drawn / used
