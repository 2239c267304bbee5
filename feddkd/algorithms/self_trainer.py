"""Compute a client's gradients of self-training: on its labels, and on what the broadcast model predicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from feddkd.algorithms.distiller import Distiller, StepGradient, labels_distiller
from feddkd.algorithms.site import Site
from feddkd.config import AlgorithmTable
from feddkd.dkd.self_training import OwnPredictions
from feddkd.exchange import ExchangeId, Task


class SelfTrainingConfig(AlgorithmTable):
    """FedDKD's exchanges with labels and the global model's own predictions in place of teachers; its settings are in `[dkd]`."""

    name: Literal["self_training"] = "self_training"
    confidence: float = Field(0.95, ge=0, lt=1, description="probability above which a prediction serves as a label")
    classes: Literal["own", "all"] = Field("own", description="what can be predicted: classes that the client has labels of, or all")


class SelfTrainer(Distiller):
    """Adds the gradient of the labelled examples and that of the others, each a mean over its own."""

    def __init__(self, site: Site, settings: SelfTrainingConfig) -> None:
        super().__init__(site, own_predictions(site, settings), site.unlabelled)
        self._labels = labels_distiller(site)

    def gradient(self, task: Task, draw: ExchangeId | None = None) -> StepGradient:
        """Compute the sum of both gradients at the broadcast model."""
        by_labels = self._labels.gradient(task, draw)
        if len(self.examples) == 0:
            return by_labels
        by_itself = super().gradient(task, draw)
        return StepGradient(
            by_labels.gradient + by_itself.gradient,
            by_labels.loss + by_itself.loss,
            by_labels.examples + by_itself.examples,
        )


def own_predictions(site: Site, settings: SelfTrainingConfig) -> OwnPredictions:
    """Say how the global model labels a site's examples: among the classes that the site has labels of, or all."""
    own = sorted(set(site.labelled.labels.tolist())) if settings.classes == "own" else None
    return OwnPredictions(settings.confidence, own)
