"""FedDKD: FedAvg, then J steps that distil all local models into the average, without data on the server.

Li, Chen, Lu: FedDKD: Federated Learning with Decentralized Knowledge Distillation. arXiv 2205.00706;
Applied Intelligence 53, 2023.

The parameter average of locally trained networks is not the average of the functions they compute.
The steps move the student v from the first towards the second,

    min_v sum_k p_k E_{D_k} KL(f_{w_k} || f_v):

client k computes the gradient of its own term on its own data, with its local model w_k as teacher.
That needs no labels: the teacher labels an example that has none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from feddkd.aggregator.server_optimizer import ServerOptimizer
from feddkd.algorithms.base import Algorithm, ClientSide, Cohort
from feddkd.algorithms.distiller import Distiller, distillation_of, distiller_of
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.local_training import LocalTraining, train_locally
from feddkd.algorithms.site import Site
from feddkd.config import AlgorithmTable, Config, DKDConfig, NamedTable
from feddkd.dkd import known_rows
from feddkd.dkd.scope import Scope, in_scope, in_scope_and_untrained
from feddkd.dkd.steps import Plateau, TailMean, clipped
from feddkd.exchange import (
    SCALAR,
    ExchangeId,
    ExchangeKind,
    Reply,
    SchemaRule,
    Task,
    as_scalar,
    model_and,
    read_scalar,
    scalar,
    whole_model,
)
from feddkd.registry import ALGORITHMS
from feddkd.tensors import Schema, Tensors

DKD_STEP = "dkd_step"

TEACHER_ENTROPY = "teacher_entropy"
"""Metric of a round's first step: the mean entropy of the teachers' predictions."""

FIRST_STEP_LOSS = "first_step_loss"
"""The loss of a round's first step, where its gradient is the reply to local training."""

STARTED_OVER = "started_over"
"""Metric of a round that chooses its start: 1 where the average was thrown away, else 0."""

TEACHER_ACCURACY = "teacher_accuracy"
"""Metric of local training: the teacher's accuracy on the labelled examples that its site holds out."""

TEACHER_SCORE = "teacher_score"
"""Metric of local training: the teacher's `task.metric` on the same examples, where that is not accuracy."""

LABEL_DISAGREEMENT = "label_disagreement"
"""Metric of a round's first step: the share of the site's labels that are not its teacher's most likely class."""


class FedDKDConfig(AlgorithmTable):
    """FedAvg, then distillation of all local models into the average (arXiv 2205.00706); its settings are in `[dkd]`."""

    name: Literal["feddkd"] = "feddkd"


class FedDKDClient(FedAvgClient):
    """Keeps its local model as teacher; replies to a step with the gradient of its distillation."""

    step_exchange: ClassVar[str] = DKD_STEP

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distiller: Distiller = distiller_of(site)

    def local_train(self, task: Task) -> Reply:
        """Train the teacher, and reply as `dkd.start` asks: with the update, or with the first gradient.

        Beside the update that `better` chooses from travels the loss at w_t.
        """
        dkd = self.site.config.dkd
        if dkd.start == "previous":
            return self._first_step(task)
        reply = super().local_train(task)
        reply = dataclasses.replace(reply, metrics={**reply.metrics, **self._judged_teacher(task)})
        if dkd.steps > 0:
            # Stored before the reply is sent: a client that crashes later still has its teacher.
            self.distiller.store_teacher(task)
        if not chooses_start(dkd):
            return reply
        self.distiller.cache_teacher(task)
        # On the examples of the first step, whose loss the server compares it with.
        at_start = self.distiller.gradient(task, draw=self._first_draw(task))
        assert reply.contribution is not None
        return dataclasses.replace(
            reply,
            contribution=reply.contribution.beside(previous_loss=as_scalar(at_start.loss)),
            gradient_evaluations=reply.gradient_evaluations + at_start.examples,
        )

    def dkd_step(self, task: Task) -> Reply:
        reply = self.distiller.gradient(task).reply
        return dataclasses.replace(reply, metrics=self._described_teacher(task)) if task.id.step == 0 else reply

    def _first_step(self, task: Task) -> Reply:
        """Train, and reply with the gradient at w_t and the update of the buffers."""
        loss, evaluations, update, judged = self._train_teacher(task)
        first = self.distiller.gradient(task, draw=self._first_draw(task))
        schema = in_scope_and_untrained(self.site.model_schema, self.site.config.dkd.scope)
        return Reply(
            contribution=update.replace(first.gradient).select(schema).beside(**{FIRST_STEP_LOSS: as_scalar(first.loss)}),
            loss=loss,
            gradient_evaluations=evaluations + first.examples,
            metrics={FIRST_STEP_LOSS: first.loss, **judged, **self._described_teacher(task)},
        )

    def _train_teacher(self, task: Task) -> tuple[float | None, int, Tensors, dict[str, float]]:
        """Train, unless nothing of it would be used: no teacher, and no buffer that training changes.

        Returns:
            The training loss, the gradients that it took, the update, and metrics of training and of the teacher.
        """
        module, schema = self.site.module, self.site.model_schema
        if not self.distiller.step_loss.needs_teacher and not any(True for _ in module.buffers()):
            return None, 0, Tensors(schema), {}
        training, update = self._train(task)
        judged = {**training.metrics, **self._judged_teacher(task)}
        if self.site.config.dkd.steps > 1:
            self.distiller.store_teacher(task)
        self.distiller.cache_teacher(task)
        return training.loss, training.gradient_evaluations, update, judged

    def _train(self, task: Task) -> tuple[LocalTraining, Tensors]:
        """Train the shared network, or the site's own; return the update of the shared one too, zero where it was not trained."""
        own = self.site.own_teacher
        if own is None:
            training = train_locally(self.site, task, self.objective)
            return training, self.site.model() - task.payload
        training = train_locally(own.site, own.begin(task), self.objective)
        own.keep(task)
        return training, Tensors(self.site.model_schema)

    def _judged_teacher(self, task: Task) -> dict[str, float]:
        """Measure the network as it is now, just trained, on what is held out, if it is a teacher."""
        site = self.site
        if not self.distiller.step_loss.needs_teacher or len(site.held_out) == 0:
            return {}
        found = self._judged_by(self._held_out_logits(site.teacher.module, task)) if site.metrics.has_one_class else {}
        score = site.teacher.held_out_score(task)
        return found if score is None else {**found, TEACHER_SCORE: score}

    def _judged_by(self, teacher: Tensor) -> dict[str, float]:
        """Measure a teacher by its logits [n, C] on what is held out."""
        known = known_rows(teacher)
        labels = self.site.held_out.labels[known]
        return {TEACHER_ACCURACY: int((teacher[known].argmax(1) == labels).sum()) / max(len(labels), 1)}  # as exact as an Evaluation's

    def _held_out_logits(self, module: nn.Module, task: Task) -> Tensor:
        """Compute the logits of a network as it is now on what is held out, at least one example; float32 [n, C]."""
        site = self.site
        return site.outputs_of(module, site.held_out, task)

    def _described_teacher(self, task: Task) -> dict[str, float]:
        """Measure this round's teacher on the examples of the steps, if there is a teacher."""
        if not self.distiller.step_loss.needs_teacher:
            return {}
        found = {TEACHER_ENTROPY: self.distiller.teacher_entropy(task), LABEL_DISAGREEMENT: self.distiller.label_disagreement(task)}
        return {name: value for name, value in found.items() if value is not None}

    def _first_draw(self, task: Task) -> ExchangeId:
        """Name the exchange whose examples the first step is on."""
        return dataclasses.replace(task.id, name=self.step_exchange, step=0)


class _Measured(NamedTuple):
    """A student as the clients have it, with the mean gradient and loss there; infinite where none came."""

    student: Tensors
    gradient: Tensors
    loss: float


@ALGORITHMS.register("feddkd")
class FedDKD(Algorithm):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k g_k); w_{t+1} = v_J.

    `dkd.start` says what v_0 is:

    - "average" is the paper's form, as above: J + 1 exchanges.
    - "better": v_0 = w_t where that has the lower loss. With one class a client, the average of
      local models can be worse than the model they started from, and the steps would first have to
      repair it. Clients measure the loss of w_t, which they have, after local training; the
      average's loss comes with the first step's gradient. Each is the mean over the clients that
      replied, so losing a client in between can change the choice. w_t is measured with its own
      buffers; the steps start over with the buffers of the average, which are statistics of the
      data. The metric `started_over` says which rounds did.
    - "previous": v_0 = w_t always. Local training trains the teacher alone, and its reply is g of
      the first step, taken at w_t, beside the update of the buffers: J exchanges, and no local
      model travels.

    With "previous" a site may have a network of its own (`OwnTeacher`): local training trains that one from its own
    weights of the round before, and its outputs teach the student.

    With `dkd.tail` > 0, w_{t+1} is the mean of the last students instead of v_J (`TailMean`).

    A client's weight p_k in local training is its share of the labelled examples, and in a step that
    of all examples, because the teacher labels the others. With "previous" the reply to local
    training is a step's, and so is its weight.

    Attributes:
        steps_by: the exchange that steps ask for.
    """

    table: ClassVar[type[NamedTable]] = FedDKDConfig
    client_side: ClassVar[type[ClientSide]] = FedDKDClient
    step_exchange: ClassVar[str] = FedDKDClient.step_exchange
    takes_steps = True
    distils_own_teachers = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.server_optimizer = server_optimizer_of(config.dkd)
        self.steps_by = self.step_exchange

    @classmethod
    def uses_unlabelled(cls, config: Config) -> bool:
        """Tell whether a step computes on examples without a label: where there is a teacher."""
        return distillation_of(config.dkd).needs_teacher

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        dkd = config.dkd
        trained: SchemaRule = whole_model
        if dkd.start == "previous":
            trained = partial(_first_reply, scope=dkd.scope)
        elif chooses_start(dkd):
            trained = model_and(previous_loss=scalar)
        gradient = partial(in_scope, scope=dkd.scope)
        computes_on: Literal["labelled", "all"] = "all" if cls.uses_unlabelled(config) else "labelled"
        step = ExchangeKind(reply=gradient, computes_on=computes_on, contribution="gradient")
        local = ExchangeKind(reply=trained, computes_on=step.computes_on if dkd.start == "previous" else "labelled")
        return {"local_train": local, cls.step_exchange: step}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        dkd = self.config.dkd
        self.server_optimizer.start_round()
        tail = TailMean(first_step=dkd.steps - round(dkd.tail * dkd.steps))
        plateau = Plateau(dkd.patience)
        student, previous_loss = model, math.inf
        if dkd.start != "previous":
            student, model, previous_loss = self._average(cohort, model)
        for step in range(dkd.steps):
            student, gradient, loss = self._measure(cohort, student, step)
            if step == 0 and self._starts_over(cohort, previous_loss, loss):
                student = with_parameters_of(model, student)
                continue
            gradient = clipped(gradient, dkd.clip_norm)
            student = self.server_optimizer.step(student, gradient)
            student = cohort.adopt(self.steps_by, student, in_mean=tail.includes(step))
            tail.add(step, student)
            if plateau.reached(loss):
                break
        return tail.of(student)

    def _local_train(self, cohort: Cohort, model: Tensors) -> Tensors:
        """Let the clients train; returns their mean reply."""
        return cohort.exchange("local_train", model)

    def _average(self, cohort: Cohort, model: Tensors) -> tuple[Tensors, Tensors, float]:
        """Let the clients train, and average their models.

        Returns:
            The average, the model as the clients received it, and the loss of that: infinite if the
            steps shall not start over from it.
        """
        reply = self._local_train(cohort, model)
        received = cohort.sent
        average = received + reply.select(received.schema)
        loss = read_scalar(reply, "previous_loss") if chooses_start(self.config.dkd) else math.inf
        return average, received, loss if loss >= 0 else math.inf  # a negative one is not true

    def _measure(self, cohort: Cohort, student: Tensors, step: int) -> _Measured:
        """Ask for the gradient at a student; the first may be the reply to local training."""
        if step > 0 or self.config.dkd.start != "previous":
            gradient = cohort.exchange(self.steps_by, student, step=step)
            return _Measured(cohort.sent, gradient, math.inf if cohort.loss is None else cohort.loss)
        reply = self._local_train(cohort, student)
        gradient = reply.select(in_scope(student.schema, self.config.dkd.scope))
        return _Measured(with_moved_buffers(cohort.sent, reply), gradient, read_scalar(reply, FIRST_STEP_LOSS))

    def _starts_over(self, cohort: Cohort, previous_loss: float, loss: float) -> bool:
        """Decide whether the steps go on from the previous model; the round's record says so."""
        if not chooses_start(self.config.dkd):
            return False
        cohort.note(STARTED_OVER, float(previous_loss < loss))
        return previous_loss < loss

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.server_optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.server_optimizer.load_state_dict(state)


def server_optimizer_of(dkd: DKDConfig) -> ServerOptimizer:
    """Build the optimizer that `[dkd]` describes."""
    keep_state = dkd.optimizer_state == "keep"
    return ServerOptimizer(dkd.optimizer, dkd.lr, keep_state, beta2=dkd.beta2, growth_limit=dkd.growth_limit)


def _first_reply(model: Schema, scope: Scope) -> Schema:
    """Describe the reply to local training that is the first step's: gradient, buffers, loss."""
    return in_scope_and_untrained(model, scope).beside({FIRST_STEP_LOSS: SCALAR})


def chooses_start(dkd: DKDConfig) -> bool:
    """Tell whether the steps may start over from the previous global model."""
    return dkd.start == "better" and dkd.steps > 1


def with_parameters_of(model: Tensors, average: Tensors) -> Tensors:
    """Combine the trainable parameters of `model` with the buffers of `average`."""
    return average.replace(model.select(model.schema.trainable))


def with_moved_buffers(model: Tensors, update: Tensors) -> Tensors:
    """Add an update to everything in `model` but its trainable parameters."""
    trainable = model.schema.trainable
    buffers = Schema(spec for spec in model.schema.specs if spec.name not in trainable.by_name)
    return model.replace(model.select(buffers) + update.select(buffers)) if len(buffers) else model
