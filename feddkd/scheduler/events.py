"""Defines the events of a run, which its journal keeps and its state is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId
from feddkd.scheduler.records import ExchangeRecord
from feddkd.traffic import Traffic

BlobName = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""Names a blob; empty for none."""

Counts = Mapping[str, ExampleCounts]
"""The examples of clients, by id."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Enough clients have joined, and round 1 is about to start.

    Attributes:
        available: the clients that are there.
        rounds: how many are planned.
        owners: what proves who owns which client id.
        constants: names the tensors of the network that do not travel in every round by their content; empty if there are none.
    """

    rounds: int
    available: Counts
    owners: Mapping[str, str] = field(default_factory=dict)
    constants: str = ""
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class Resumed:
    """Another process resumes the run.

    Attributes:
        incarnation: counts the processes of the run; the first is 1.
        rounds: how many are planned now; a finished run can be extended.
        spent: wire bytes that earlier processes spent on exchanges that are not done, or have to be done again.
        other: wire bytes that it spent on no exchange.
        lost_s: seconds from the last event until now, by the clocks on the wall.
        owners: as in `RoundStarted`, of clients that were named by events that were cut off.
    """

    incarnation: int
    rounds: int
    spent: tuple[tuple[ExchangeId, Traffic], ...] = ()
    other: Traffic = field(default_factory=Traffic)
    lost_s: float = 0.0
    owners: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["resumed"] = "resumed"


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """An attempt at a round begins.

    Attributes:
        cohort: the clients that were drawn for it; None for all that were there.
        available: those; None if they are as in the event before that named them.
        codes: broadcasts that were encoded before it: their number seeds the next one.
        owners: what proves who owns which client id, of clients that no event before has named.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...] | None
    available: Counts | None
    codes: int = 0
    owners: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["round_started"] = "round_started"


@dataclass(frozen=True, slots=True)
class ExchangeDone:
    """An exchange has its outcome.

    Attributes:
        outcome: names the blob of its outcome; empty if it was not kept.
    """

    record: ExchangeRecord
    outcome: BlobName = ""
    kind: Literal["exchange_done"] = "exchange_done"


@dataclass(frozen=True, slots=True)
class RoundFailed:
    """An attempt at a round failed.

    Attributes:
        codes: as in `RoundStarted`, for the next attempt.
    """

    round: int
    attempt: int
    reason: str
    codes: int = 0
    kind: Literal["round_failed"] = "round_failed"


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A round has its model.

    Attributes:
        evaluation: of the model, on the server's test set, if there is one.
        clients_reported: clients that replied to the round's first exchange.
        clients_missing: why each of the others did not, and those that were away.
        notes: numbers of the algorithm's server side.
        examples: of the clients that replied to the first exchange, added up.
        model: names the blob of the model; empty if it was not kept.
        state: names the blob of what algorithm and codecs carry on, likewise.
    """

    round: int
    evaluation: Evaluation | None
    clients_reported: int
    clients_missing: Mapping[str, str]
    notes: Mapping[str, float]
    examples: ExampleCounts
    model: BlobName = ""
    state: BlobName = ""
    kind: Literal["round_finished"] = "round_finished"


@dataclass(frozen=True, slots=True)
class DeliveryStarted:
    """The final model is about to be delivered.

    Attributes:
        cohort: the clients that are there.
        absent: why each of the others is not.
        round: whose model it is, if not the last one's; 0 for the last.
        stopped: why the run ends before all of its rounds; empty if it does not.
    """

    cohort: Counts
    absent: Mapping[str, str]
    round: int = 0
    stopped: str = ""
    kind: Literal["delivery_started"] = "delivery_started"


@dataclass(frozen=True, slots=True)
class DeliveredLate:
    """Clients that were away for the delivery came back and have the final model.

    Attributes:
        exchange: another delivery, told from the one that they missed, and from others of its kind, by its attempt.
        traffic: what that took.
    """

    exchange: ExchangeId
    clients: tuple[str, ...]
    traffic: Traffic
    kind: Literal["delivered_late"] = "delivered_late"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """All rounds are done and the final model was delivered.

    Attributes:
        other: wire bytes of this process that belong to no exchange.
        not_delivered: why each client that took part did not get the final model.
    """

    other: Traffic
    not_delivered: Mapping[str, str]
    kind: Literal["run_finished"] = "run_finished"


Event = RunStarted | Resumed | RoundStarted | ExchangeDone | RoundFailed | RoundFinished | DeliveryStarted | DeliveredLate | RunFinished

_EVENTS: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")], config=ConfigDict(ser_json_inf_nan="constants"))


def to_json(event: Event) -> bytes:
    """Write an event as one line of JSON, every number exactly; NaN and infinity as Python's `json` writes them."""
    return _EVENTS.dump_json(event)


def from_json(text: bytes | str) -> Event:
    """Read what `to_json` wrote. Raises pydantic.ValidationError."""
    return _EVENTS.validate_json(text)
