import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feddkd.errors import ProtocolError
from feddkd.exchange import MAX_METRICS, Evaluation, ExchangeId, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import is_chunk
from feddkd.transport.messages import (
    MAX_METRIC_NAME_CHARACTERS,
    MAX_REASON_CHARACTERS,
    Verdict,
    answer_message,
    failure_message,
    farewell_message,
    hello_message,
    id_from_message,
    id_to_message,
    numbers_of,
    receipt_message,
    resend_message,
    work_message,
)
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

counts = st.integers(0, 2**32 - 1)
exchanges = st.builds(ExchangeId, st.text(max_size=12), counts, counts, st.text(max_size=12), counts)
finite = st.floats(allow_nan=False, allow_infinity=False)
evaluations = st.tuples(st.integers(1, 2**63), st.integers(0, 2**63), finite).map(lambda each: Evaluation(each[0], min(each[:2]), each[2]))
replies = st.builds(
    Reply,
    contribution=st.none(),
    loss=st.none() | finite,
    evaluation=st.none() | evaluations,
    compute_s=st.floats(0, allow_infinity=False),
    gradient_evaluations=st.integers(0, 2**64 - 1),
    metrics=st.dictionaries(st.text(min_size=1, max_size=MAX_METRIC_NAME_CHARACTERS), finite, max_size=MAX_METRICS),
)

EXCHANGE = ExchangeId("run", 3, 1, "dkd_step", 7)
PAYLOAD = Payload(Tensors(Schema([TensorSpec("w", torch.float32, (3,))])), 8)


@given(exchanges)
def test_an_identity_survives_the_wire(exchange: ExchangeId) -> None:
    assert id_from_message(pb.ExchangeId.FromString(id_to_message(exchange).SerializeToString())) == exchange


@given(exchanges, replies)
def test_the_numbers_of_an_answer_survive_the_wire(exchange: ExchangeId, reply: Reply) -> None:
    answer = pb.ParticipateRequest.FromString(answer_message(exchange, reply, None)).answer
    assert id_from_message(answer.id) == exchange
    assert numbers_of(answer) == reply


def test_work_says_what_follows_and_until_when() -> None:
    work = pb.ParticipateResponse.FromString(work_message(EXCHANGE, PAYLOAD, evaluate=True, deadline_s=2.5)).work
    assert id_from_message(work.id) == EXCHANGE
    assert work.payload == PAYLOAD.header
    assert (work.evaluate, work.deadline_s) == (True, 2.5)


def test_an_answer_announces_its_payload() -> None:
    assert pb.ParticipateRequest.FromString(answer_message(EXCHANGE, Reply(), PAYLOAD)).answer.payload == PAYLOAD.header
    assert not pb.ParticipateRequest.FromString(answer_message(EXCHANGE, Reply(), None)).answer.HasField("payload")


def test_a_loss_of_zero_is_not_taken_for_none() -> None:
    assert numbers_of(pb.ParticipateRequest.FromString(answer_message(EXCHANGE, Reply(loss=0.0), None)).answer).loss == 0.0
    assert numbers_of(pb.ParticipateRequest.FromString(answer_message(EXCHANGE, Reply(), None)).answer).loss is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused(loss: float) -> None:
    with pytest.raises(ProtocolError, match="the loss is"):
        numbers_of(pb.Answer(loss=loss))


@pytest.mark.parametrize(("examples", "correct"), [(0, 0), (0, 1), (3, 4), (2**63, 2**64 - 1)])
def test_impossible_counts_are_refused(examples: int, correct: int) -> None:
    with pytest.raises(ProtocolError, match=f"{correct} correct among {examples}"):
        numbers_of(pb.Answer(evaluation=pb.Evaluation(examples=examples, correct=correct)))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0])
def test_a_nonsensical_duration_is_no_reason_to_refuse_an_answer(seconds: float) -> None:
    assert numbers_of(pb.Answer(compute_s=seconds)).compute_s == 0.0


def test_an_answer_of_an_older_client_says_nothing_of_its_work() -> None:
    found = numbers_of(pb.Answer())
    assert (found.gradient_evaluations, found.metrics) == (0, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match=f"metric 'angle' is {value}"):
        numbers_of(pb.Answer(metrics={"norm": 1.0, "angle": value}))


def test_metrics_are_few_and_have_short_names() -> None:
    many = {f"m{index}": 1.0 for index in range(MAX_METRICS)}
    assert len(numbers_of(pb.Answer(metrics=many)).metrics) == MAX_METRICS
    with pytest.raises(ProtocolError, match="33 metrics, where at most 32 are allowed"):
        numbers_of(pb.Answer(metrics=many | {"one more": 1.0}))
    assert numbers_of(pb.Answer(metrics={"n" * MAX_METRIC_NAME_CHARACTERS: 1.0})).metrics
    for name in ("", "n" * (MAX_METRIC_NAME_CHARACTERS + 1)):
        with pytest.raises(ProtocolError, match=f"a metric's name has {len(name)} characters"):
            numbers_of(pb.Answer(metrics={name: 1.0}))


def test_the_order_in_which_metrics_were_written_does_not_show() -> None:
    forwards, backwards = {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0}
    assert list(numbers_of(pb.Answer(metrics=backwards)).metrics) == ["a", "b"]
    lengths = {len(answer_message(EXCHANGE, Reply(metrics=metrics), None)) for metrics in (forwards, backwards)}
    assert len(lengths) == 1


def test_how_a_model_did_by_class_does_not_leave_the_client() -> None:
    reply = Reply(evaluation=Evaluation(3, 2, 1.0, (1, 2), (0, 2)))
    sent = answer_message(EXCHANGE, reply, None)
    assert sent == answer_message(EXCHANGE, Reply(evaluation=Evaluation(3, 2, 1.0)), None)
    evaluation = numbers_of(pb.ParticipateRequest.FromString(sent).answer).evaluation
    assert evaluation == Evaluation(3, 2, 1.0)
    assert evaluation.class_accuracy is None


def test_reasons_are_shortened() -> None:
    failure = pb.ParticipateRequest.FromString(failure_message(EXCHANGE, "x" * 1000)).failure
    receipt = pb.ParticipateResponse.FromString(receipt_message(EXCHANGE, Verdict.VERDICT_OK, "y" * 1000)).receipt
    assert (failure.reason, receipt.reason) == ("x" * MAX_REASON_CHARACTERS, "y" * MAX_REASON_CHARACTERS)


def test_a_receipt_names_the_open_exchange_only_if_there_is_one() -> None:
    other = ExchangeId("run", 4, 0, "local_train", 0)
    receipt = pb.ParticipateResponse.FromString(receipt_message(EXCHANGE, Verdict.VERDICT_FAILED_PRECONDITION, "closed", other)).receipt
    assert id_from_message(receipt.current) == other
    assert id_from_message(receipt.id) == EXCHANGE
    assert not pb.ParticipateResponse.FromString(receipt_message(EXCHANGE, Verdict.VERDICT_OK)).receipt.HasField("current")


def test_the_other_messages_say_what_they_are() -> None:
    assert id_from_message(pb.ParticipateResponse.FromString(resend_message(EXCHANGE)).resend.id) == EXCHANGE
    farewell = pb.ParticipateResponse.FromString(farewell_message(True, "done")).farewell
    assert (farewell.completed, farewell.reason) == (True, "done")
    assert pb.ParticipateRequest.FromString(hello_message("secret")).hello.session_token == "secret"


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
    ]
    assert not any(map(is_chunk, messages))
    assert all(is_chunk(frame) for frame in PAYLOAD.frames())
