"""FedDKD whose server chooses in each round what the steps go by: `dkd.teacher = "auto"`.

Where clients are alike and labels are few, local teachers are worse than the global model, and
distilling them does harm. See `teacher_choice` for the rule.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from feddkd.algorithms.base import ClientSide, Cohort
from feddkd.algorithms.distiller import labels_distiller
from feddkd.algorithms.feddkd import DKD_STEP, STARTED_OVER, FedDKD, FedDKDClient, chooses_start
from feddkd.algorithms.self_trainer import SelfTrainer, SelfTrainingConfig, own_predictions
from feddkd.algorithms.site import Site
from feddkd.algorithms.teacher_choice import COUNTS, HELD_OUT, SELF_STEP, SGD_STEP, TeacherChoice, count_held_out
from feddkd.config import Config
from feddkd.dkd import known_rows
from feddkd.exchange import ExchangeKind, Reply, SchemaRule, Task
from feddkd.tensors import Schema, Tensors

STEPS_BY = {DKD_STEP: "steps_by_teachers", SELF_STEP: "steps_by_own_predictions", SGD_STEP: "steps_by_labels"}
"""Metrics of a round: 1 for what was chosen, 0 for the others."""

FEWEST_HELD_OUT = 10
"""Held-out examples of all clients below which the choice is little better than chance."""

logger = logging.getLogger(__name__)


class ChosenTeacherClient(FedDKDClient):
    """Counts on held-out examples whether its teacher or the global model is right; replies to all three kinds of step."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        settings = SelfTrainingConfig()
        self._own_predictions = own_predictions(site, settings)
        self._self_trainer = SelfTrainer(site, settings)
        self._by_labels = labels_distiller(site)
        self._teacher = torch.empty(0)

    def local_train(self, task: Task) -> Reply:
        """Train the teacher and reply as FedDKD's client does; the counts travel beside."""
        site = self.site
        counts = torch.zeros(COUNTS.by_name["value"].shape, dtype=torch.float64)
        if len(site.held_out) > 0:
            task.payload.load_into(site.module)
            student = self._held_out_logits(site.module, task)
        reply = super().local_train(task)
        if len(site.held_out) > 0:
            known = known_rows(self._teacher) & known_rows(student)
            counts = count_held_out(self._teacher[known], student[known], site.held_out.labels[known], self._own_predictions)
        assert reply.contribution is not None
        # Divided by this client's weight in the exchange, so that the weighted mean tells the sum.
        weight = ChosenTeacher.exchanges(site.config)["local_train"].weight(site.counts, site.config.scheduler.weights)
        shares = Tensors.copy_of(COUNTS, {"value": counts / weight})
        return dataclasses.replace(reply, contribution=reply.contribution.beside(**{HELD_OUT: shares}))

    def self_step(self, task: Task) -> Reply:
        return self._self_trainer.gradient(task).reply

    def sgd_step(self, task: Task) -> Reply:
        return self._by_labels.gradient(task).reply

    def _judged_by(self, teacher: Tensor) -> dict[str, float]:
        self._teacher = teacher
        return super()._judged_by(teacher)


class ChosenTeacher(FedDKD):
    """FedDKD's round, whose steps ask for the exchange that was chosen after local training.

    Steps that do not go by the local teachers start at the previous model, unless `dkd.start` is
    "average"; the first gradient is then not used.
    """

    client_side: ClassVar[type[ClientSide]] = ChosenTeacherClient

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._choice = TeacherChoice()
        self._warned = False

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        kinds = super().exchanges(config)
        local, step = kinds["local_train"], kinds[DKD_STEP]
        assert local.reply is not None
        return {
            "local_train": dataclasses.replace(local, reply=partial(_with_counts, rule=local.reply)),
            DKD_STEP: step,
            SELF_STEP: step,
            SGD_STEP: dataclasses.replace(step, computes_on="labelled"),
        }

    def _local_train(self, cohort: Cohort, model: Tensors) -> Tensors:
        """Let the clients train, and decide what this round's steps go by; the round's record says so."""
        reply = super()._local_train(cohort, model)
        counts = reply.part(HELD_OUT, COUNTS)["value"] * math.fsum(cohort.weights)
        self._warn_of_few(float(counts[0]))
        self.steps_by = self._choice.choose(counts, self._most_counted(cohort))
        for exchange, metric in STEPS_BY.items():
            cohort.note(metric, float(exchange == self.steps_by))
        return reply

    def _warn_of_few(self, held_out: float) -> None:
        """Say once that a choice by so few held-out examples is little better than chance."""
        if held_out < FEWEST_HELD_OUT and not self._warned:
            self._warned = True
            logger.warning('dkd.teacher = "auto" goes by %d held-out examples of all clients; raise data.holdout', round(held_out))

    def _most_counted(self, cohort: Cohort) -> float:
        """Limit the sum of counts to what honest clients hold out, by how many examples they train on."""
        share = self.config.data.holdout / (1 - self.config.data.holdout)
        return len(cohort.weights) * (cohort.most_examples * max(1.0, share) + 1)

    def _starts_over(self, cohort: Cohort, previous_loss: float, loss: float) -> bool:
        if self.steps_by == DKD_STEP:
            return super()._starts_over(cohort, previous_loss, loss)
        if chooses_start(self.config.dkd):
            cohort.note(STARTED_OVER, 1.0)
        return self.config.dkd.start != "average"

    def state_dict(self) -> Mapping[str, Tensor]:
        return {**super().state_dict(), HELD_OUT: self._choice.state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._choice = TeacherChoice(state.get(HELD_OUT))
        super().load_state_dict({name: value for name, value in state.items() if name != HELD_OUT})


def _with_counts(model: Schema, rule: SchemaRule) -> Schema:
    """Add the counts of held-out examples to what else travels."""
    return rule(model).beside({HELD_OUT: COUNTS})
