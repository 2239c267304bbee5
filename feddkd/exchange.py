"""Defines an exchange: broadcast a payload, let every client compute, reduce what comes back.

The scheduler describes an `Exchange`, an engine carries it out and returns an `Outcome`; a client gets
its part as a `Task` and returns a `Reply`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

import torch

from feddkd.aggregator.history import ContributionKind
from feddkd.aggregator.lengths import capped_sizes
from feddkd.aggregator.rule import Rule
from feddkd.compression.broadcaster import Broadcast
from feddkd.compression.codec import Codec
from feddkd.compression.constants import NO_CONSTANTS, Constants
from feddkd.compression.encoding import Coding, derive_seed
from feddkd.errors import CancelledError
from feddkd.tasks.metrics import StateRange
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

SchemaRule = Callable[[Schema], Schema]
"""Derives the schema of a payload from the model's."""


def whole_model(model: Schema) -> Schema:
    """Select parameters and buffers: the tensors of a model or an update."""
    return model


def trainable_parameters(model: Schema) -> Schema:
    """Select the parameters that take gradients: the tensors of a gradient."""
    return model.trainable


def model_and(**extras: SchemaRule) -> SchemaRule:
    """Select the whole model and extra vectors: tensor "conv.weight" of extra `control` is "control/conv.weight"."""

    def rule(model: Schema) -> Schema:
        return model.beside({name: extra(model) for name, extra in extras.items()})

    return rule


SCALAR = Schema([TensorSpec("value", torch.float64, (), trainable=False)])


def scalar(model: Schema) -> Schema:  # noqa: ARG001
    """Declare one float64 number, which is reduced like a tensor: for what the server side decides by."""
    return SCALAR


def as_scalar(number: float) -> Tensors:
    """Convert a number to what travels beside a model: `update.beside(loss=as_scalar(0.5))`."""
    return Tensors.copy_of(SCALAR, {"value": torch.tensor(number, dtype=torch.float64)})


def read_scalar(reduced: Tensors, name: str) -> float:
    """Read the number that travelled as `name`."""
    return float(reduced.part(name, SCALAR)["value"])


class ExampleCounts(NamedTuple):
    """How many examples a client trains on: those with a label, and those without."""

    labelled: int
    unlabelled: int = 0

    @property
    def total(self) -> int:
        return self.labelled + self.unlabelled

    @classmethod
    def sum_of(cls, counts: Iterable[ExampleCounts]) -> ExampleCounts:
        """Add up the examples of several clients."""
        listed = list(counts)
        return cls(sum(own.labelled for own in listed), sum(own.unlabelled for own in listed))


@dataclass(frozen=True, slots=True)
class ExchangeKind:
    """What travels in exchanges of one name.

    Attributes:
        broadcast: schema of the server's payload.
        reply: schema of a client's contribution, or None where a reply is only numbers.
        computes_on: the examples that a reply is a mean over; a client's weight is their number.
        contribution: what a reply is: honest gradients differ more in length than updates, so their limits are higher.
    """

    broadcast: SchemaRule = whole_model
    reply: SchemaRule | None = whole_model
    computes_on: Literal["labelled", "all"] = "labelled"
    contribution: ContributionKind = "update"

    def examples(self, counts: ExampleCounts) -> int:
        """Count the examples of a client that a reply is a mean over."""
        return counts.total if self.computes_on == "all" else counts.labelled

    def weight(self, counts: ExampleCounts, weights: Literal["examples", "uniform"]) -> float:
        """Weigh a client by these examples, or like every other (`scheduler.weights`)."""
        return float(self.examples(counts)) if weights == "examples" else 1.0


DELIVER = "deliver"
"""The last exchange of every run: each client gets the final model and keeps it."""

DELIVER_KIND = ExchangeKind(reply=None)

ONCE_A_ROUND = ("local_train", DELIVER)
"""Exchanges of these names need no number."""


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

    @property
    def label(self) -> str:
        """The exchange within its round, counted from 1: `dkd_step 3`, or only `local_train` where there is one a round."""
        return self.name if self.name in ONCE_A_ROUND else f"{self.name} {self.step + 1}"

    def __str__(self) -> str:
        return f"round {self.round} {self.label}" + (f" (attempt {self.attempt + 1})" if self.attempt else "")


@dataclass(frozen=True, slots=True)
class EvaluationForm:
    """What the numbers of an evaluation are; it follows from the task.

    Attributes:
        counts_correct: it counts the examples that are classified correctly.
        states: of each further metric.
        least_loss: of one example.
    """

    counts_correct: bool = True
    states: Mapping[str, tuple[StateRange, ...]] = field(default_factory=dict)
    least_loss: float = 0.0


COUNTS_ALONE = EvaluationForm()
"""Accuracy and loss."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model did on some examples; adds up over clients.

    Attributes:
        correct: how many were classified correctly; None where an example has not one class.
        loss_sum: of the task's loss, for classification the cross-entropy in nats.
        examples_by_class: known on the server's test set only; clients do not tell it.
        correct_by_class: how many of those were classified correctly.
        sums: the states of further metrics, by name.
        scores: what these come to, by name; known once the states were added up.
        merit: what decides which round is the best, larger is better: a metric, or the negative of one; None where
            that is the accuracy.
    """

    examples: int
    correct: int | None
    loss_sum: float
    examples_by_class: tuple[int, ...] = ()
    correct_by_class: tuple[int, ...] = ()
    sums: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    merit: float | None = None

    @property
    def worth(self) -> float:
        """The merit as a number that can be compared: of a model that was not measured it is the least."""
        found = self.accuracy if self.merit is None else self.merit
        return -math.inf if found is None else found

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions; None where the task has no accuracy, or was not asked for it."""
        return self.scores.get("accuracy") if self.correct is None else self.correct / self.examples

    @property
    def loss(self) -> float:
        """Mean loss of an example."""
        return self.loss_sum / self.examples

    def score(self, metric: str) -> float | None:
        """Return a metric by its name; None where it is not known."""
        if metric == "loss":
            return self.loss
        return self.accuracy if metric == "accuracy" else self.scores.get(metric)

    @property
    def all_scores(self) -> dict[str, float]:
        """Every metric by its name, accuracy and loss included."""
        counted = {} if self.accuracy is None else {"accuracy": self.accuracy}
        return {**counted, "loss": self.loss, **self.scores}

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
        """Raises CancelledError once the server no longer waits for the reply."""
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
        contribution: tensors to be reduced, or None where a reply is only numbers.
        loss: mean loss over the examples computed on.
        evaluation: of the broadcast model on held-out examples, where the task asked for it.
        compute_s: seconds spent computing.
        gradient_evaluations: gradients of single examples' losses computed for it, the usual unit of client work.
        metrics: other numbers for the record, by name (at most `MAX_METRICS` of them): their weighted mean is logged.
            Nothing else uses them: what an algorithm needs travels in the contribution.
    """

    contribution: Tensors | None = None
    loss: float | None = None
    evaluation: Evaluation | None = None
    compute_s: float = 0.0
    gradient_evaluations: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closing:
    """When an exchange stops waiting for replies. Times are in seconds.

    Attributes:
        deadline_s: from the broadcast until a reply that has not begun is left out; one that is arriving has as long again.
        enough: replies after which the exchange may close early.
        grace_after_enough_s: how long it then stays open for more; None: until the deadline.
        reconnect_grace_s: how long a client without connection may take to come back.
        stall_timeout_s: how long an upload may go without a chunk.
    """

    deadline_s: float
    enough: int = 1
    grace_after_enough_s: float | None = None
    reconnect_grace_s: float = 0.0
    stall_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One exchange to be carried out: all that can change its outcome. Equal ones have equal outcomes on every engine.

    Attributes:
        clients: who takes part, in client order, with the weight of each contribution.
        payload: what is broadcast: what clients compute at.
        reply_schema: what a client may contribute, or None where a reply is only numbers.
        rule: reduces the contributions.
        closing: when it stops waiting.
        evaluate: clients evaluate the broadcast model on what they hold out, and say so in their reply.
        max_norm: largest Euclidean norm of one contribution; larger ones are refused. None for any.
        reply_codec: encodes contributions; None sends them as they are.
        seed: of the run; contributions are encoded with seeds that are derived from it.
        broadcast: the encoded forms of the payload; None sends it as it is.
        zstd: whether chunks are compressed without loss, both ways.
        constants: the network's other tensors, which clients have or receive once.
        evaluation_form: what the numbers of an evaluation are.
        weight_cap: no weight is more than so many times the median of those that reply; 0 for no limit.
    """

    id: ExchangeId
    clients: Mapping[str, float]
    payload: Tensors
    reply_schema: Schema | None
    rule: Rule
    closing: Closing
    evaluate: bool = False
    max_norm: float | None = None
    reply_codec: Codec | None = None
    seed: int = 0
    broadcast: Broadcast | None = None
    zstd: bool = False
    constants: Constants = NO_CONSTANTS
    evaluation_form: EvaluationForm = COUNTS_ALONE
    weight_cap: float = 0.0

    def weights_of(self, clients: Iterable[str]) -> dict[str, float]:
        """Return the weights of the clients that reply, in client order: whoever does not has no part in the median."""
        replying = set(clients)
        return capped_sizes({client: weight for client, weight in self.clients.items() if client in replying}, self.weight_cap)

    def reply_coding(self, client: str) -> Coding:
        """Say how one client's contribution is encoded: each with a seed of its own, so that errors average out."""
        if self.reply_codec is None:
            return Coding(zstd=self.zstd)
        key = (self.seed, self.id.round, self.id.attempt, self.id.name, self.id.step, client)
        return Coding(self.reply_codec, derive_seed(*key), self.zstd)


class Cause(StrEnum):
    """Why a client's reply is missing, as the server knows it."""

    DISCONNECTED = "disconnected"
    SILENT = "silent"
    FAILED = "failed"
    REFUSED = "refused"
    DIVERGED = "diverged"
    CLOSED = "closed"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class Missing:
    """A client that did not reply.

    Attributes:
        cause: what the server saw; decides whether waiting may help.
        reason: one line for the record and the log. It may be the client's own text, so it decides nothing.
    """

    cause: Cause
    reason: str

    @property
    def connection_lost(self) -> bool:
        return self.cause is Cause.DISCONNECTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an exchange.

    Attributes:
        reduced: the reduced contributions, or None where replies are only numbers or nobody replied.
        replies: the numbers of those who replied, in client order; without their contributions.
        missing: why each of the others did not, in client order.
        traffic: bytes that crossed the network for it.
        useful: the part of its bytes on the wire that a network without faults and stragglers would have moved for
            those who replied: broadcast, reply and receipt of each, once. Payloads are not counted.
        seconds: from the broadcast until it was reduced.
        decode_s: seconds that the server spent on decoding contributions.
        fault: why there is no reduction although clients replied; empty if there is one.
    """

    reduced: Tensors | None
    replies: Mapping[str, Reply]
    missing: Mapping[str, Missing]
    traffic: Traffic
    seconds: float
    fault: str = ""
    decode_s: float = 0.0
    useful: Traffic = field(default_factory=Traffic)
    ratios: Mapping[str, float] = field(default_factory=dict)

    def mean_loss(self, weights: Mapping[str, float]) -> float | None:
        """Return the weighted mean of the clients' losses, or None if no client reported one."""
        losses = {client: reply.loss for client, reply in self.replies.items() if reply.loss is not None}
        return _weighted_mean(losses, weights)

    def mean_metrics(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weighted mean of each metric over the clients that reported it, ordered by name."""
        by_name: dict[str, dict[str, float]] = {}
        for client, reply in self.replies.items():
            for name, value in reply.metrics.items():
                by_name.setdefault(name, {})[client] = value
        means = {name: _weighted_mean(values, weights) for name, values in sorted(by_name.items())}
        return {name: mean for name, mean in means.items() if mean is not None}

    @property
    def lost(self) -> Traffic:
        """The part of its bytes on the wire that was of no use."""
        return self.traffic.wire_beyond(self.useful)

    @property
    def gradient_evaluations(self) -> int:
        """Gradients of single examples' losses, over all clients that replied."""
        return sum(reply.gradient_evaluations for reply in self.replies.values())

    @property
    def client_seconds(self) -> float:
        """Seconds that the clients computed, added up."""
        return math.fsum(reply.compute_s for reply in self.replies.values())

    @property
    def connection_lost(self) -> bool:
        """Whether a client is missing for want of a connection."""
        return any(missing.connection_lost for missing in self.missing.values())

    @property
    def evaluation(self) -> Evaluation | None:
        """All clients' evaluations of the broadcast model added up, or None if no client holds examples out."""
        evaluations = [reply.evaluation for reply in self.replies.values() if reply.evaluation is not None]
        if not evaluations:
            return None
        counts = [evaluation.correct for evaluation in evaluations if evaluation.correct is not None]
        return Evaluation(
            sum(evaluation.examples for evaluation in evaluations),
            sum(counts) if len(counts) == len(evaluations) else None,
            math.fsum(evaluation.loss_sum for evaluation in evaluations),
            sums=_added([evaluation.sums for evaluation in evaluations]),
        )


def _added(sums: Sequence[Mapping[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """Add the states of metrics up, number by number; of those that all clients have."""
    names = [name for name in sums[0] if all(name in found for found in sums)]
    return {name: tuple(map(math.fsum, zip(*(found[name] for found in sums), strict=True))) for name in names}


def _weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float | None:
    if not values:
        return None
    weighted = math.fsum(weights[client] * value for client, value in values.items())
    return weighted / math.fsum(weights[client] for client in values)
