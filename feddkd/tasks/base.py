"""Define what a learning task is: how targets are read, what the loss is, and what is measured."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from feddkd.config import TaskTable
from feddkd.errors import ConfigError, DataError
from feddkd.structures import Structure, leaves

Settings = TypeVar("Settings", bound=TaskTable)

UNLABELLED = -1
"""The label of an example, or of a pixel or a token, that has none."""


class Shapes(NamedTuple):
    """What a task needs to know of its data.

    Attributes:
        input_shape: of one input; empty where an input is no single tensor.
        num_classes: classes, labels or numbers that the network gives for an example.
        target_shape: of one target; empty for a single number.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    target_shape: tuple[int, ...] = ()


class StepLoss(Protocol):
    """The loss whose gradient is a client's reply to a step."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's outputs enter the loss."""

    def loss(self, student: Structure, teacher: Structure | None, targets: Structure) -> Tensor:
        """Compute the mean loss of a batch, a scalar, from outputs and targets of B examples."""


class LearningTask(Generic[Settings]):
    """What a prediction, a loss and a metric are.

    For a task of your own, write a subclass with `loss`, and with `divergence` if it is to be distilled.
    Inputs, outputs and targets may be tensors, or tuples, lists, dicts and dataclasses of tensors
    (`Structure`); the first dimension of each tensor is the batch.

    Attributes:
        table: the class of its settings; not used for a task that the configuration names by its import path.
        has_negative_loss: whether its loss can be below 0.
        settings: its table in the configuration.
    """

    table: ClassVar[type[TaskTable]]
    has_negative_loss: ClassVar[bool] = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # What the data are.

    def split(self, row: Any) -> tuple[Any, Any] | None:
        """Tell the input and the target of a row, where they are not its two entries; None where they are."""
        return None

    def target(self, raw: Any) -> Structure:
        """Convert the target of one row to tensors.

        Raises:
            DataError: it cannot be used; the message says what it is and what is expected.
        """
        raise NotImplementedError

    def check_targets(self, targets: Structure, num_classes: int) -> None:
        """Check the targets of some examples. Raises DataError, as for a class outside [0, num_classes)."""

    def missing(self, like: Structure) -> Structure:
        """Return the target of an example that has none, of the form of another one. Raises DataError: there are none."""
        raise DataError(f"task.name = {self.settings.name!r}: an example without a target cannot be used")

    def is_labelled(self, targets: Structure) -> Tensor:
        """Tell which examples of a batch have a target: bool [B]."""
        first = next(leaves(targets))
        return torch.ones(len(first), dtype=torch.bool, device=first.device)

    def target_shape(self, configured: tuple[int, ...] | None, num_classes: int | None) -> tuple[int, ...] | None:
        """Return the shape of one target as the configuration has it; None where the data have to say."""
        return configured or ()

    def num_outputs(self, target_shape: tuple[int, ...]) -> int | None:
        """Return how many numbers the network gives for an example, where targets of this shape say it."""
        return None

    def check_data(self, num_classes: int | None, target_shape: tuple[int, ...] | None) -> None:
        """Check what the configuration says of the data. Raises ConfigError."""

    def trial_batch(self, shapes: Shapes, dtype: torch.dtype, size: int) -> tuple[Structure, Structure]:
        """Make inputs and targets to try a network on before there are data; the same everywhere."""
        generator, shape = torch.Generator().manual_seed(0), (size, *shapes.input_shape)
        # Zeros would leave BatchNorm's means as they are. Of token ids only the first two: how many a network knows is not said.
        inputs = torch.rand(shape, generator=generator) if dtype.is_floating_point else torch.randint(2, shape, generator=generator)
        return inputs, self.trial_targets(shapes, size)

    def trial_targets(self, shapes: Shapes, size: int) -> Structure:
        """Make the targets of a `trial_batch`."""
        raise NotImplementedError

    # What the network does.

    def outputs(self, module: nn.Module, inputs: Structure) -> Structure:
        """Compute the network's outputs for a batch."""
        return module(inputs)

    def check_outputs(self, outputs: Structure, targets: Structure, num_classes: int | None, what: str) -> None:
        """Check that outputs fit targets.

        Args:
            num_classes: None where it is not known.
            what: begins the message; it goes on with what the outputs are and what they should be.

        Raises:
            ConfigError: they do not.
        """

    def loss(self, outputs: Structure, targets: Structure) -> Tensor:
        """Compute the mean loss of a batch, a scalar that can be differentiated."""
        raise NotImplementedError

    def loss_sum(self, outputs: Structure, targets: Structure) -> float:
        """Compute the sum of the losses of a batch's examples, for an evaluation."""
        return float(self.loss(outputs, targets)) * len(next(leaves(targets)))

    def divergence(self, teacher: Structure, student: Structure) -> Tensor:
        """Compute how far the student's outputs are from the teacher's: the mean over a batch, a scalar.

        Raises:
            ConfigError: the task has none.
        """
        raise ConfigError(f"task.name = {self.settings.name!r}: it has no divergence, so nothing can be distilled; use fedavg")

    # What is measured.

    def has_one_class(self, target_shape: tuple[int, ...]) -> bool:
        """Tell whether each example has one class, which `labels` say."""
        return False

    def correct(self, outputs: Structure, targets: Structure) -> Tensor:
        """Tell which examples are predicted correctly: bool [B], for examples of one class each."""
        raise NotImplementedError

    def measured(self, outputs: Structure, targets: Structure) -> tuple[Any, Any]:
        """Return predictions and targets as the metrics of the task take them."""
        return outputs, targets
