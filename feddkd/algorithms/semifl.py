"""SemiFL: FedAvg on the labels, alternating with FedAvg on what the average then predicts with confidence.

Diao, Ding, Tarokh: SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training.
NeurIPS 2022, arXiv 2106.01432.

The paper alternates two phases: the server trains on labels that it holds, then clients without
labels train on the new model's predictions. What stays is that the model which labels has just been
trained on labels, that it labels once and not again in every batch, and both losses. What differs:

- Each client holds a few labels, and the server none. Local training on these, averaged, stands in
  for the server's.
- Clients are weighed by their examples. The paper weighs them alike and leaves out those without a
  confident prediction; here these take part with an update of zero.
- There are as many local steps as an epoch over all examples of the client takes, however few of
  them are confident. The paper's epoch is over the confident ones.
- Images are not augmented weakly, and strongly only by shifts and flips (`augmentation.shifted`),
  where the paper uses RandAugment: no other algorithm here augments, and all should see the same
  data. `algorithm.augment = false` leaves that out, too.
- No gradient is clipped, unless `training.clip_norm` says so, and the server has no momentum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from feddkd.algorithms.augmentation import shifted
from feddkd.algorithms.base import Algorithm, ClientSide, Cohort, own_settings
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.one_example import can_train_on_one
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import AlgorithmTable, Config
from feddkd.data.examples import Examples
from feddkd.dkd import OwnPredictions, known_rows
from feddkd.exchange import ExchangeKind, Reply, Task
from feddkd.registry import ALGORITHMS
from feddkd.tasks.base import UNLABELLED
from feddkd.tensors import Tensors

CONFIDENT_SHARE = "confident_share"
"""Metric of `pseudo_train`: the share of a client's examples without a label that the broadcast model is sure of."""


class SemiFLConfig(AlgorithmTable):
    """FedAvg on the labels, alternating with FedAvg on the average's own confident predictions (arXiv 2106.01432)."""

    name: Literal["semifl"] = "semifl"
    confidence: float = Field(0.95, ge=0, lt=1, description="probability above which a prediction serves as a label")
    beta: float = Field(0.75, gt=0, description="shares of two mixed examples are drawn from Beta(beta, beta)")
    mix_weight: float = Field(1.0, ge=0, description="weight of the loss on mixed examples")
    augment: bool = Field(True, description="shift and flip images at random in the loss on confident examples")


class FixAndMix(LocalObjective):
    """CE(f(a(x)), y) + mix_weight (l CE(f(m), y) + (1 - l) CE(f(m), y')), with m = l x + (1 - l) x' and l ~ Beta(b, b).

    (x, y) is a batch of confident examples with their predicted classes, a the strong augmentation.
    (x', y') is a batch of the same size, drawn with replacement from all examples without a label:
    y' is the most likely class, confident or not. l is drawn once a batch.
    """

    table = SemiFLConfig

    def __init__(self, site: Site, settings: SemiFLConfig, pool: Examples) -> None:
        """Build the objective of one exchange.

        Args:
            site: its labelled examples are the confident ones.
            pool: all examples without a label, with the classes that were predicted.
        """
        super().__init__(site, settings)
        self._settings = settings
        self._pool = pool

    def begin(self, task: Task) -> None:
        # Apart from the order of the examples, which local training draws from the task's own generator.
        self._generator = self.site.generator(dataclasses.replace(task.id, name=f"{task.id.name}/mix"))
        self._shares = np.random.default_rng(int(torch.randint(2**62, (), generator=self._generator)))

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        settings, module, task = self._settings, self.site.module, self.site.learning_task
        strong = shifted(inputs, self._generator) if settings.augment else inputs
        fix = F.cross_entropy(task.outputs(module, strong), labels)
        if settings.mix_weight == 0:
            return fix
        drawn = torch.randint(len(self._pool), (len(labels),), generator=self._generator)
        others, other_labels = (part.to(self.site.device) for part in self._pool.gather(drawn))
        share = self._shares.beta(settings.beta, settings.beta)
        logits = task.outputs(module, share * inputs + (1 - share) * others)
        mix = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, other_labels)
        return fix + settings.mix_weight * mix


class SemiFLClient(FedAvgClient):
    """Trains on its labels, as FedAvg's client does; then on what the broadcast model predicts."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._settings = own_settings(site.config, SemiFLConfig)
        self._predictions = OwnPredictions(self._settings.confidence)

    def pseudo_train(self, task: Task) -> Reply:
        """Label, train, and reply with the update; it is zero where the broadcast model is sure of nothing."""
        site = self.site
        if len(site.unlabelled) == 0:
            return self._zero()
        logits = self._logits(task)
        sure, predicted = self._predictions.predictions(logits)
        confident = self._confident(sure, predicted)
        found = {CONFIDENT_SHARE: float(sure.float().mean())}
        if not _can_train(confident):
            return self._zero(found)
        known = known_rows(logits).nonzero().flatten()
        pool = site.unlabelled.with_labels(predicted).subset(known)
        objective = FixAndMix(confident, self._settings, pool)
        training = train_locally(confident, task, objective)
        update = site.model() - task.payload.select(site.model_schema)
        losses = 1 if self._settings.mix_weight == 0 else 2  # of as many examples each
        return Reply(
            contribution=update,
            loss=training.loss,
            gradient_evaluations=losses * training.gradient_evaluations,
            metrics={**found, **training.metrics, **self.metrics(update)},
        )

    def _zero(self, found: Mapping[str, float] | None = None) -> Reply:
        """Reply with an update of zero and with what was found."""
        update = Tensors(self.site.model_schema)
        return Reply(update, metrics={**(found or {}), **self.metrics(update)})

    def _logits(self, task: Task) -> Tensor:
        """Compute the broadcast model's logits of the examples without a label, [m, C]; NaN where one cannot be used.

        They label the examples once, from one view each where reads are random.
        """
        site = self.site
        task.payload.load_into(site.module)
        return site.outputs_of(site.module, site.unlabelled, task)

    def _confident(self, sure: Tensor, predicted: Tensor) -> Site:
        """Make the site where the confident examples have their predicted classes for labels, and no other has one.

        It keeps the others, because they count for the number of local steps.
        """
        labels = torch.full_like(self.site.examples.labels, UNLABELLED)
        labels[self.site.examples.labels == UNLABELLED] = predicted.masked_fill(~sure, UNLABELLED)
        return dataclasses.replace(self.site, examples=self.site.examples.with_labels(labels))


def _can_train(site: Site) -> bool:
    """Tell whether there is a batch to train on."""
    return len(site.labelled) > 1 or (len(site.labelled) == 1 and can_train_on_one(site))


@ALGORITHMS.register("semifl")
class SemiFL(Algorithm):
    """v = w_t + sum_k p_k (w_k - w_t), w_k trained on labels; w_{t+1} = v + sum_k q_k (v_k - v), v_k on v's predictions.

    p_k is the client's share of the labelled examples, q_k that of all.
    """

    table = SemiFLConfig
    needs_labels = True
    client_side: ClassVar[type[ClientSide]] = SemiFLClient

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind(), "pseudo_train": ExchangeKind(computes_on="all")}

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        fine_tuned = cohort.exchange("local_train", model)
        update = cohort.exchange("pseudo_train", cohort.sent + fine_tuned)
        return cohort.sent + update
