"""Defines the lines of a run's record, and checks them when they are read.

The ledger writes these files, but a reader may be given older files that lack fields, damaged files, and
files of other programs. So every field has the type and the size defined here, or reading fails with a
one-line error. Sizes are in bytes, times in seconds; down is towards the client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from feddkd.config.problems import shortened
from feddkd.text import SHARES, printable

LARGEST = 1e100
"""A greater loss or metric is left out: sums of such numbers and axes for them overflow."""

LONGEST_NAME = 200
"""Characters of the name of an exchange or a metric."""

MOST_CLIENTS = 1000
"""Numbers of single clients are left out where there are more."""

SITE_NUMBERS = ("teacher_accuracy", "client_accuracy", "label_disagreement", "loss", "client_loss", "client_examples", "seconds")
"""Numbers that are recorded for each client. The first three lie between 0 and 1, the others are not negative."""

TEACHER_SCORE = "teacher_score"
"""Recorded as well: the metric of the task, of a client's teacher; of any sign, as the metrics that begin with `OF_CLIENT`."""

OF_CLIENT = "client_"
"""What the name of a metric begins with that was measured on what one client holds out."""

MOST_SITE_NUMBERS = 100
"""Names of numbers that are recorded for each client; more are left out."""

MOST_CLASSES = 10_000
"""Per-class accuracies of more classes are left out."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_known(value: Any) -> bool:
    """Whether a value is a number that can be drawn; not a number is not."""
    return _is_number(value) and abs(value) <= LARGEST


def _known(value: Any) -> Any:
    """A number that is not finite, or too large to be drawn, counts as not recorded."""
    return None if _is_number(value) and not _is_known(value) else value


def _metrics(value: Any) -> Any:
    """Only the metrics that can be drawn; clients choose their names and values."""
    if not isinstance(value, Mapping):
        return value if value is not None else {}
    return {name: float(number) for name, number in value.items() if len(name) <= LONGEST_NAME and _is_known(number)}


def _by_client(value: Any) -> Any:
    """Only known numbers of a bounded number of clients, where they are in range; clients choose their values."""
    if not isinstance(value, Mapping):
        return value if value is not None else {}
    scores = [name for name in value if name.startswith(OF_CLIENT) and name not in SITE_NUMBERS]
    names = (*SITE_NUMBERS, TEACHER_SCORE, *scores[:MOST_SITE_NUMBERS])
    found = {name: _site_numbers(name, value.get(name)) for name in names if len(name) <= LONGEST_NAME}
    return {name: numbers for name, numbers in found.items() if numbers}


def _site_numbers(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping) or len(value) > MOST_CLIENTS:
        return {}
    largest = 1 if name in SITE_NUMBERS[:3] else LARGEST
    least = 0 if name in SITE_NUMBERS else -LARGEST
    in_range = {client: number for client, number in value.items() if _is_number(number) and least <= number <= largest}
    return {client: float(number) for client, number in in_range.items() if len(client) <= LONGEST_NAME}


def _few(value: Any) -> Any:
    """Nothing of very many clients."""
    return {} if isinstance(value, Mapping) and len(value) > MOST_CLIENTS else value


def _class_accuracy(value: Any) -> Any:
    return None if isinstance(value, list) and len(value) > MOST_CLASSES else value


def _texts(value: Any) -> Any:
    """Stops at the first value that is no text; pydantic would list every one of a million."""
    if isinstance(value, Mapping) and not all(isinstance(text, str) for text in value.values()):
        raise ValueError("every value must be a string")
    return value


def _counts(value: Any) -> Any:
    if isinstance(value, Mapping) and not all(type(item) is int and item >= 0 for item in value.values()):
        raise ValueError("every value must be a count")
    return value


def _counts_by_name(value: Any) -> Any:
    if isinstance(value, Mapping):
        for counts in value.values():
            if not isinstance(counts, Mapping):
                raise ValueError("every value must be an object of byte counts")
            if not all(type(item) is int and item >= 0 for item in counts.values()):
                raise ValueError("every byte count must be an integer of at least 0")
    return value


def _payload_bytes(direction: str) -> Callable[[dict[str, Any]], int]:
    """The encoded size, which the dense one equals where no codec is at work; older records say no more."""
    return lambda found: found.get(f"payload_bytes_{direction}", 0)


Count = Annotated[int, Field(ge=0, le=10**30)]
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_known)]
Seconds = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Metrics = Annotated[dict[str, float], BeforeValidator(_metrics)]
Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
Counts = Annotated[dict[str, int], BeforeValidator(_counts)]
CountsByName = Annotated[dict[str, dict[str, int]], BeforeValidator(_counts_by_name)]
ByClient = Annotated[dict[str, dict[str, float]], BeforeValidator(_by_client)]
Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")] | None
"""A time in UTC; None where nobody knows it."""


class Line(BaseModel):
    """Fields that are read; others are ignored, and those with a default may be missing."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class TensorBytes(Line):
    """The tensors of an exchange, of a round or of a run: as they were sent, and as they would be without a codec."""

    payload_bytes_down: Count = 0
    payload_bytes_up: Count = 0
    dense_bytes_down: Count = Field(default_factory=_payload_bytes("down"))
    dense_bytes_up: Count = Field(default_factory=_payload_bytes("up"))
    snapshot_bytes_down: Count = 0


class MeasuredLine(TensorBytes):
    """What exchanges and rounds have in common."""

    round: Annotated[int, Field(ge=0, le=2**31 - 1)]
    time: Moment = None
    loss: Number = None
    client_examples: Count | None = None
    client_accuracy: Share | None = None
    client_loss: Number = None
    client_scores: Metrics = {}
    wire_bytes_down: Count = 0
    wire_bytes_up: Count = 0
    lost_wire_bytes_down: Count = 0
    lost_wire_bytes_up: Count = 0
    seconds: Seconds
    clients_reported: Count = 0
    clients_missing: Texts = {}
    gradient_evaluations: Count | None = None
    metrics: Metrics = {}

    def client_score(self, metric: str) -> float | None:
        """Return a metric on what the clients hold out; None where it is not recorded. Older records have accuracy and loss alone."""
        return _score(metric, self.client_scores, self.client_accuracy, self.client_loss)


class ExchangeLine(MeasuredLine):
    """A line of `exchanges.jsonl`."""

    attempt: Count = 0
    exchange: Name
    step: Count = 0
    clients_selected: Count = 0
    wire_bytes_down: Count
    wire_bytes_up: Count
    client_seconds: Number = None
    by_client: ByClient = {}


class RoundLine(MeasuredLine):
    """A line of `rounds.jsonl`."""

    accuracy: Share | None = None
    cumulative_wire_bytes: Count
    class_accuracy: Annotated[list[Share | None] | None, BeforeValidator(_class_accuracy)] = None
    labelled_examples: Count | None = None
    unlabelled_examples: Count | None = None
    scores: Metrics = {}

    def score(self, metric: str) -> float | None:
        """Return a metric of the round's model; None where it is not recorded. Older records have accuracy and loss alone."""
        return _score(metric, self.scores, self.accuracy, self.loss)


class Examples(Line):
    """How many examples of a client have a label, and how many have none."""

    labelled: Count
    unlabelled: Count = 0


class DoubtfulLabels(Line):
    """Why a client's labels may be wrong: what its teacher contradicts, what the median client's does, and since when."""

    disagreement: Share
    median: Share
    round: Annotated[int, Field(ge=0, le=2**31 - 1)]


class Presence(Line):
    """In how many rounds a client took part, and when the first and the last of its replies were reduced."""

    rounds: Count
    first: Moment = None
    last: Moment = None


class Summary(TensorBytes):
    """The object of `summary.json`."""

    algorithm: str | None = None
    rounds: Count | None = None
    final_accuracy: Share | None = None
    best_accuracy: Share | None = None
    metric: Name = "accuracy"
    final_score: Number = Field(default_factory=lambda found: found.get("final_accuracy"))
    best_score: Number = Field(default_factory=lambda found: found.get("best_accuracy"))
    scores: Metrics = {}
    best_round: Count | None = None
    delivered_round: Count | None = None
    stopped: str = ""
    total_wire_bytes_up: Count = 0
    total_wire_bytes_down: Count = 0
    other_wire_bytes_up: Count = 0
    other_wire_bytes_down: Count = 0
    lost_wire_bytes_up: Count = 0
    lost_wire_bytes_down: Count = 0
    exchanges: CountsByName = {}
    gradient_evaluations: Count | None = None
    seconds: Seconds | None = None
    seed: Count | None = None
    model_sha256: Name | None = None
    run_id: Name | None = None
    rounds_missed: Counts = {}
    not_delivered: Texts = {}
    examples: Annotated[dict[Name, Examples], BeforeValidator(_few)] = {}
    doubtful_labels: Annotated[dict[Name, DoubtfulLabels], BeforeValidator(_few)] = {}
    outliers: Annotated[dict[Name, Count], BeforeValidator(_few)] = {}
    started: Moment = None
    ended: Moment = None
    presence: Annotated[dict[Name, Presence], BeforeValidator(_few)] = {}
    versions: Texts = {}
    cpu_capability: Name | None = None


def _score(metric: str, scores: Mapping[str, float], accuracy: float | None, loss: float | None) -> float | None:
    """Look a metric up; a share of 1 that is none counts as not recorded."""
    if metric in ("accuracy", "loss"):
        return accuracy if metric == "accuracy" else loss
    found = scores.get(metric)
    return None if found is None or (metric in SHARES and not 0 <= found <= 1) else found


def problem_of(error: ValidationError) -> str:
    """Return the first problem of a line, for a message that names the file and the line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"is not JSON: {printable(str(first['ctx']['error']))}"
    key = printable(".".join(map(str, first["loc"])))
    if first["type"] == "missing":
        return f"has no {key!r}"
    if not key:
        return "is not a JSON object"
    message = first["msg"].removeprefix("Value error, ")
    return f"has {key} = {shortened(first['input'])}: {message[0].lower()}{message[1:]}"
