"""Write and read the outcome of an exchange, so that a round can be replayed without the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from feddkd.errors import SchemaError, StateError
from feddkd.exchange import Evaluation, Exchange, Missing, Outcome, Reply
from feddkd.scheduler.blobs import Blob
from feddkd.tensors import Tensors
from feddkd.traffic import Traffic


@dataclass(frozen=True, slots=True)
class _Reply:
    """A `Reply` without its contribution."""

    loss: float | None
    evaluation: Evaluation | None
    compute_s: float
    gradient_evaluations: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """An `Outcome` without its tensors."""

    is_reduced: bool
    replies: dict[str, _Reply]
    missing: dict[str, Missing]
    traffic: Traffic
    useful: Traffic
    seconds: float
    fault: str
    decode_s: float
    ratios: dict[str, float] = field(default_factory=dict)


_NUMBERS = TypeAdapter(dict[str, _Numbers], config=ConfigDict(ser_json_inf_nan="constants"))
_KEY = "outcome"


def encode(outcome: Outcome) -> tuple[Mapping[str, Tensor], str]:
    """Lay out an outcome as the tensors and the text of a blob."""
    replies = {
        client: _Reply(reply.loss, reply.evaluation, reply.compute_s, reply.gradient_evaluations, dict(reply.metrics))
        for client, reply in outcome.replies.items()
    }
    numbers = _Numbers(
        outcome.reduced is not None,
        replies,
        dict(outcome.missing),
        outcome.traffic,
        outcome.useful,
        outcome.seconds,
        outcome.fault,
        outcome.decode_s,
        dict(outcome.ratios),
    )
    tensors = dict(outcome.reduced) if outcome.reduced is not None else {}
    return tensors, _NUMBERS.dump_json({_KEY: numbers}).decode()


def decode(blob: Blob, exchange: Exchange) -> Outcome:
    """Read what `encode` laid out. Raises StateError if it is not of this exchange."""
    try:
        numbers = _NUMBERS.validate_json(blob.text)[_KEY]
        reduced = _reduced(blob, exchange) if numbers.is_reduced else None
    except (ValidationError, KeyError, SchemaError) as error:
        raise StateError(f"the outcome of {exchange.id} cannot be read: {error}") from error
    replies = {
        client: Reply(
            loss=reply.loss,
            evaluation=reply.evaluation,
            compute_s=reply.compute_s,
            gradient_evaluations=reply.gradient_evaluations,
            metrics=reply.metrics,
        )
        for client, reply in numbers.replies.items()
    }
    return Outcome(
        reduced=reduced,
        replies=replies,
        missing=numbers.missing,
        traffic=numbers.traffic,
        useful=numbers.useful,
        seconds=numbers.seconds,
        fault=numbers.fault,
        decode_s=numbers.decode_s,
        ratios=numbers.ratios,
    )


def _reduced(blob: Blob, exchange: Exchange) -> Tensors:
    if exchange.reply_schema is None:
        raise SchemaError("it holds tensors where only numbers are expected")
    return Tensors.copy_of(exchange.reply_schema, blob.tensors)
