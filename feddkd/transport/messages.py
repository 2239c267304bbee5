"""Builds and reads the stream's messages in one place, so that every engine counts the same bytes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from feddkd.compression.broadcaster import Broadcast
from feddkd.compression.constants import NO_CONSTANTS, Constants
from feddkd.compression.encoding import UNCODED, Coding
from feddkd.errors import DivergedError, ProtocolError
from feddkd.exchange import COUNTS_ALONE, MAX_METRICS, UPDATE_NORM_SQUARED, Evaluation, EvaluationForm, ExchangeId, Reply
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

MAX_REASON_CHARACTERS = 200
MAX_METRIC_NAME_CHARACTERS = 64
MAX_ID_CHARACTERS = 64

Verdict = pb.Verdict


@dataclass(frozen=True, slots=True)
class Holding:
    """The broadcast that a client still has from before its connection broke.

    Attributes:
        digest: as in the header of the broadcast's payload.
        size_bytes: how much of the payload has arrived; all of it while the client computes or sends its reply.
    """

    exchange: ExchangeId
    digest: bytes
    size_bytes: int


def id_to_message(exchange: ExchangeId) -> pb.ExchangeId:
    return pb.ExchangeId(run_id=exchange.run_id, round=exchange.round, attempt=exchange.attempt, name=exchange.name, step=exchange.step)


def id_from_message(message: pb.ExchangeId) -> ExchangeId:
    """Read an exchange's id. Raises ProtocolError for a name that no server chose: it would come back in messages and logs."""
    if max(len(message.run_id), len(message.name)) > MAX_ID_CHARACTERS:
        raise ProtocolError(f"an exchange id with a name of more than {MAX_ID_CHARACTERS} characters")
    return ExchangeId(message.run_id, message.round, message.attempt, message.name, message.step)


def work_message(
    exchange: ExchangeId,
    payload: Payload,
    *,
    evaluate: bool,
    deadline_s: float,
    replica: pb.Replica | None = None,
    reply_coding: Coding = UNCODED,
    constants: Constants = NO_CONSTANTS,
    has_constants: bool = False,
) -> bytes:
    """Build the message before the payload of a broadcast.

    Args:
        constants: those that the client computes with.
        has_constants: they are in the payload.
    """
    work = pb.Work(
        id=id_to_message(exchange),
        payload=payload.header,
        evaluate=evaluate,
        deadline_s=deadline_s,
        replica=replica,
        answer_codec=reply_coding.name,
        answer_seed=reply_coding.seed,
        answer_zstd=reply_coding.zstd,
        constants_sha256=constants.version,
        has_constants=has_constants,
    )
    return pb.ParticipateResponse(work=work).SerializeToString()


def replica_message(broadcast: Broadcast, *, whole: bool) -> pb.Replica:
    """Build the message that says how a broadcast becomes the model that clients hold.

    Args:
        whole: for a client that receives the model, not the step.
    """
    if whole:
        return pb.Replica(content_sha256=broadcast.content, in_mean=broadcast.in_mean and not broadcast.take_mean)
    return pb.Replica(
        base_sha256=broadcast.base,
        content_sha256=broadcast.content,
        in_mean=broadcast.in_mean,
        take_mean=broadcast.take_mean,
    )


def lacking_message(exchange: ExchangeId) -> bytes:
    """Ask for a broadcast as a whole model."""
    return pb.ParticipateRequest(lacking=pb.Lacking(id=id_to_message(exchange))).SerializeToString()


def answer_message(exchange: ExchangeId, reply: Reply, payload: Payload | None) -> bytes:
    """Build the message before an answer's payload, or the whole answer if it has only numbers."""
    answer = pb.Answer(id=id_to_message(exchange), compute_s=reply.compute_s)
    if payload is not None:
        answer.payload.CopyFrom(payload.header)
    if reply.loss is not None:
        answer.loss = reply.loss
    answer.gradient_evaluations = reply.gradient_evaluations
    answer.metrics.update(reply.metrics)
    if reply.evaluation is not None:
        answer.evaluation.examples = reply.evaluation.examples
        if reply.evaluation.correct:  # 0 is what a server reads where nothing is
            answer.evaluation.correct = reply.evaluation.correct
        answer.evaluation.loss_sum = reply.evaluation.loss_sum
        for name, numbers in reply.evaluation.sums.items():
            answer.evaluation.sums[name].numbers.extend(numbers)
    return pb.ParticipateRequest(answer=answer).SerializeToString()


def answer_message_bytes(answer: pb.Answer) -> int:
    """Return the size in bytes of an answer's message as sent first, without its content hash."""
    first = pb.ParticipateRequest(answer=answer)
    if answer.payload.content_sha256:
        first.answer.payload.ClearField("content_sha256")
    return first.ByteSize()


def repeated_answer_message(message: bytes, payload: Payload) -> bytes:
    """Build the message of an answer that is sent again; it includes the content hash."""
    request = pb.ParticipateRequest.FromString(message)
    request.answer.payload.content_sha256 = payload.content_sha256
    return request.SerializeToString()


LARGEST_NUMBER = 1e30
"""Losses, metrics and seconds beyond this are refused, so that no sum of them can overflow."""

MAX_COUNT = 2**53
"""Counts beyond this are refused: they would not be exact in float64."""


def numbers_of(
    answer: pb.Answer,
    max_evaluated: int = MAX_COUNT,
    form: EvaluationForm = COUNTS_ALONE,
) -> Reply:
    """Read the numbers of a reply, checked; its contribution comes in chunks.

    Args:
        max_evaluated: most examples that the client can have held out.
        form: what the numbers of its evaluation are.

    Raises:
        ProtocolError: a number that no honest client sends.
    """
    loss = answer.loss if answer.HasField("loss") else None
    if loss is not None:
        _check_learning("the loss", loss)
    _check_number("compute_s", answer.compute_s)
    if answer.compute_s < 0:
        raise ProtocolError(f"compute_s is {answer.compute_s}")
    if answer.gradient_evaluations > MAX_COUNT:
        raise ProtocolError(f"{answer.gradient_evaluations} gradient evaluations")
    return Reply(
        loss=loss,
        evaluation=_checked_evaluation(answer.evaluation, max_evaluated, form) if answer.HasField("evaluation") else None,
        compute_s=answer.compute_s,
        gradient_evaluations=answer.gradient_evaluations,
        metrics=_checked_metrics(answer.metrics),
    )


def _checked_evaluation(counts: pb.Evaluation, max_evaluated: int, form: EvaluationForm) -> Evaluation:
    if counts.HasField("correct") and not form.counts_correct:
        raise ProtocolError("an evaluation with a count of correct examples, where the task has none")
    if counts.correct > counts.examples or counts.examples == 0:
        raise ProtocolError(f"an evaluation of {counts.correct} correct among {counts.examples} examples")
    if counts.examples > max_evaluated:
        raise ProtocolError(f"an evaluation of {counts.examples} examples, where this client can hold out {max_evaluated} at most")
    _check_learning("the evaluation's loss", counts.loss_sum)
    if counts.loss_sum < form.least_loss:
        raise ProtocolError(f"the evaluation's loss is {counts.loss_sum}")
    correct = counts.correct if form.counts_correct else None  # 0 may be left out on the wire
    return Evaluation(counts.examples, correct, counts.loss_sum, sums=_checked_sums(counts.sums, counts.examples, form))


def _checked_sums(sums: Mapping[str, pb.MetricSums], examples: int, form: EvaluationForm) -> dict[str, tuple[float, ...]]:
    sizes = {name: sum(state.numbers for state in states) for name, states in form.states.items()}
    if {name: len(found.numbers) for name, found in sums.items()} != sizes:
        raise ProtocolError(f"the states of {len(sums)} metrics, where those of {', '.join(sizes) or 'none'} are expected")
    for name, states in form.states.items():
        numbers = iter(sums[name].numbers)
        for state in states:
            for number in itertools.islice(numbers, state.numbers):
                _check_number(f"metric {name}", number)
                if not state.least <= number <= state.most_per_example * examples:
                    raise ProtocolError(f"metric {name}: its state holds {number:g}, which {examples} examples cannot give")
    return {name: tuple(sums[name].numbers) for name in sizes}


def _checked_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    if len(metrics) > MAX_METRICS:
        raise ProtocolError(f"{len(metrics)} metrics, where at most {MAX_METRICS} are allowed")
    for name, value in metrics.items():
        if not 0 < len(name) <= MAX_METRIC_NAME_CHARACTERS or not name.isprintable():
            raise ProtocolError(f"a metric's name is not 1 to {MAX_METRIC_NAME_CHARACTERS} printable characters")
        check = _check_learning if name == UPDATE_NORM_SQUARED else _check_number
        check(f"metric {name!r}", value)
    return dict(sorted(metrics.items()))


def _check_learning(name: str, value: float) -> None:
    """Check a number that is out of range where the model that was broadcast is of no use. Raises DivergedError."""
    if not abs(value) <= LARGEST_NUMBER:
        raise DivergedError(f"{name} is {value}")


def _check_number(name: str, value: float) -> None:
    if not abs(value) <= LARGEST_NUMBER:  # also where it is NaN
        raise ProtocolError(f"{name} is {value}")


def _sendable(text: str) -> str:
    """Escape what UTF-8 cannot carry: a file's name may hold it, and an error may name the file."""
    return text.encode(errors="backslashreplace").decode()


def failure_message(exchange: ExchangeId, reason: str, *, leaves: bool = False) -> bytes:
    failure = pb.Failure(id=id_to_message(exchange), reason=_sendable(reason)[:MAX_REASON_CHARACTERS], leaves=leaves)
    return pb.ParticipateRequest(failure=failure).SerializeToString()


def receipt_message(exchange: ExchangeId, verdict: pb.Verdict.ValueType, reason: str = "", current: ExchangeId | None = None) -> bytes:
    receipt = pb.Receipt(id=id_to_message(exchange), verdict=verdict, reason=_sendable(reason)[:MAX_REASON_CHARACTERS])
    if current is not None:
        receipt.current.CopyFrom(id_to_message(current))
    return pb.ParticipateResponse(receipt=receipt).SerializeToString()


def resend_message(exchange: ExchangeId, offset: int = 0) -> bytes:
    """Ask for the answer's header again and for its chunks from byte `offset` on."""
    return pb.ParticipateResponse(resend=pb.Resend(id=id_to_message(exchange), offset=offset)).SerializeToString()


def farewell_message(completed: bool, reason: str, paused: bool = False) -> bytes:
    """Say that the run is over, or, if it is `paused`, that the server goes and will come back."""
    farewell = pb.Farewell(completed=completed, reason=_sendable(reason), paused=paused)
    return pb.ParticipateResponse(farewell=farewell).SerializeToString()


def hello_message(
    session_token: str,
    holding: Holding | None = None,
    *,
    lacks_constants: bool = False,
    takes_batches: bool = False,
) -> bytes:
    """Open the stream, and report what is held: which broadcast from before the connection broke, and the constants."""
    hello = pb.Hello(session_token=session_token, lacks_constants=lacks_constants, takes_batches=takes_batches)
    if holding is not None:
        hello.holding.id.CopyFrom(id_to_message(holding.exchange))
        hello.holding.digest = holding.digest
        hello.holding.size_bytes = holding.size_bytes
    return pb.ParticipateRequest(hello=hello).SerializeToString()


def holding_of(hello: pb.Hello) -> Holding | None:
    """Read what a client says it holds. Raises ProtocolError if its exchange id is malformed."""
    if not hello.HasField("holding"):
        return None
    return Holding(id_from_message(hello.holding.id), hello.holding.digest, hello.holding.size_bytes)


CLIENT_HEARTBEAT = pb.ParticipateRequest(heartbeat=pb.Heartbeat()).SerializeToString()
SERVER_HEARTBEAT = pb.ParticipateResponse(heartbeat=pb.Heartbeat()).SerializeToString()
