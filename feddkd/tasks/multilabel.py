"""Multi-label classification: any number of labels of an example."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from feddkd.config import MetricName, TaskTable
from feddkd.errors import ConfigError, DataError
from feddkd.registry import TASKS
from feddkd.structures import Structure
from feddkd.tasks.base import UNLABELLED, Shapes
from feddkd.tasks.categorical import CategoricalTask, mean_over_examples
from feddkd.tasks.targets import as_numbers

Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class MultilabelConfig(TaskTable):
    """Any number of labels of each example."""

    name: Literal["multilabel"] = "multilabel"
    metric: MetricName = Field("f1", description="the metric that decides which round is the best")
    positive_weights: Annotated[tuple[Weight, ...], Field(max_length=1_000_000, fail_fast=True, strict=False)] | None = Field(
        None,
        description="factor of each label's loss for examples that it applies to, in the order of the labels",
    )


@TASKS.register("multilabel")
class Multilabel(CategoricalTask[MultilabelConfig]):
    """Logits [B, L]; the loss is the binary cross-entropy, the mean over the labels of an example and over examples.

    Targets are int64 [B, L] of 0 and 1; -1 where it is not known whether the label applies. Such a place
    is left out of the loss, and follows its teacher in a DKD step.

    Each label is a distribution over two classes with the logits (0, z), so all divergences are defined:
    `kl` is that of Bernoulli distributions, the mean over examples and labels.
    """

    table = MultilabelConfig

    def __init__(self, settings: MultilabelConfig) -> None:
        super().__init__(settings)
        weights = settings.positive_weights
        self._weights = None if weights is None else torch.tensor(weights)

    def target(self, raw: Any) -> Tensor:
        numbers = as_numbers(raw)
        labels = numbers.long()
        if not bool(((labels == numbers) & (labels >= UNLABELLED) & (labels <= 1)).all()):
            raise DataError("its target is not one 0 or 1 for each label, or -1 where it is not known")
        return labels

    def target_shape(self, configured: tuple[int, ...] | None, num_classes: int | None) -> tuple[int, ...] | None:
        return configured or (None if num_classes is None else (num_classes,))

    def num_outputs(self, target_shape: tuple[int, ...]) -> int | None:
        return target_shape[0] if len(target_shape) == 1 else None

    def trial_targets(self, shapes: Shapes, size: int) -> Tensor:
        return (torch.arange(size * shapes.num_classes) % 2).reshape(size, shapes.num_classes)

    def check_outputs(self, outputs: Structure, targets: Tensor, num_classes: int | None, what: str) -> None:
        wanted = (len(targets), num_classes or targets.shape[1])
        if not isinstance(outputs, Tensor):
            raise ConfigError(f"{what} to {type(outputs).__name__}, not to {wanted} logits")
        if tuple(outputs.shape) != wanted or not outputs.is_floating_point():
            raise ConfigError(f"{what} to {tuple(outputs.shape)} {outputs.dtype}, not to {wanted} logits")
        if self._weights is not None and len(self._weights) != wanted[1]:
            raise ConfigError(f"task.positive_weights has {len(self._weights)} weights, and there are {wanted[1]} labels")

    def check_targets(self, targets: Tensor, num_classes: int) -> None:
        if tuple(targets.shape[1:]) != (num_classes,):
            raise DataError(f"targets have shape {list(targets.shape[1:])}, and data.num_classes = {num_classes} labels are expected")

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.logit_rows(outputs), targets.flatten()

    def logit_rows(self, outputs: Tensor) -> Tensor:
        flat = outputs.flatten()
        return torch.stack([torch.zeros_like(flat), flat], dim=1)

    def row_weights(self, targets: Tensor) -> Tensor | None:
        """Return the weight of each label that applies, and 1 for the others."""
        if self._weights is None:
            return None
        self._weights = self._weights.to(targets.device)  # once: a copy in each step would make a CUDA device wait
        return torch.where(targets == 1, self._weights, 1.0).flatten()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        known = (targets != UNLABELLED).flatten()
        losses = F.binary_cross_entropy_with_logits(outputs, targets.clamp(min=0).to(outputs.dtype), reduction="none").flatten()
        weights = self.row_weights(targets)
        return mean_over_examples(losses if weights is None else losses * weights, known, len(targets))

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.sigmoid(), targets
