"""Compute a client's gradients of the distillation: keep its teacher, draw its examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from feddkd.algorithms.site import Site
from feddkd.config import DKDConfig
from feddkd.dkd import Distillation, distillation_gradient, mean_entropy, teacher_logits
from feddkd.dkd.scope import in_scope
from feddkd.errors import ClientError
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors

TEACHER = "teacher"


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


class Distiller:
    """Distils a client's local model, its teacher, into the models that the server broadcasts.

    Attributes:
        distillation: the loss.

    Raises:
        ConfigError: `dkd.scope` names a parameter that the network does not have.
    """

    def __init__(self, site: Site, distillation: Distillation) -> None:
        self.site = site
        self.distillation = distillation
        self._moved = in_scope(site.model_schema, site.config.dkd.scope)
        self._cached_logits: tuple[str, Tensor] | None = None

    def cache_teacher(self, task: Task) -> None:
        """Make the network as it is now, just trained, this round's teacher, in this process."""
        if self.distillation.needs_teacher:
            self._cached_logits = self._label(task), self._logits(task)

    def store_teacher(self, task: Task) -> None:
        """Store the network as it is now as this round's teacher; it survives a crash once this returns."""
        if self.distillation.needs_teacher:
            self.site.store.save(TEACHER, Tensors.of_module(self.site.module), label=self._label(task))

    def teacher_entropy(self, task: Task) -> float:
        """Compute the mean entropy in nats of the teacher's predictions. Raises ClientError like `gradient`."""
        return mean_entropy(self._teacher_logits(task))

    def gradient(self, task: Task, draw: ExchangeId | None = None) -> StepGradient:
        """Compute the gradient at the broadcast model.

        Args:
            draw: the exchange whose examples are drawn, where it is not the task's own.

        Raises:
            ClientError: this client has no teacher of this round.
        """
        site = self.site
        teacher = self._teacher_logits(task) if self.distillation.needs_teacher else None
        task.payload.load_into(site.module)
        order = self._draw_batch(draw or task.id)
        gradient, loss = distillation_gradient(
            site.module,
            site.examples,
            teacher,
            order,
            self.distillation,
            site.device,
            check=task.check_cancelled,
            schema=self._moved,
        )
        return StepGradient(gradient, loss, len(order))

    def gradient_of_new_teacher(self, task: Task) -> StepGradient:
        """Compute the gradient at the broadcast model with the network as it is now, just trained, as teacher.

        For a round that takes one gradient: the teacher sees its examples alone, and is not kept.
        """
        site, check = self.site, task.check_cancelled
        drawn = site.examples.subset(self._draw_batch(task.id))
        teacher = teacher_logits(site.module, drawn, site.device, check=check) if self.distillation.needs_teacher else None
        task.payload.load_into(site.module)
        order = torch.arange(len(drawn))
        gradient, loss = distillation_gradient(
            site.module, drawn, teacher, order, self.distillation, site.device, check=check, schema=self._moved
        )
        return StepGradient(gradient, loss, len(order))

    def _draw_batch(self, exchange: ExchangeId) -> Tensor:
        """Draw `dkd.batch_size` examples without replacement, or take all; int64 [B]."""
        total, batch_size = len(self.site.examples), self.site.config.dkd.batch_size
        if batch_size == 0 or batch_size >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=self.site.generator(exchange))[:batch_size]

    def _teacher_logits(self, task: Task) -> Tensor:
        """Compute the teacher's logits on all local examples, once a round; float32 [n, C]."""
        site, label = self.site, self._label(task)
        if self._cached_logits is None or self._cached_logits[0] != label:
            teacher = site.store.load(TEACHER, site.model_schema, label=label)
            if teacher is None:
                raise ClientError(f"no teacher of round {task.id.round}: this client did not train in it")
            teacher.load_into(site.module)
            self._cached_logits = label, self._logits(task)
        return self._cached_logits[1]

    def _logits(self, task: Task) -> Tensor:
        """Compute the logits of the network as it is now on all local examples; float32 [n, C]."""
        site = self.site
        return teacher_logits(site.module, site.examples, site.device, check=task.check_cancelled)

    @staticmethod
    def _label(task: Task) -> str:
        return f"{task.id.run_id}/{task.id.round}/{task.id.attempt}"


def distillation_of(dkd: DKDConfig) -> Distillation:
    """Read the loss of a DKD step from `[dkd]`."""
    return Distillation(dkd.divergence, dkd.temperature, dkd.hard_label_weight, dkd.not_true, dkd.correct_teacher)
