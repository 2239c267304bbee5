import contextlib
import dataclasses
import math
import re

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feddkd.errors import ProtocolError
from feddkd.exchange import MAX_METRICS, Evaluation, EvaluationForm, ExchangeId, Outcome, Reply
from feddkd.tasks.metrics import StateRange
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.frames import is_chunk
from feddkd.transport.messages import (
    CLIENT_HEARTBEAT,
    LARGEST_NUMBER,
    MAX_COUNT,
    MAX_ID_CHARACTERS,
    MAX_METRIC_NAME_CHARACTERS,
    MAX_REASON_CHARACTERS,
    SERVER_HEARTBEAT,
    Holding,
    Verdict,
    answer_message,
    failure_message,
    farewell_message,
    hello_message,
    holding_of,
    id_from_message,
    id_to_message,
    numbers_of,
    receipt_message,
    repeated_answer_message,
    resend_message,
    work_message,
)
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

counts = st.integers(0, 2**32 - 1)
names = st.text(max_size=MAX_ID_CHARACTERS)
exchanges = st.builds(ExchangeId, names, counts, counts, names, counts)
finite = st.floats(-LARGEST_NUMBER, LARGEST_NUMBER)
evaluations = st.tuples(st.integers(1, MAX_COUNT), st.integers(0, MAX_COUNT), finite).map(
    lambda each: Evaluation(each[0], min(each[:2]), abs(each[2]))
)
metric_names = st.text(
    st.characters(exclude_categories=["C", "Z"]) | st.just(" "),
    min_size=1,
    max_size=MAX_METRIC_NAME_CHARACTERS,
)
replies = st.builds(
    Reply,
    contribution=st.none(),
    loss=st.none() | finite,
    evaluation=st.none() | evaluations,
    compute_s=st.floats(0, LARGEST_NUMBER),
    gradient_evaluations=st.integers(0, MAX_COUNT),
    metrics=st.dictionaries(metric_names, finite, max_size=MAX_METRICS),
)

EXCHANGE = ExchangeId("run", 3, 1, "dkd_step", 7)
PAYLOAD = Payload(Tensors(Schema([TensorSpec("w", torch.float32, (3,))])), 8)


from_client = pb.ParticipateRequest.FromString
from_server = pb.ParticipateResponse.FromString


@given(exchanges)
def test_an_identity_survives_the_wire(exchange: ExchangeId) -> None:
    message = pb.ExchangeId.FromString(id_to_message(exchange).SerializeToString())
    assert id_from_message(message) == exchange


@given(exchanges, replies)
def test_the_numbers_of_an_answer_survive_the_wire(exchange: ExchangeId, reply: Reply) -> None:
    answer = from_client(answer_message(exchange, reply, None)).answer
    assert id_from_message(answer.id) == exchange
    assert numbers_of(answer) == reply


def test_work_says_what_follows_and_until_when() -> None:
    message = work_message(EXCHANGE, PAYLOAD, evaluate=True, deadline_s=2.5)
    work = from_server(message).work
    assert id_from_message(work.id) == EXCHANGE
    assert work.payload == PAYLOAD.header
    assert (work.evaluate, work.deadline_s) == (True, 2.5)


def test_an_answer_announces_its_payload_and_names_its_content_when_it_is_sent_again() -> None:
    message = answer_message(EXCHANGE, Reply(loss=0.5), PAYLOAD)
    answer = from_client(message).answer
    assert answer.payload == PAYLOAD.header
    again = from_client(repeated_answer_message(message, PAYLOAD)).answer
    assert again.payload.content_sha256 == PAYLOAD.content_sha256
    again.payload.content_sha256 = b""
    assert again == answer
    assert not from_client(answer_message(EXCHANGE, Reply(), None)).answer.HasField("payload")


def test_a_loss_of_zero_is_not_taken_for_none() -> None:
    for loss in (0.0, None):
        answer = from_client(answer_message(EXCHANGE, Reply(loss=loss), None)).answer
        assert numbers_of(answer).loss == loss


# The numbers of a reply: each alone, at its limit and beyond.

BEYOND = [math.nan, math.inf, -math.inf, 1.7e308, math.nextafter(LARGEST_NUMBER, math.inf)]
LIMITS = [LARGEST_NUMBER, -LARGEST_NUMBER, 5e-324, -0.0]


@pytest.mark.parametrize("value", BEYOND)
def test_a_loss_beyond_the_limit_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="the loss is"):
        numbers_of(pb.Answer(loss=value))


@pytest.mark.parametrize("value", BEYOND)
def test_a_metric_beyond_the_limit_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match=f"metric 'angle' is {re.escape(str(value))}$"):
        numbers_of(pb.Answer(metrics={"norm": 1.0, "angle": value}))


@pytest.mark.parametrize("value", [*BEYOND, -1.0, -5e-324])
def test_a_duration_beyond_the_limit_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="compute_s is"):
        numbers_of(pb.Answer(compute_s=value))


@pytest.mark.parametrize("value", BEYOND)
def test_an_evaluations_loss_beyond_the_limit_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="the evaluation's loss is"):
        numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=2, correct=1, loss_sum=value)))


@pytest.mark.parametrize("value", LIMITS)
def test_numbers_at_their_limits_are_accepted(value: float) -> None:
    evaluation = pb.Evaluation(examples=2, correct=1, loss_sum=abs(value))
    found = numbers_of(pb.Answer(loss=value, metrics={"x": value}, evaluation=evaluation))
    assert found == Reply(loss=value, metrics={"x": value}, evaluation=Evaluation(2, 1, abs(value)))


def test_an_evaluation_has_no_negative_loss() -> None:
    with pytest.raises(ProtocolError, match=r"the evaluation's loss is -0\.5"):
        numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=2, correct=1, loss_sum=-0.5)))


def test_a_duration_at_its_limits_is_accepted() -> None:
    for seconds in (0.0, 5e-324, LARGEST_NUMBER):
        assert numbers_of(pb.Answer(compute_s=seconds)).compute_s == seconds


@pytest.mark.parametrize("count", [MAX_COUNT + 1, 2**63, 2**64 - 1])
def test_work_beyond_the_limit_is_refused(count: int) -> None:
    with pytest.raises(ProtocolError, match=f"^{count} gradient evaluations$"):
        numbers_of(pb.Answer(gradient_evaluations=count))


def test_work_at_its_limit_is_accepted() -> None:
    assert numbers_of(pb.Answer(gradient_evaluations=MAX_COUNT)).gradient_evaluations == MAX_COUNT


@pytest.mark.parametrize(("examples", "correct"), [(0, 0), (0, 1), (3, 4), (2**63, 2**64 - 1)])
def test_impossible_counts_are_refused(examples: int, correct: int) -> None:
    with pytest.raises(ProtocolError, match=f"{correct} correct among {examples}"):
        numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=examples, correct=correct)))


TWO_METRICS = EvaluationForm(
    counts_correct=False,
    states={"mae": (StateRange(1, 0.0, math.inf), StateRange(1, 0.0, 1.0)), "r2": (StateRange(1, -math.inf, math.inf),)},
    least_loss=-math.inf,
)


NO_METRICS = dataclasses.replace(TWO_METRICS, states={})


def with_sums(**sums: list[float]) -> pb.Answer:
    evaluation = pb.Evaluation(examples=2, loss_sum=-0.5)
    for name, numbers in sums.items():
        evaluation.sums[name].numbers.extend(numbers)
    return pb.Answer(evaluation=evaluation)


def test_the_states_of_metrics_arrive_as_they_were_sent() -> None:
    sent = Evaluation(2, None, -0.5, sums={"mae": (1.5, 2.0), "r2": (-0.25,)})
    request = pb.ParticipateRequest.FromString(answer_message(EXCHANGE, Reply(evaluation=sent), None))
    assert numbers_of(request.answer, form=TWO_METRICS).evaluation == sent


@pytest.mark.parametrize(
    "sums",
    [
        {"mae": [1.0, 2.0]},
        {"mae": [1.0, 2.0], "r2": [1.0, 2.0]},
        {"mae": [1.0, 2.0], "r2": []},
        {"mae": [1.0, 2.0], "r2": [1.0], "f1": [1.0]},
        {"mae": [1.0, math.nan], "r2": [1.0]},
        {"mae": [1.0, math.inf], "r2": [1.0]},
        {"mae": [-1.0, 2.0], "r2": [1.0]},
        {"mae": [1.0, -2.0], "r2": [1.0]},
        {"mae": [1.0, 2.5], "r2": [1.0]},
    ],
)
def test_other_states_of_metrics_than_those_of_the_task_are_refused(sums: dict[str, list[float]]) -> None:
    with pytest.raises(ProtocolError, match="metric"):
        numbers_of(with_sums(**sums), form=TWO_METRICS)
    with pytest.raises(ProtocolError, match="metric"):
        numbers_of(
            pb.Answer(evaluation=with_sums(**sums).evaluation, loss=0.5), form=EvaluationForm(counts_correct=False, least_loss=-math.inf)
        )


def test_a_loss_is_as_small_as_the_task_allows() -> None:
    with pytest.raises(ProtocolError, match=r"the evaluation's loss is -0\.5"):
        numbers_of(with_sums(mae=[1.0, 2.0], r2=[0.0]), form=dataclasses.replace(TWO_METRICS, least_loss=0.0))


def test_a_task_says_whether_correct_examples_are_counted() -> None:
    with pytest.raises(ProtocolError, match="where the task has none"):
        numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=2, correct=1)), form=EvaluationForm(counts_correct=False))
    none_of_two = numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=2))).evaluation
    assert none_of_two == Evaluation(2, 0, 0.0)


@pytest.mark.parametrize("limit", [1, 100, MAX_COUNT])
def test_an_evaluation_of_more_examples_than_a_client_can_hold_out_is_refused(limit: int) -> None:
    def evaluation_of(examples: int) -> Evaluation | None:
        counts = pb.Evaluation(examples=examples, correct=examples)
        return numbers_of(pb.Answer(evaluation=counts), limit).evaluation

    assert evaluation_of(limit) == Evaluation(limit, limit, 0.0)
    with pytest.raises(ProtocolError, match=f"can hold out {limit} at most"):
        evaluation_of(limit + 1)


def test_without_a_limit_an_evaluations_counts_are_exact_in_float64() -> None:
    counts = pb.Evaluation(examples=MAX_COUNT + 1, correct=1)
    with pytest.raises(ProtocolError, match=f"can hold out {MAX_COUNT} at most"):
        numbers_of(pb.Answer(evaluation=counts))


doubles = finite | st.floats() | st.sampled_from([*BEYOND, *LIMITS])
"""NaN, infinities and denormals among them."""
any_counts = st.integers(0, MAX_COUNT) | st.integers(0, 2**64 - 1) | st.just(MAX_COUNT + 1)
any_evaluations = st.builds(
    pb.Evaluation,
    examples=any_counts,
    correct=any_counts,
    loss_sum=doubles,
)
any_answers = st.builds(
    pb.Answer,
    loss=st.none() | doubles,
    evaluation=st.none() | any_evaluations,
    compute_s=st.none() | doubles,
    gradient_evaluations=st.none() | any_counts,
    metrics=st.dictionaries(st.sampled_from(["x", "y"]), doubles),
)
REPEATS = 1000


def only_accepted(answers: list[pb.Answer]) -> list[Reply]:
    accepted = []
    for answer in answers:
        with contextlib.suppress(ProtocolError):
            accepted.append(numbers_of(answer))
    return accepted


AT_THE_LIMIT = pb.Answer(
    loss=LARGEST_NUMBER,
    evaluation=pb.Evaluation(examples=MAX_COUNT, correct=MAX_COUNT, loss_sum=LARGEST_NUMBER),
    compute_s=LARGEST_NUMBER,
    gradient_evaluations=MAX_COUNT,
    metrics={"x": -LARGEST_NUMBER, "y": 5e-324},
)


@settings(max_examples=200)
@example([AT_THE_LIMIT], 2.0**53)
@given(st.lists(any_answers, min_size=1, max_size=4), st.sampled_from([1.0, 5e-324, 2.0**53]))
def test_no_sum_over_replies_that_were_accepted_can_overflow(
    answers: list[pb.Answer],
    weight: float,
) -> None:
    accepted = only_accepted(answers)
    many = {f"{index:04}": reply for index, reply in enumerate(accepted * REPEATS)}
    outcome = Outcome(None, many, {}, Traffic(), 0.0)
    weights = dict.fromkeys(many, weight)
    sums = [*outcome.mean_metrics(weights).values(), outcome.client_seconds]
    if (loss := outcome.mean_loss(weights)) is not None:
        sums.append(loss)
    if (evaluation := outcome.evaluation) is not None:
        assert evaluation.accuracy is not None
        assert evaluation.correct is not None
        sums += [evaluation.loss_sum, evaluation.loss, evaluation.accuracy]
        assert 0 <= evaluation.correct <= evaluation.examples
    assert all(map(math.isfinite, sums))
    assert math.isfinite(float(outcome.gradient_evaluations))


@given(finite, st.floats(0, LARGEST_NUMBER), st.integers(0, MAX_COUNT), st.integers(1, MAX_COUNT))
def test_every_number_within_its_limits_is_accepted(
    value: float,
    seconds: float,
    work: int,
    examples: int,
) -> None:
    evaluation = pb.Evaluation(examples=examples, correct=examples, loss_sum=abs(value))
    answer = pb.Answer(
        loss=value,
        evaluation=evaluation,
        compute_s=seconds,
        gradient_evaluations=work,
        metrics={"x": value},
    )
    expected = Reply(
        loss=value,
        evaluation=Evaluation(examples, examples, abs(value)),
        compute_s=seconds,
        gradient_evaluations=work,
        metrics={"x": value},
    )
    assert numbers_of(answer) == expected


# Names.


def test_an_answer_of_an_older_client_says_nothing_of_its_work() -> None:
    found = numbers_of(pb.Answer())
    assert (found.gradient_evaluations, found.metrics) == (0, {})


def test_metrics_are_few() -> None:
    many = {f"m{index}": 1.0 for index in range(MAX_METRICS)}
    assert len(numbers_of(pb.Answer(metrics=many)).metrics) == MAX_METRICS
    with pytest.raises(ProtocolError, match="33 metrics, where at most 32 are allowed"):
        numbers_of(pb.Answer(metrics=many | {"one more": 1.0}))


@pytest.mark.parametrize("name", ["n", "n" * MAX_METRIC_NAME_CHARACTERS, "a b", "ä/β", "模"])
def test_a_metrics_name_is_printable_and_short(name: str) -> None:
    assert numbers_of(pb.Answer(metrics={name: 1.0})).metrics == {name: 1.0}


UNPRINTABLE = ["a\nb", "\x1b[31m", "\x00", "\u202e", "\u2028", "\x7f", "\xa0", "\t"]


@pytest.mark.parametrize("name", ["", "n" * (MAX_METRIC_NAME_CHARACTERS + 1), *UNPRINTABLE])
def test_any_other_name_of_a_metric_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError, match="not 1 to 64 printable characters") as refused:
        numbers_of(pb.Answer(metrics={name: 1.0}))
    assert str(refused.value).isprintable()  # it reaches the log


@pytest.mark.parametrize("field", ["run_id", "name"])
def test_an_identity_with_a_long_name_is_refused(field: str) -> None:
    message = id_to_message(EXCHANGE)
    setattr(message, field, "x" * MAX_ID_CHARACTERS)
    assert getattr(id_from_message(message), field) == "x" * MAX_ID_CHARACTERS
    setattr(message, field, "x" * (MAX_ID_CHARACTERS + 1))
    with pytest.raises(ProtocolError, match="more than 64 characters"):
        id_from_message(message)


def test_the_order_in_which_metrics_were_written_does_not_show() -> None:
    forwards, backwards = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert list(numbers_of(pb.Answer(metrics=backwards)).metrics) == ["a", "b"]
    first = answer_message(EXCHANGE, Reply(metrics=forwards), None)
    second = answer_message(EXCHANGE, Reply(metrics=backwards), None)
    assert len(first) == len(second)


def test_how_a_model_did_by_class_does_not_leave_the_client() -> None:
    reply = Reply(evaluation=Evaluation(3, 2, 1.0, (1, 2), (0, 2)))
    sent = answer_message(EXCHANGE, reply, None)
    assert sent == answer_message(EXCHANGE, Reply(evaluation=Evaluation(3, 2, 1.0)), None)
    evaluation = numbers_of(from_client(sent).answer).evaluation
    assert evaluation == Evaluation(3, 2, 1.0)
    assert evaluation.class_accuracy is None


def test_reasons_are_shortened() -> None:
    failure = from_client(failure_message(EXCHANGE, "x" * 1000)).failure
    message = receipt_message(EXCHANGE, Verdict.VERDICT_OK, "y" * 1000)
    receipt = from_server(message).receipt
    assert (failure.reason, receipt.reason) == (
        "x" * MAX_REASON_CHARACTERS,
        "y" * MAX_REASON_CHARACTERS,
    )


def test_a_receipt_names_the_open_exchange_only_if_there_is_one() -> None:
    other = ExchangeId("run", 4, 0, "local_train", 0)
    closed = Verdict.VERDICT_FAILED_PRECONDITION
    receipt = from_server(receipt_message(EXCHANGE, closed, "closed", other)).receipt
    assert id_from_message(receipt.current) == other
    assert id_from_message(receipt.id) == EXCHANGE
    counted = from_server(receipt_message(EXCHANGE, Verdict.VERDICT_OK)).receipt
    assert not counted.HasField("current")


def test_the_other_messages_say_what_they_are() -> None:
    assert id_from_message(from_server(resend_message(EXCHANGE)).resend.id) == EXCHANGE
    farewell = from_server(farewell_message(True, "done")).farewell
    assert (farewell.completed, farewell.reason, farewell.paused) == (True, "done", False)
    assert from_server(farewell_message(False, "", paused=True)).farewell.paused
    assert from_client(hello_message("secret")).hello.session_token == "secret"


@given(exchanges, st.binary(max_size=64), st.integers(0, 2**64 - 1), st.text(max_size=64))
def test_what_a_client_holds_survives_the_wire(
    exchange: ExchangeId,
    digest: bytes,
    size_bytes: int,
    token: str,
) -> None:
    holding = Holding(exchange, digest, size_bytes)
    hello = from_client(hello_message(token, holding)).hello
    assert hello.session_token == token
    assert holding_of(hello) == holding


def test_a_client_that_holds_nothing_says_nothing_of_it() -> None:
    hello = from_client(hello_message("secret")).hello
    assert not hello.HasField("holding")
    assert holding_of(hello) is None


def test_to_hold_a_broadcast_of_a_made_up_exchange_is_refused() -> None:
    hello = pb.Hello(session_token="secret")
    hello.holding.id.name = "x" * (MAX_ID_CHARACTERS + 1)
    with pytest.raises(ProtocolError):
        holding_of(hello)


def test_an_upload_can_be_asked_for_from_any_byte() -> None:
    for offset in (0, 8, 2**40):
        resend = from_server(resend_message(EXCHANGE, offset)).resend
        assert (id_from_message(resend.id), resend.offset) == (EXCHANGE, offset)


def test_heartbeats_say_nothing_but_that_a_process_is_alive() -> None:
    up, down = from_client(CLIENT_HEARTBEAT), from_server(SERVER_HEARTBEAT)
    assert up == pb.ParticipateRequest(heartbeat=pb.Heartbeat())
    assert down == pb.ParticipateResponse(heartbeat=pb.Heartbeat())
    assert up.WhichOneof("message") == down.WhichOneof("message") == "heartbeat"


UNSENDABLE = "cannot open /data/\udcff.png"
"""An error as Python words it where a file's name is not UTF-8."""


def test_a_reason_that_is_no_utf_8_is_sent_all_the_same() -> None:
    failure = from_client(failure_message(EXCHANGE, UNSENDABLE)).failure
    refused = receipt_message(EXCHANGE, Verdict.VERDICT_INVALID_ARGUMENT, UNSENDABLE)
    receipt = from_server(refused).receipt
    farewell = from_server(farewell_message(False, UNSENDABLE)).farewell
    assert {failure.reason, receipt.reason, farewell.reason} == {r"cannot open /data/\udcff.png"}


@given(st.text(st.characters() | st.characters(categories=["Cs"]), max_size=300))
def test_any_reason_is_sent_in_at_most_200_characters(reason: str) -> None:
    failure = from_client(failure_message(EXCHANGE, reason)).failure
    assert len(failure.reason) <= MAX_REASON_CHARACTERS
    assert len(failure.reason) >= min(len(reason), MAX_REASON_CHARACTERS)


@given(exchanges, replies)
def test_no_other_message_is_mistaken_for_a_chunk(exchange: ExchangeId, reply: Reply) -> None:
    messages = [
        work_message(exchange, PAYLOAD, evaluate=False, deadline_s=1),
        answer_message(exchange, reply, PAYLOAD),
        failure_message(exchange, "no"),
        receipt_message(exchange, Verdict.VERDICT_OK),
        resend_message(exchange),
        farewell_message(True, ""),
        hello_message("x"),
        hello_message("x", Holding(exchange, b"d", 1)),
        CLIENT_HEARTBEAT,
        SERVER_HEARTBEAT,
    ]
    assert not any(map(is_chunk, messages))
    assert all(is_chunk(frame) for frame in PAYLOAD.frames())
