"""The vocabulary of an exchange: broadcast a payload, let every client compute, reduce what comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from feddkd.errors import CancelledError
from feddkd.tensors import Schema, Tensors

SchemaRule = Callable[[Schema], Schema]
"""Derives the schema of a payload from the model's."""


def whole_model(model: Schema) -> Schema:
    """Parameters and buffers: what a model or an update is made of."""
    return model


def trainable_parameters(model: Schema) -> Schema:
    """The parameters that take gradients: what a gradient is made of."""
    return model.trainable


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
    """How a model did on some examples; adds up over clients."""

    examples: int
    correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.examples

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.loss_sum / self.examples


@dataclass(frozen=True, slots=True)
class Task:
    """One client's part of an exchange.

    Attributes:
        payload: what the server broadcast.
        evaluate: evaluate the broadcast model on held-out examples before anything else.
        cancelled: set when the server has closed the exchange; long computations look at it.
    """

    id: ExchangeId
    payload: Tensors
    evaluate: bool = False
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check_cancelled(self) -> None:
        """Raises CancelledError once nobody waits for the answer any more."""
        if self.cancelled.is_set():
            raise CancelledError(f"{self.id} was closed by the server")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client returns from its part of an exchange.

    Attributes:
        contribution: tensors to be reduced, or None where the answer is only numbers.
        loss: mean loss over the examples computed on.
        evaluation: of the broadcast model on held-out examples, where the task asked for it.
        compute_s: seconds spent computing.
    """

    contribution: Tensors | None = None
    loss: float | None = None
    evaluation: Evaluation | None = None
    compute_s: float = 0.0
