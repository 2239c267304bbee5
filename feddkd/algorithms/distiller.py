"""Compute a client's gradients of the steps: keep its teacher, draw its examples."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from feddkd.algorithms.site import Site
from feddkd.config import DKDConfig
from feddkd.data.examples import Examples
from feddkd.dkd import Distillation, can_be_kept, distillation_gradient, frozen, known_rows, mean_entropy, step_loss
from feddkd.dkd.scope import in_scope
from feddkd.errors import ClientError
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.failpoints import failpoint
from feddkd.tasks.base import UNLABELLED, StepLoss
from feddkd.tasks.categorical import CategoricalTask
from feddkd.tensors import Tensors

TEACHER = "teacher"

HARD_LABELS = Distillation(divergence="kl", temperature=1.0, hard_label_weight=1.0)


class StepGradient(NamedTuple):
    """A client's gradient of one step.

    Attributes:
        gradient: of the mean loss at the broadcast model.
        loss: that mean.
        examples: how many it is the mean of.
    """

    gradient: Tensors
    loss: float
    examples: int

    @property
    def reply(self) -> Reply:
        """The gradient as the reply to a step."""
        return Reply(self.gradient, self.loss, gradient_evaluations=self.examples)


class Distiller:
    """Distils a client's local model, its teacher, into the models that the server broadcasts.

    The teacher is the network that was just trained: `Site.teacher`.

    A loss without a teacher goes by labels, or by what the broadcast model predicts.

    Attributes:
        step_loss: the loss.
        examples: what steps draw from.

    Raises:
        ConfigError: `dkd.scope` names a parameter that the network does not have.
    """

    def __init__(self, site: Site, step_loss: StepLoss, examples: Examples) -> None:
        self.site = site
        self.step_loss = step_loss
        self.examples = examples
        self._moved = in_scope(site.model_schema, site.config.dkd.scope)
        self._cached: tuple[str, Tensor | nn.Module] | None = None

    def cache_teacher(self, task: Task) -> None:
        """Make the network as it is now, just trained, this round's teacher, in this process."""
        if self.step_loss.needs_teacher:
            self._cached = self._label(task), self._kept_teacher(task, self.examples)

    def store_teacher(self, task: Task) -> None:
        """Store the network as it is now as this round's teacher; it survives a crash once this returns."""
        if self.step_loss.needs_teacher:
            failpoint("client.teacher.before_save")
            self.site.store.save(TEACHER, self.site.teacher.model(), label=self._label(task))
            self._cached = None  # of the same attempt, if the server begins it again: after a round that went otherwise
            failpoint("client.teacher.after_save")

    def teacher_entropy(self, task: Task) -> float | None:
        """Compute the mean entropy in nats of the teacher's predictions; None where they are no probabilities of classes.

        Raises ClientError like `gradient`.
        """
        learning = self.site.learning_task
        if not isinstance(learning, CategoricalTask):
            return None
        outputs = self._teacher_outputs(task)
        return None if outputs is None else mean_entropy(learning.logit_rows(outputs[known_rows(outputs)]))

    def label_disagreement(self, task: Task) -> float | None:
        """Compute the share of labelled examples whose label is not the teacher's most likely class.

        None without a labelled example, and where an example has not one class. Raises ClientError like `gradient`.
        """
        labels = self.examples.labels
        labelled = labels != UNLABELLED
        if not labelled.any() or not self.site.metrics.has_one_class:
            return None
        logits = self._teacher_outputs(task)
        assert logits is not None
        labelled &= known_rows(logits)
        if not labelled.any():
            return None
        predicted = logits[labelled].argmax(1)
        return int((predicted != labels[labelled]).sum()) / len(predicted)

    def gradient(self, task: Task, draw: ExchangeId | None = None) -> StepGradient:
        """Compute the gradient at the broadcast model.

        Args:
            draw: the exchange whose examples are drawn, where it is not the task's own.

        Raises:
            ClientError: this client has no teacher of this round.
        """
        teacher = self._teacher(task) if self.step_loss.needs_teacher else None
        task.payload.load_into(self.site.module)
        return self._gradient(task, self.examples, teacher, self._draw_batch(draw or task.id))

    def gradient_of_new_teacher(self, task: Task) -> StepGradient:
        """Compute the gradient at the broadcast model with the network as it is now, just trained, as teacher.

        For a round that takes one gradient: the teacher sees its examples alone, and is not kept.
        """
        drawn = self.examples.subset(self._draw_batch(task.id))
        teacher = self._kept_teacher(task, drawn) if self.step_loss.needs_teacher else None
        task.payload.load_into(self.site.module)
        return self._gradient(task, drawn, teacher, torch.arange(len(drawn)))

    def _gradient(self, task: Task, examples: Examples, teacher: Tensor | nn.Module | None, order: Tensor) -> StepGradient:
        """Compute the gradient at the network's weights on the examples that `order` names."""
        gradient, loss = distillation_gradient(
            self.site.module,
            examples,
            teacher,
            order,
            self.step_loss,
            self.site.device,
            check=task.check_cancelled,
            schema=self._moved,
            batch_size=self.site.eval_batch_size,
            task=self.site.learning_task,
        )
        return StepGradient(gradient, loss, len(order))

    def _draw_batch(self, exchange: ExchangeId) -> Tensor:
        """Draw `dkd.batch_size` examples without replacement, or take all; int64 [B]."""
        total, batch_size = len(self.examples), self.site.config.dkd.batch_size
        if batch_size == 0 or batch_size >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=self.site.generator(exchange))[:batch_size]

    def _teacher(self, task: Task) -> Tensor | nn.Module:
        """Find this round's teacher: its outputs on all local examples, float32 [n, ...], or the network itself."""
        site, label = self.site, self._label(task)
        if self._cached is None or self._cached[0] != label:
            teacher = site.store.load(TEACHER, site.teacher.model_schema, label=label)
            if teacher is None:
                raise ClientError(f"no teacher of round {task.id.round}: this client did not train in it")
            teacher.load_into(site.teacher.module)
            self._cached = label, self._kept_teacher(task, self.examples)
        return self._cached[1]

    def _kept_teacher(self, task: Task, examples: Examples) -> Tensor | nn.Module:
        """Keep of the network as it is now what steps need: its outputs, or a copy of it.

        A copy where an example is another one at each read, and where outputs cannot be kept.
        """
        if examples.is_random or not self._can_be_kept(examples):
            return frozen(self.site.teacher.module)
        return self.site.outputs_of(self.site.teacher.module, examples, task)

    def _can_be_kept(self, examples: Examples) -> bool:
        """Tell whether outputs are tensors that are not too large; logits of one class an example are."""
        site = self.site
        return site.metrics.has_one_class or can_be_kept(site.teacher.module, examples, site.device, site.learning_task)

    def _teacher_outputs(self, task: Task) -> Tensor | None:
        """Compute the teacher's outputs on all local examples, float32 [n, ...]; None where they are too many to keep."""
        teacher = self._teacher(task)
        if isinstance(teacher, Tensor):
            return teacher
        return self.site.outputs_of(teacher, self.examples, task) if self._can_be_kept(self.examples) else None

    @staticmethod
    def _label(task: Task) -> str:
        return f"{task.id.run_id}/{task.id.round}/{task.id.attempt}"


def distillation_of(dkd: DKDConfig) -> Distillation:
    """Read the loss of a DKD step from `[dkd]`."""
    return Distillation(
        dkd.divergence, dkd.temperature, dkd.hard_label_weight, dkd.not_true, dkd.correct_teacher, dkd.confidence, dkd.bootstrap
    )


def distiller_of(site: Site) -> Distiller:
    """Build what distils as `[dkd]` says, from all examples of a site, or from the labelled ones if no teacher is used.

    Raises:
        ConfigError: `[dkd]` asks for what the task does not have.
    """
    loss = step_loss(site.learning_task, distillation_of(site.config.dkd))
    return Distiller(site, loss, site.examples if loss.needs_teacher else site.labelled)


def labels_distiller(site: Site) -> Distiller:
    """Build what takes gradients by the labels alone; of the loss's keys in `[dkd]` only `bootstrap` counts."""
    loss = dataclasses.replace(HARD_LABELS, bootstrap=site.config.dkd.bootstrap)
    return Distiller(site, step_loss(site.learning_task, loss), site.labelled)
