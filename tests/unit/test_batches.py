"""Several messages in one: taken apart again as they were, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.errors import ProtocolError
from feddkd.exchange import ExchangeId
from feddkd.transport.batches import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, messages_of, request_batch, response_batch
from feddkd.transport.frames import Chunk, encode_chunk
from feddkd.transport.messages import CLIENT_HEARTBEAT, Verdict, failure_message, receipt_message
from feddkd.transport.pb import federation_pb2 as pb

EXCHANGE = ExchangeId("run", 1, 0, "local_train", 0)
CHUNKS = st.binary(max_size=200).map(lambda data: encode_chunk(Chunk(8, 5, memoryview(data))))
REQUESTS = st.one_of(CHUNKS, st.just(CLIENT_HEARTBEAT), st.text("ab", max_size=20).map(lambda text: failure_message(EXCHANGE, text)))
RESPONSES = st.one_of(CHUNKS, st.text("ab", max_size=20).map(lambda text: receipt_message(EXCHANGE, Verdict.VERDICT_OK, text)))


@given(st.lists(REQUESTS, min_size=1, max_size=MAX_BATCH_MESSAGES))
def test_a_clients_messages_come_out_as_they_went_in(messages: list[bytes]) -> None:
    assert list(messages_of(request_batch(messages))) == messages


@given(st.lists(RESPONSES, min_size=1, max_size=MAX_BATCH_MESSAGES))
def test_the_servers_messages_come_out_as_they_went_in(messages: list[bytes]) -> None:
    assert list(messages_of(response_batch(messages))) == messages


@pytest.mark.parametrize("batch", [request_batch, response_batch])
def test_a_single_message_is_sent_as_it_is(batch: object) -> None:
    assert callable(batch)
    assert batch([CLIENT_HEARTBEAT]) == CLIENT_HEARTBEAT


def test_too_many_messages_are_refused() -> None:
    with pytest.raises(ProtocolError, match=f"batch of {MAX_BATCH_MESSAGES + 1} messages; 2 to {MAX_BATCH_MESSAGES}"):
        messages_of(request_batch([CLIENT_HEARTBEAT] * (MAX_BATCH_MESSAGES + 1)))


def test_a_batch_may_be_as_long_as_the_limit() -> None:
    longest = [bytes(MAX_BATCH_BYTES), b""]
    assert messages_of(request_batch(longest)) == longest


def test_a_batch_in_a_batch_is_refused() -> None:
    inner = request_batch([CLIENT_HEARTBEAT] * 2)
    with pytest.raises(ProtocolError, match="a batch in a batch"):
        messages_of(request_batch([CLIENT_HEARTBEAT, inner]))


@given(st.lists(st.binary(max_size=9).filter(lambda message: message[:1] != b"\x3a"), max_size=4), st.binary(max_size=9))
def test_only_what_the_sender_would_build_is_a_batch(messages: list[bytes], more: bytes) -> None:
    batch = pb.ParticipateRequest(batch=pb.Batch(messages=messages)).SerializeToString() + more
    if len(messages) >= 2 and not more:
        assert messages_of(batch) == messages
    else:
        with pytest.raises(ProtocolError):
            messages_of(batch)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x3a\x00", id="no messages"),
        pytest.param(request_batch([CLIENT_HEARTBEAT] * 2)[:-1], id="cut off"),
        pytest.param(b"\x3a\x06\x0a\x00\x0a\x00\x10\x01", id="a field beside the messages"),
        pytest.param(request_batch([CLIENT_HEARTBEAT] * 2) + CLIENT_HEARTBEAT, id="another message after it"),
        pytest.param(request_batch([bytes(MAX_BATCH_BYTES), b"1"]), id="too long"),
    ],
)
def test_a_batch_with_more_or_less_than_its_messages_is_refused(message: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages_of(message)
