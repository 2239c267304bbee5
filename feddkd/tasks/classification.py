"""Classification: one class of an example, or of each of its pixels or tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from feddkd.config import MetricName, TaskTable
from feddkd.errors import ConfigError, DataError
from feddkd.registry import TASKS
from feddkd.structures import Structure
from feddkd.tasks.base import UNLABELLED, Shapes
from feddkd.tasks.categorical import CategoricalTask, mean_over_examples
from feddkd.tasks.targets import as_integers

Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
ClassWeights = Annotated[tuple[Weight, ...], Field(max_length=1_000_000, fail_fast=True, strict=False)]


class ClassificationConfig(TaskTable):
    """One class of each example; with `data.target_shape` of each of its pixels or tokens."""

    name: Literal["classification"] = "classification"
    metric: MetricName = Field("accuracy", description="the metric that decides which round is the best")
    ignore_index: int | None = Field(
        None,
        description="class number of pixels or tokens without a class (void, padding): they have no loss and follow the teacher",
    )
    class_weights: ClassWeights | None = Field(
        None,
        description="factor of each class's cross-entropy, in the order of their numbers",
    )

    @model_validator(mode="after")
    def _a_class_counts(self) -> Self:
        if self.class_weights is not None and not any(self.class_weights):
            raise ValueError("class_weights: all are 0, so nothing would be learnt")
        return self


@TASKS.register("classification")
class Classification(CategoricalTask[ClassificationConfig]):
    """Logits [B, C], or [B, C, ...] with a class for each place; the loss is the cross-entropy.

    Targets are int64 [B] or [B, ...]. A place whose class is `task.ignore_index` is `UNLABELLED`: it is
    left out of the cross-entropy and of the metrics, and follows its teacher in a DKD step.

    The loss is the mean over the examples, and of each over its places. `task.class_weights` multiply the
    losses; other than in torch the sum of the weights does not divide them.
    """

    table = ClassificationConfig

    def __init__(self, settings: ClassificationConfig) -> None:
        super().__init__(settings)
        weights = settings.class_weights
        self._weights = None if weights is None else torch.tensor(weights)

    def target(self, raw: Any) -> Tensor:
        classes = as_integers(raw, "class numbers")
        ignored = self.settings.ignore_index
        if ignored != UNLABELLED and bool((classes == UNLABELLED).any()):
            raise DataError(f"its target has the class {UNLABELLED}; task.ignore_index = {UNLABELLED} leaves it out")
        return classes if ignored is None else classes.masked_fill(classes == ignored, UNLABELLED)

    def check_data(self, num_classes: int | None, target_shape: tuple[int, ...] | None) -> None:
        if self.settings.ignore_index is not None and not target_shape:
            raise ConfigError(
                f"task.ignore_index = {self.settings.ignore_index}: it is for pixels or tokens, whose shape data.target_shape says; "
                "of an example, the label None says that it has none"
            )

    def trial_targets(self, shapes: Shapes, size: int) -> Tensor:
        targets = torch.arange(size) % shapes.num_classes
        return targets.reshape(size, *[1] * len(shapes.target_shape)).expand(size, *shapes.target_shape).clone()

    def check_outputs(self, outputs: Structure, targets: Tensor, num_classes: int | None, what: str) -> None:
        places = tuple(targets.shape[1:])
        wanted = f"({', '.join(map(str, (len(targets), num_classes or 'classes', *places)))})"
        if not isinstance(outputs, Tensor):
            raise ConfigError(f"{what} to {type(outputs).__name__}, not to {wanted} logits")
        shape = tuple(outputs.shape)
        fits = outputs.is_floating_point() and len(shape) >= 2 and (shape[0], *shape[2:]) == tuple(targets.shape)
        if not fits or (shape[1] != num_classes if num_classes is not None else shape[1] <= int(targets.max())):
            found = shape if outputs.is_floating_point() else f"{shape} {outputs.dtype}"
            raise ConfigError(f"{what} to {found}, not to {wanted} logits{self._way_out(shape, places, num_classes)}")
        if self._weights is not None and len(self._weights) != shape[1]:
            raise ConfigError(f"task.class_weights has {len(self._weights)} weights, and there are {shape[1]} classes")

    @staticmethod
    def _way_out(shape: tuple[int, ...], places: tuple[int, ...], num_classes: int | None) -> str:
        """Say what to do about outputs [B, ...] of another shape, where it is known."""
        if not places:
            return f"; for a class of each pixel or token set data.target_shape = {list(shape[2:])}" if len(shape) > 2 else ""
        if shape[1:] == (*places, num_classes):
            return "; dimension 1 is that of the classes: return outputs.movedim(-1, 1)"
        if shape[1:] == places:
            return "; a target is the number of the class at each place: of one-hot targets take argmax(0)"
        return f"; data.target_shape = {list(places)}"

    def row_weights(self, targets: Tensor) -> Tensor | None:
        """Return the weight of each row's class; any of a row without one."""
        if self._weights is None:
            return None
        self._weights = self._weights.to(targets.device)  # once: a copy in each step would make a CUDA device wait
        return self._weights[targets.flatten().clamp(min=0)]

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.logit_rows(outputs), targets.flatten()

    def logit_rows(self, outputs: Tensor) -> Tensor:
        return outputs if outputs.ndim == 2 else outputs.movedim(1, -1).flatten(0, -2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.ndim == 1 and self._weights is None:  # no example without a class is trained on
            return F.cross_entropy(outputs, targets)
        logits, classes = self.rows(outputs, targets)
        losses = F.cross_entropy(logits, classes, ignore_index=UNLABELLED, reduction="none")
        weights = self.row_weights(targets)
        return mean_over_examples(losses if weights is None else losses * weights, classes != UNLABELLED, len(targets))

    def loss_sum(self, outputs: Tensor, targets: Tensor) -> float:
        if targets.ndim == 1 and self._weights is None:
            return float(F.cross_entropy(outputs, targets, reduction="sum"))
        return super().loss_sum(outputs, targets)

    def has_one_class(self, target_shape: tuple[int, ...]) -> bool:
        return target_shape == ()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets

    def measured(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits, classes = self.rows(outputs, targets)
        known = classes != UNLABELLED
        return logits[known].softmax(1), classes[known]

    def check_targets(self, targets: Tensor, num_classes: int) -> None:
        """Raises DataError for classes outside [0, num_classes)."""
        known = targets[targets != UNLABELLED]
        if len(known) and (int(known.min()) < 0 or int(known.max()) >= num_classes):
            wrong = int(known.min()) if int(known.min()) < 0 else int(known.max())
            way_out = "" if targets.ndim == 1 else "; task.ignore_index names a class to leave out"
            raise DataError(f"label {wrong} is outside [0, {num_classes}) (data.num_classes){way_out}")


CLASSIFICATION = Classification(ClassificationConfig())
"""The task of a configuration that names none."""
