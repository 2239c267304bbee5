"""FedDKD: FedAvg, then J steps that distil all local models into the average, without data on the server.

Li, Chen, Lu: FedDKD: Federated Learning with Decentralized Knowledge Distillation. arXiv 2205.00706;
Applied Intelligence 53, 2023.

The parameter average of locally trained networks is not the average of the functions they compute. The
steps move the student v from the former towards the latter, min_v sum_k p_k E_{D_k} KL(f_{w_k} || f_v):
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
from feddkd.algorithms.base import Algorithm, ClientHalf, Cohort
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
    whole_model,
)
from feddkd.tensors import Schema, Tensors

TEACHER = "teacher"
TEACHER_ENTROPY = "teacher_entropy"
"""Mean entropy of the teachers' predictions, in the answers to a round's first step."""


class FedDKDClient(FedAvgClient):
    """Keeps its local model as frozen teacher; answers each step with the gradient of its distillation loss."""

    step_exchange: ClassVar[str] = "dkd_step"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distillation = distillation_of(site.config.dkd)
        self._cached_logits: tuple[str, Tensor] | None = None

    def local_train(self, task: Task) -> Reply:
        """Answers with the update and, beside it, with what the first step would report as its loss at w_t."""
        reply = super().local_train(task)
        if self.distillation.needs_teacher:
            # Kept before the answer leaves, so that a client that crashes later still has its teacher.
            self.site.store.save(TEACHER, Tensors.of_module(self.site.module), label=self._teacher_label(task))
        if not chooses_start(self.site.config.dkd):
            return reply
        # A draw of examples belongs to an exchange: these are the first step's.
        first_step = dataclasses.replace(task, id=dataclasses.replace(task.id, name=self.step_exchange, step=0))
        _, loss, examples = self._gradient(first_step)
        assert reply.contribution is not None
        return dataclasses.replace(
            reply,
            contribution=reply.contribution.beside(previous_loss=as_scalar(loss)),
            gradient_evaluations=reply.gradient_evaluations + examples,
        )

    def dkd_step(self, task: Task) -> Reply:
        gradient, loss, examples = self._gradient(task)
        wanted = task.id.step == 0 and self.distillation.needs_teacher
        metrics = {TEACHER_ENTROPY: mean_entropy(self._teacher_logits(task))} if wanted else {}
        return Reply(contribution=self._step_answer(gradient, loss), loss=loss, gradient_evaluations=examples, metrics=metrics)

    def _step_answer(self, gradient: Tensors, loss: float) -> Tensors:
        """The gradient and, where the server decides by it, the loss beside it."""
        return gradient.beside(loss=as_scalar(loss)) if decides_by_loss(self.site.config.dkd) else gradient

    def _gradient(self, task: Task) -> tuple[Tensors, float, int]:
        """Gradient and loss at the broadcast model, on the examples of this step; and how many those are."""
        teacher = self._teacher_logits(task) if self.distillation.needs_teacher else None
        task.payload.load_into(self.site.module)
        order = self._draw_batch(task)
        site = self.site
        gradient, loss = distillation_gradient(
            site.module, site.examples, teacher, order, self.distillation, site.device, check=task.check_cancelled
        )
        return gradient, loss, len(order)

    def _draw_batch(self, task: Task) -> Tensor:
        """The examples of one step: `dkd.batch_size` drawn without replacement, or all of them; int64 [B]."""
        total, wanted = len(self.site.examples), self.site.config.dkd.batch_size
        if wanted == 0 or wanted >= total:
            return torch.arange(total)
        return torch.randperm(total, generator=self.site.generator(task.id))[:wanted]

    def _teacher_logits(self, task: Task) -> Tensor:
        """Logits of the frozen teacher on all local examples, computed once a round; float32 [n, classes]."""
        label = self._teacher_label(task)
        if self._cached_logits is None or self._cached_logits[0] != label:
            teacher = self.site.store.load(TEACHER, self.site.model_schema, label=label)
            if teacher is None:
                raise ClientError(f"no teacher of round {task.id.round}: this client did not train in it")
            teacher.load_into(self.site.module)
            logits = teacher_logits(self.site.module, self.site.examples, self.site.device, check=task.check_cancelled)
            self._cached_logits = label, logits
        return self._cached_logits[1]

    @staticmethod
    def _teacher_label(task: Task) -> str:
        return f"{task.id.run_id}/{task.id.round}/{task.id.attempt}"


class FedDKD(Algorithm):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k g_k); w_{t+1} = v_J.

    With `dkd.start = "better"`, v_0 = w_t where that has the lower loss: with one class a client, the average of local
    models can be worse than the model they all started from, and every step would go into mending it. Clients measure
    w_t, which they hold anyway, for one number; the average's loss comes with the first step's gradient. Each is the mean over
    the clients that answered, so a client lost in between can tip the choice; and w_t is measured with its own buffers,
    but starts over with the average's, since statistics of data are not what a model goes back to.
    With `dkd.tail` > 0, w_{t+1} is the mean of the last students instead of v_J (`TailMean`).
    """

    client_half: ClassVar[type[ClientHalf]] = FedDKDClient
    step_exchange: ClassVar[str] = FedDKDClient.step_exchange

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dkd = config.dkd
        self.server_optimizer = ServerOptimizer(dkd.optimizer, dkd.lr, keep_state=dkd.optimizer_state == "keep")

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        dkd = config.dkd
        return {
            "local_train": ExchangeKind(answer=model_and(previous_loss=scalar) if chooses_start(dkd) else whole_model),
            cls.step_exchange: ExchangeKind(answer=gradient_and_loss if decides_by_loss(dkd) else trainable_parameters),
        }

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        dkd = self.config.dkd
        self.server_optimizer.start_round()
        student, previous_loss = self._start(model, cohort.exchange("local_train", model))
        tail, plateau = TailMean(first_step=dkd.steps - round(dkd.tail * dkd.steps)), Plateau(dkd.patience)
        for step in range(dkd.steps):
            gradient, loss = self._mean_gradient(cohort, student, step)
            if step == 0 and previous_loss < loss:
                student = with_parameters_of(model, student)  # start over from the previous global model
                continue
            student = self.server_optimizer.step(student, gradient)
            tail.add(step, student)
            if plateau.reached(loss):
                break
        return tail.of(student)

    def _start(self, model: Tensors, answer: Tensors) -> tuple[Tensors, float]:
        """Where the steps start, and the loss of the previous global model, infinite where that is not to be compared."""
        average = model + answer.select(model.schema)
        if chooses_start(self.config.dkd):
            loss = read_scalar(answer, "previous_loss")
            return average, loss if loss >= 0 else math.inf  # no loss is negative, whatever a client says
        return with_parameters_of(model, average) if self.config.dkd.start == "previous" else average, math.inf

    def _mean_gradient(self, cohort: Cohort, student: Tensors, step: int) -> tuple[Tensors, float]:
        """The clients' mean gradient, shortened to `dkd.clip_norm`, and their mean loss, infinite where nothing depends on it."""
        gradient, loss = cohort.exchange(self.step_exchange, student, step=step), math.inf
        if decides_by_loss(self.config.dkd):
            gradient, loss = gradient.select(student.schema.trainable), read_scalar(gradient, "loss")
        return clipped(gradient, self.config.dkd.clip_norm), loss

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.server_optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.server_optimizer.load_state_dict(state)


def distillation_of(dkd: DKDConfig) -> Distillation:
    """The loss of a DKD step, as `[dkd]` describes it."""
    return Distillation(dkd.divergence, dkd.temperature, dkd.hard_label_weight, dkd.not_true, dkd.correct_teacher)


def chooses_start(dkd: DKDConfig) -> bool:
    """Whether clients measure the previous global model, so that the steps may start over from it; one step is not taken twice."""
    return dkd.start == "better" and dkd.steps > 1


def decides_by_loss(dkd: DKDConfig) -> bool:
    """Whether the mean loss of a step decides what the server does next."""
    return chooses_start(dkd) or dkd.patience > 0


def gradient_and_loss(model: Schema) -> Schema:
    """What a gradient is made of, and beside it one number."""
    return trainable_parameters(model).beside({"loss": scalar(model)})


def with_parameters_of(model: Tensors, average: Tensors) -> Tensors:
    """The trainable parameters of `model` with the buffers of `average`."""
    return average.replace(model.select(model.schema.trainable))
