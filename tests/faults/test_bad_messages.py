"""Bytes that are no messages of the protocol end a stream; everyone else goes on."""

import socket
from collections.abc import Iterator

import grpc
import pytest
from harness import RUN_ID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from live import Scene, errors_in, live_scene

from feddkd.transport.frames import Chunk, encode_chunk
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2

BROKEN_MESSAGES = {
    "garbage": b"\xff\xff\xff\xff",
    "empty": b"",
    "hello_again": pb.ParticipateRequest(hello=pb.Hello(session_token="0" * 32)).SerializeToString(),
    "truncated_chunk": encode_chunk(Chunk(0, 1, memoryview(b"12345678")))[:-1],
    "chunk_of_unknown_field": b"\x12\x02\x28\x01",
    "chunk_that_declares_too_much": b"\x12\xff\xff\xff\xff\x0f",
    "truncated_answer": pb.ParticipateRequest(answer=pb.Answer(id=pb.ExchangeId(run_id=RUN_ID))).SerializeToString()[:-1],
    "text_that_is_not_utf8": b"\x1a\x06\x0a\x04\x0a\x02\xff\xfe",
}


@pytest.mark.parametrize("message", BROKEN_MESSAGES.values(), ids=BROKEN_MESSAGES)
def test_a_message_that_breaks_the_contract_ends_the_stream(scene: Scene, message: bytes) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        hand.send(message)
        assert hand.status() is grpc.StatusCode.INVALID_ARGUMENT
        scene.server.wait_for("honest")


def test_a_message_beyond_four_mebibytes_ends_the_stream(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        hand.send(encode_chunk(Chunk(0, 0, memoryview(bytes(5 << 20)))))
        assert hand.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
        scene.server.wait_for("honest")


def test_a_message_far_longer_than_any_honest_one_ends_the_stream(scene: Scene) -> None:
    """Even though it is an answer: nothing of it is parsed."""
    tensors = (tensors_pb2.TensorSpec(name=f"t{i}") for i in range(100_000))
    schema = tensors_pb2.Schema(tensors=tensors)
    answer = pb.Answer(payload=tensors_pb2.PayloadHeader(schema=schema))
    message = pb.ParticipateRequest(answer=answer).SerializeToString()
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        hand.work()
        hand.send(message)
        assert hand.status() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"a message of {len(message)} bytes" in hand.details()
        assert list(outcome.result().replies) == ["honest"]


@pytest.fixture(scope="module")
def lasting_scene() -> Iterator[Scene]:
    with live_scene() as scene:
        yield scene


messages = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=64).map(lambda rest: b"\x12" + rest),  # as chunks begin
    st.binary(max_size=64).map(lambda rest: b"\x1a" + bytes([len(rest)]) + rest),  # as answers begin
    st.binary(max_size=64).map(lambda rest: b"\x22" + bytes([len(rest)]) + rest),  # as failures begin
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(messages, min_size=1, max_size=4))
@example(sent=[b"\x12\x00"])
@example(sent=[b"\x1a\x00"])
@example(sent=[b"\x22\x00"])
def test_random_messages_never_harm_the_server(lasting_scene: Scene, caplog: pytest.LogCaptureFixture, sent: list[bytes]) -> None:
    scene = lasting_scene
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        hand.work()
        hand.send(*sent)
        hand.half_close()
        assert hand.status() in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
        assert "honest" in outcome.result().replies
    scene.server.wait_for("honest")
    scene.check_alive()
    assert errors_in(caplog) == []


@settings(max_examples=30, deadline=None)
@given(sent=st.binary(min_size=1, max_size=200))
@example(sent=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(sent=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)
@example(sent=b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # a TLS client
def test_random_bytes_on_the_port_never_harm_the_server(lasting_scene: Scene, sent: bytes) -> None:
    host, port = lasting_scene.server.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(sent)
    lasting_scene.check_alive()


def test_an_http_1_request_is_not_answered_as_if_it_were_understood(scene: Scene) -> None:
    host, port = scene.server.address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert not answer.startswith(b"HTTP/1")
