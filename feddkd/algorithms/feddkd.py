"""FedDKD: FedAvg, then J steps that distil all local models into the average, without data on the server.

Li, Chen, Lu: FedDKD: Federated Learning with Decentralized Knowledge Distillation. arXiv 2205.00706;
Applied Intelligence 53, 2023.

The parameter average of locally trained networks is not the average of the functions they compute.
The steps move the student v from the first towards the second,

    min_v sum_k p_k E_{D_k} KL(f_{w_k} || f_v):

client k computes the gradient of its own term on its own data, with its local model w_k as teacher.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from feddkd.aggregator.server_optimizer import ServerOptimizer
from feddkd.algorithms.base import Algorithm, ClientSide, Cohort
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.site import Site
from feddkd.config import Config, DKDConfig
from feddkd.dkd import Distillation, distillation_gradient, mean_entropy, teacher_logits
from feddkd.dkd.steps import Plateau, TailMean, clipped
from feddkd.errors import ClientError
from feddkd.exchange import (
    ExchangeKind,
    Reply,
    Task,
    as_scalar,
    model_and,
    read_scalar,
    scalar,
    trainable_parameters,
)
from feddkd.tensors import Tensors

TEACHER = "teacher"
TEACHER_ENTROPY = "teacher_entropy"
"""Metric of a round's first step: the mean entropy of the teachers' predictions."""


class FedDKDClient(FedAvgClient):
    """Keeps its local model as teacher; replies to a step with the gradient of its distillation."""

    step_exchange: ClassVar[str] = "dkd_step"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distillation = distillation_of(site.config.dkd)
        self._cached_logits: tuple[str, Tensor] | None = None

    def local_train(self, task: Task) -> Reply:
        """Reply with the update and, beside it, the loss at w_t: 0 where the server does not choose a start."""
        reply = super().local_train(task)
        if self.distillation.needs_teacher:
            # Stored before the reply is sent: a client that crashes later still has its teacher.
            self.site.store.save(TEACHER, Tensors.of_module(self.site.module), label=self._teacher_label(task))
        loss, examples = 0.0, 0
        if chooses_start(self.site.config.dkd):
            # On the examples of the first step, whose loss the server compares it with.
            first_step = dataclasses.replace(task.id, name=self.step_exchange, step=0)
            _, loss, examples = self._gradient(dataclasses.replace(task, id=first_step))
        assert reply.contribution is not None
        return dataclasses.replace(
            reply,
            contribution=reply.contribution.beside(previous_loss=as_scalar(loss)),
            gradient_evaluations=reply.gradient_evaluations + examples,
        )

    def dkd_step(self, task: Task) -> Reply:
        gradient, loss, examples = self._gradient(task)
        measured = task.id.step == 0 and self.distillation.needs_teacher
        metrics = {TEACHER_ENTROPY: mean_entropy(self._teacher_logits(task))} if measured else {}
        return Reply(gradient, loss, gradient_evaluations=examples, metrics=metrics)

    def _gradient(self, task: Task) -> tuple[Tensors, float, int]:
        """Compute gradient and loss at the broadcast model on this step's examples; count these."""
        site = self.site
        teacher = self._teacher_logits(task) if self.distillation.needs_teacher else None
        task.payload.load_into(site.module)
        order = self._draw_batch(task)
        gradient, loss = distillation_gradient(
            site.module,
            site.examples,
            teacher,
            order,
            self.distillation,
            site.device,
            check=task.check_cancelled,
        )
        return gradient, loss, len(order)

    def _draw_batch(self, task: Task) -> Tensor:
        """Draw `dkd.batch_size` examples without replacement, or take all; int64 [B]."""
        total, batch_size = len(self.site.examples), self.site.config.dkd.batch_size
        if batch_size == 0 or batch_size >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=self.site.generator(task.id))[:batch_size]

    def _teacher_logits(self, task: Task) -> Tensor:
        """Compute the teacher's logits on all local examples, once a round; float32 [n, C]."""
        site, label = self.site, self._teacher_label(task)
        if self._cached_logits is None or self._cached_logits[0] != label:
            teacher = site.store.load(TEACHER, site.model_schema, label=label)
            if teacher is None:
                raise ClientError(f"no teacher of round {task.id.round}: this client did not train in it")
            teacher.load_into(site.module)
            check = task.check_cancelled
            logits = teacher_logits(site.module, site.examples, site.device, check=check)
            self._cached_logits = label, logits
        return self._cached_logits[1]

    @staticmethod
    def _teacher_label(task: Task) -> str:
        return f"{task.id.run_id}/{task.id.round}/{task.id.attempt}"


class FedDKD(Algorithm):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k g_k); w_{t+1} = v_J.

    With `dkd.start = "better"`, v_0 = w_t where that has the lower loss. With one class a client,
    the average of local models can be worse than the model they started from, and the steps would
    first have to repair it. Clients measure the loss of w_t, which they have, after local training;
    the average's loss comes with the first step's gradient. Each is the mean over the clients that
    replied, so losing a client in between can change the choice. w_t is measured with its own
    buffers; the steps start over with the buffers of the average, which are statistics of the data.
    With `dkd.tail` > 0, w_{t+1} is the mean of the last students instead of v_J (`TailMean`).
    """

    client_side: ClassVar[type[ClientSide]] = FedDKDClient
    step_exchange: ClassVar[str] = FedDKDClient.step_exchange

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dkd = config.dkd
        self.server_optimizer = ServerOptimizer(dkd.optimizer, dkd.lr, keep_state=dkd.optimizer_state == "keep")

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {
            "local_train": ExchangeKind(reply=model_and(previous_loss=scalar)),
            cls.step_exchange: ExchangeKind(reply=trainable_parameters),
        }

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        dkd = self.config.dkd
        self.server_optimizer.start_round()
        student, previous_loss = self._start(model, cohort.exchange("local_train", model))
        tail = TailMean(first_step=dkd.steps - round(dkd.tail * dkd.steps))
        plateau = Plateau(dkd.patience)
        for step in range(dkd.steps):
            gradient = clipped(cohort.exchange(self.step_exchange, student, step=step), dkd.clip_norm)
            loss = math.inf if cohort.loss is None else cohort.loss
            if step == 0 and previous_loss < loss:
                student = with_parameters_of(model, student)  # the previous global model
                continue
            student = self.server_optimizer.step(student, gradient)
            student = cohort.adopt(self.step_exchange, student, in_mean=tail.includes(step))
            tail.add(step, student)
            if plateau.reached(loss):
                break
        return tail.of(student)

    def _start(self, model: Tensors, answer: Tensors) -> tuple[Tensors, float]:
        """Form the first student.

        Returns:
            The student, and the loss of `model`: infinite if the steps shall not start over from
            it.
        """
        average = model + answer.select(model.schema)
        if chooses_start(self.config.dkd):
            loss = read_scalar(answer, "previous_loss")
            return average, loss if loss >= 0 else math.inf  # a negative one is not true
        if self.config.dkd.start == "previous":
            return with_parameters_of(model, average), math.inf
        return average, math.inf

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.server_optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.server_optimizer.load_state_dict(state)


def distillation_of(dkd: DKDConfig) -> Distillation:
    """Read the loss of a DKD step from `[dkd]`."""
    return Distillation(dkd.divergence, dkd.temperature, dkd.hard_label_weight, dkd.not_true, dkd.correct_teacher)


def chooses_start(dkd: DKDConfig) -> bool:
    """Tell whether the steps may start over from the previous global model."""
    return dkd.start == "better" and dkd.steps > 1


def with_parameters_of(model: Tensors, average: Tensors) -> Tensors:
    """Combine the trainable parameters of `model` with the buffers of `average`."""
    return average.replace(model.select(model.schema.trainable))
