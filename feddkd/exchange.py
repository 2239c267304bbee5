"""The vocabulary of an exchange: broadcast a payload, let every client compute, reduce what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from feddkd.errors import CancelledError
from feddkd.tensors import Schema, Tensors, TensorSpec

SchemaRule = Callable[[Schema], Schema]
"""Derives the schema of a payload from the model's."""


def whole_model(model: Schema) -> Schema:
    """Parameters and buffers: what a model or an update is made of."""
    return model


def trainable_parameters(model: Schema) -> Schema:
    """The parameters that take gradients: what a gradient is made of."""
    return model.trainable


def model_and(**extras: SchemaRule) -> SchemaRule:
    """The whole model and, beside it, more vectors: tensor "conv.weight" of extra `control` is named "control/conv.weight"."""

    def rule(model: Schema) -> Schema:
        return model.beside({name: extra(model) for name, extra in extras.items()})

    return rule


SCALAR = Schema([TensorSpec("value", torch.float64, (), trainable=False)])


def scalar(model: Schema) -> Schema:  # noqa: ARG001
    """One float64 number, reduced like everything else: for what a server half needs to know exactly."""
    return SCALAR


def as_scalar(number: float) -> Tensors:
    """A number as it travels beside a model: `update.beside(loss=as_scalar(0.5))`."""
    return Tensors.copy_of(SCALAR, {"value": torch.tensor(number, dtype=torch.float64)})


def read_scalar(answer: Tensors, name: str) -> float:
    """The number that travelled as `name`."""
    return float(answer.part(name, SCALAR)["value"])


@dataclass(frozen=True, slots=True)
class ExchangeKind:
    """What travels in exchanges of one name.

    Attributes:
        broadcast: schema of the server's payload.
        answer: schema of a client's payload, or None where the answer is only numbers.
    """

    broadcast: SchemaRule = whole_model
    answer: SchemaRule | None = whole_model


DELIVER = "deliver"
"""The last exchange of every run: each client gets the final model and keeps it."""

DELIVER_KIND = ExchangeKind(answer=None)


@dataclass(frozen=True, slots=True)
class ExchangeId:
    """Names one exchange of a run; with a client's id it identifies a contribution.

    Attributes:
        round: from 1.
        attempt: how many times the round was started again for want of clients.
        name: "local_train", "dkd_step", "deliver" or what else the algorithm defines.
        step: position among the exchanges of this name in the round, from 0.
    """

    run_id: str
    round: int
    attempt: int
    name: str
    step: int

    def __str__(self) -> str:
        return f"round {self.round} {self.name}[{self.step}]" + (f" attempt {self.attempt}" if self.attempt else "")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on some examples; adds up over clients.

    Attributes:
        examples_by_class: known on the server's test set only; clients do not tell it.
        correct_by_class: how many of those were classified correctly.
    """

    examples: int
    correct: int
    loss_sum: float
    examples_by_class: tuple[int, ...] = ()
    correct_by_class: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.examples

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.examples

    @property
    def class_accuracy(self) -> list[float | None] | None:
        """Accuracy on the examples of each class, None for a class without any; None altogether where it is not known."""
        if not self.examples_by_class:
            return None
        return [
            correct / examples if examples else None
            for correct, examples in zip(self.correct_by_class, self.examples_by_class, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Task:
    """One client's part of an exchange.

    Attributes:
        payload: what the server broadcast.
        evaluate: evaluate the broadcast model on held-out examples before anything else.
        deadline_s: seconds, from when the task was given, until the server stops waiting; None if it never does.
        cancelled: set when the server has closed the exchange; long computations look at it.
    """

    id: ExchangeId
    payload: Tensors
    evaluate: bool = False
    deadline_s: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check_cancelled(self) -> None:
        """Raises CancelledError once nobody waits for the answer any more."""
        if self.cancelled.is_set():
            raise CancelledError(f"{self.id} was closed by the server")


MAX_METRICS = 32

UPDATE_NORM_SQUARED = "update_norm_squared"
"""||w_k - w_t||² over the trainable parameters, as they are averaged (FedNova divides by the local steps); with the mean
update it gives the round's drift diversity."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client returns from its part of an exchange.

    Attributes:
        contribution: tensors to be reduced, or None where the answer is only numbers.
        loss: mean loss over the examples computed on.
        evaluation: of the broadcast model on held-out examples, where the task asked for it.
        compute_s: seconds spent computing.
        gradient_evaluations: gradients of single examples' losses computed for it, the usual unit of client work.
        metrics: other numbers for the record, by name (at most `MAX_METRICS` of them): their weighted mean is logged.
    """

    contribution: Tensors | None = None
    loss: float | None = None
    evaluation: Evaluation | None = None
    compute_s: float = 0.0
    gradient_evaluations: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
