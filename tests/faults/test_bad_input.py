"""What a broken or hostile client can send: it is refused by name, and the server and everyone else go on."""

import logging
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import grpc
import psutil
import pytest
import torch
from harness import (
    RUN_ID,
    SCHEMA,
    FakeWorker,
    HandClient,
    Server,
    answer_frames,
    answering,
    exchange_of,
    filled,
    mean_of,
    serving,
    small_config,
    start_agent,
    until,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feddkd.client import backoff
from feddkd.client.agent import Agent
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import LOOPBACK
from feddkd.errors import AddressInUseError, RefusedError, UnreachableError
from feddkd.exchange import Reply, Task
from feddkd.scheduler.engine import Outcome
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import SERVICE, Chunk, decode_chunk, encode_chunk
from feddkd.transport.messages import Verdict, failure_message, id_from_message, id_to_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2

HONEST = filled(SCHEMA, 1)
OURS = filled(SCHEMA, 2)
MODEL = filled(SCHEMA, 0)


class Scene:
    """A live server with an honest client; what the client under test does must not disturb them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.round = 0

    def begin(self, *clients: str, reply_schema: Schema | None = SCHEMA) -> Future[Outcome]:
        self.round += 1
        return self.server.begin(exchange_of(clients, MODEL, round_number=self.round, reply_schema=reply_schema))

    def hand(self, client_id: str = "hand") -> HandClient:
        return HandClient(self.server.address, client_id)

    def check_alive(self) -> None:
        outcome = self.begin("honest").result()
        assert list(outcome.replies) == ["honest"]
        assert outcome.reduced is not None
        assert outcome.reduced.sha256() == HONEST.sha256()


NOISE = ("ExecuteBatchError raised in core", "PollerCompletionQueue._handle_events")
"""What gRPC says when a client hangs up while a status is being sent, or a loop has ended; not about us."""


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What went wrong behind the scenes, as where a handler raised what it should not."""
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    return [message for message in errors if not any(noise in message for noise in NOISE)]


@pytest.fixture
def scene(caplog: pytest.LogCaptureFixture) -> Iterator[Scene]:
    with serving() as server:
        server.agent("honest", answering(HONEST))
        server.wait_for("honest")
        scene = Scene(server)
        yield scene
        scene.check_alive()
    assert errors_in(caplog) == []


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    error: Any = refused.value  # also a grpc.Call
    return error.code(), error.details()


# Joining


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_protocol_version_may_neither_ask_nor_join(scene: Scene, version: int) -> None:
    with scene.hand() as hand:
        code, details = status_of(lambda: hand.join(version=version))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"version {version}, this server 1" in details
    with grpc.insecure_channel(scene.server.address) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Describe", pb.DescribeRequest.SerializeToString, pb.DescribeResponse.FromString)
        assert status_of(lambda: ask(pb.DescribeRequest(protocol_version=version)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert ask(pb.DescribeRequest(protocol_version=1)).manifest.run_id == RUN_ID


@pytest.mark.parametrize("client_id", ["", "A", "-a", ".a", "a" * 65, "a b", "a/b", "a\n", "ä", "../../etc"])
def test_a_malformed_client_id_is_refused(scene: Scene, client_id: str) -> None:
    with scene.hand(client_id) as hand:
        assert status_of(hand.join)[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("client_id", ["a", "0", "a" * 64, "site-1.example_b"])
def test_a_well_formed_client_id_is_accepted(scene: Scene, client_id: str) -> None:
    with scene.hand(client_id) as hand:
        assert len(hand.join().session_token) == 32


@pytest.mark.parametrize("examples", [0, -1, -(2**63), 2**53 + 1])
def test_an_example_count_that_is_no_weight_is_refused(scene: Scene, examples: int) -> None:
    with scene.hand() as hand:
        code, details = status_of(lambda: hand.join(examples=examples))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(examples) in details


def test_a_second_process_with_the_same_id_is_turned_away(scene: Scene) -> None:
    with scene.hand("honest") as impostor:
        assert status_of(lambda: impostor.join(instance="another"))[0] is grpc.StatusCode.ALREADY_EXISTS


def test_a_newer_stream_of_the_same_client_ends_the_older_one(scene: Scene) -> None:
    with scene.hand() as old, scene.hand() as new:
        token = old.join().session_token
        new.schema = SCHEMA
        old.open(token)
        scene.server.wait_for("honest", "hand")
        outcome = scene.begin("hand")
        old.work()
        new.open(token)
        assert old.status() is grpc.StatusCode.ABORTED
        work, _ = new.work()
        new.send(*answer_frames(work, OURS))
        assert outcome.result().missing == {}


@pytest.mark.parametrize("first", [b"", b"garbage", pb.ParticipateRequest(hello=pb.Hello(session_token="é")).SerializeToString()])
def test_a_stream_without_a_session_is_refused(scene: Scene, first: bytes) -> None:
    with scene.hand() as hand:
        assert hand.open_with(first).status() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_with_an_unknown_token_is_refused(scene: Scene) -> None:
    with scene.hand() as hand:
        assert hand.open("0" * 32).status() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_that_ends_at_once_is_refused(scene: Scene) -> None:
    with scene.hand() as hand:
        assert hand.open_with(None).status() is grpc.StatusCode.UNAUTHENTICATED


# Answers


def rewritten(work: pb.Work, change: Callable[[pb.Answer], object], contribution: Tensors = OURS) -> list[bytes]:
    """An honest answer whose header was changed."""
    header, *chunks = answer_frames(work, contribution)
    request = pb.ParticipateRequest.FromString(header)
    change(request.answer)
    return [request.SerializeToString(), *chunks]


def with_schema(work: pb.Work, *specs: TensorSpec) -> list[bytes]:
    return answer_frames(work, Tensors(Schema(specs)))


def damaged(work: pb.Work, change: Callable[[Chunk], Chunk]) -> list[bytes]:
    """An honest answer whose first chunk was changed."""
    header, first, *rest = answer_frames(work, OURS)
    return [header, encode_chunk(change(decode_chunk(first))), *rest]


def flipped(data: memoryview) -> memoryview:
    out = bytearray(data)
    out[3] ^= 0x10
    return memoryview(bytes(out))


def filled_with(name: str, value: float) -> Tensors:
    out = OURS.replace({})
    out[name].view(torch.uint8 if out[name].dtype == torch.bool else out[name].dtype).fill_(value)
    return out


def spec(name: str) -> TensorSpec:
    return SCHEMA.by_name[name]


ALL = SCHEMA.specs
REST = [spec(name) for name in ("norm.count", "layer.bias", "mask")]


def set_sizes(answer: pb.Answer, *shape: int) -> None:
    weight = next(tensor for tensor in answer.payload.schema.tensors if tensor.name == "layer.weight")
    weight.shape[:] = shape


def add_tensors(answer: pb.Answer, count: int) -> None:
    answer.payload.schema.tensors.extend(tensors_pb2.TensorSpec(name=f"t{i}", dtype=tensors_pb2.ELEMENT_TYPE_BOOL) for i in range(count))


def set_evaluation(answer: pb.Answer, examples: int, correct: int) -> None:
    answer.evaluation.examples = examples
    answer.evaluation.correct = correct


BAD_ANSWERS: dict[str, tuple[Callable[[pb.Work], list[bytes]], str]] = {
    "other_name": (
        lambda work: with_schema(work, *REST, TensorSpec("layer.weights", torch.float32, (4, 5))),
        "'layer.weight' is missing",
    ),
    "other_dtype": (
        lambda work: with_schema(work, *REST, TensorSpec("layer.weight", torch.float64, (4, 5))),
        "tensor layer.weight: float64[4, 5] where layer.weight: float32[4, 5] is expected",
    ),
    "other_shape": (
        lambda work: with_schema(work, *REST, TensorSpec("layer.weight", torch.float32, (5, 4))),
        "layer.weight: float32[5, 4] where layer.weight: float32[4, 5]",
    ),
    "missing_tensor": (lambda work: with_schema(work, *REST), "'layer.weight' is missing"),
    "extra_tensor": (lambda work: with_schema(work, *ALL, TensorSpec("more", torch.int8, (1,))), "'more' is not expected"),
    "extra_empty_tensor": (lambda work: with_schema(work, *ALL, TensorSpec("more", torch.int8, (0,))), "'more' is not expected"),
    "other_order": (lambda work: with_schema(work, *reversed(ALL)), "another order"),
    "no_element_type": (
        lambda work: rewritten(work, lambda answer: answer.payload.schema.tensors[0].ClearField("dtype")),
        "unknown element type 0",
    ),
    "unknown_element_type": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload.schema.tensors[0], "dtype", 99)),
        "unknown element type 99",
    ),
    "too_many_tensors": (lambda work: rewritten(work, lambda answer: add_tensors(answer, 10_000)), "at most 10000 are allowed"),
    "two_of_one_name": (
        lambda work: rewritten(work, lambda answer: answer.payload.schema.tensors.append(answer.payload.schema.tensors[3])),
        "share a name",
    ),
    "long_name": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload.schema.tensors[0], "name", "x" * 257)),
        "longer than 256 bytes",
    ),
    "many_dimensions": (lambda work: rewritten(work, lambda answer: set_sizes(answer, *[1] * 9)), "9 dimensions"),
    "huge_size": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload, "size_bytes", 2**40)),
        f"{2**40} bytes declared where the schema has {SCHEMA.size_bytes}",
    ),
    "huge_shape": (lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**40)), f"layer.weight: float32[{2**40}]"),
    "overflowing_shape": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**40, 2**40)),
        f"layer.weight: float32[{2**40}, {2**40}]",
    ),
    "shape_that_overflows_to_the_right_size": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**62 + 5, 4)),
        f"layer.weight: float32[{2**62 + 5}, 4]",
    ),
    "no_chunk_bytes": (lambda work: rewritten(work, lambda answer: setattr(answer.payload, "chunk_bytes", 0)), "chunks of 0 bytes"),
    "other_chunk_bytes": (lambda work: answer_frames(work, OURS, chunk_bytes=16), "chunks of 16 bytes where"),
    "short_digest": (lambda work: rewritten(work, lambda answer: setattr(answer.payload, "digest", bytes(31))), "digest of 31 bytes"),
    "other_digest": (lambda work: rewritten(work, lambda answer: setattr(answer.payload, "digest", bytes(32))), "digest of the payload"),
    "flipped_bit": (lambda work: damaged(work, lambda chunk: chunk._replace(data=flipped(chunk.data))), "checksum"),
    "other_checksum": (lambda work: damaged(work, lambda chunk: chunk._replace(crc32c=chunk.crc32c ^ 1)), "checksum"),
    "other_offset": (lambda work: damaged(work, lambda chunk: chunk._replace(offset=chunk.offset + 4)), "where byte 0 comes next"),
    "offset_of_64_bits": (lambda work: damaged(work, lambda chunk: chunk._replace(offset=2**64 - 1)), "where byte 0 comes next"),
    "long_chunk": (
        lambda work: damaged(work, lambda chunk: chunk._replace(data=memoryview(bytes(chunk.data) + b"\0"))),
        "a chunk of 9 bytes at byte 0 where 8 are due",
    ),
    "short_chunk": (lambda work: damaged(work, lambda chunk: chunk._replace(data=chunk.data[:-1])), "a chunk of 7 bytes"),
    "empty_chunk": (lambda work: damaged(work, lambda _: Chunk(0, 0, memoryview(b""))), "a chunk of 0 bytes"),
    "chunk_left_out": (lambda work: [frame for i, frame in enumerate(answer_frames(work, OURS)) if i != 1], "a chunk at byte 8 where"),
    "chunk_twice": (lambda work: [frame for frame in answer_frames(work, OURS) for _ in range(2)][1:], "byte 0 where byte 8 comes next"),
    "nan": (lambda work: answer_frames(work, filled_with("layer.bias", float("nan"))), "NaN or infinite"),
    "infinity": (lambda work: answer_frames(work, filled_with("layer.weight", -float("inf"))), "NaN or infinite"),
    "bool_of_7": (lambda work: answer_frames(work, filled_with("mask", 7)), "neither 0 nor 1"),
    "nan_loss": (lambda work: answer_frames(work, OURS, loss=float("nan")), "the loss is nan"),
    "infinite_loss": (lambda work: answer_frames(work, OURS, loss=float("inf")), "the loss is inf"),
    "nobody_evaluated": (lambda work: rewritten(work, lambda answer: set_evaluation(answer, 0, 0)), "0 correct among 0"),
    "more_than_all_correct": (lambda work: rewritten(work, lambda answer: set_evaluation(answer, 3, 4)), "4 correct among 3"),
    "no_tensors": (lambda work: rewritten(work, lambda answer: answer.ClearField("payload"))[:1], "holds no tensors"),
    "answer_within_an_answer": (lambda work: answer_frames(work, OURS)[:1] * 2, "an answer began before the last one was complete"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_is_refused_with_a_reason_and_the_others_are_counted(
    scene: Scene, answer: Callable[[pb.Work], list[bytes]], reason: str
) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        work, _ = hand.work()
        hand.send(*answer(work))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_INVALID_ARGUMENT
        assert reason in receipt.reason
        assert receipt.id == work.id
        result = outcome.result()
        assert list(result.replies) == ["honest"]
        assert result.missing["hand"] == f"refused: {receipt.reason}"
        assert result.reduced is not None
        assert result.reduced.sha256() == HONEST.sha256()
        # It is left out of this exchange only.
        again = scene.begin("hand", "honest")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS))
        assert again.result().missing == {}


@pytest.mark.parametrize("name", ["huge_size", "huge_shape", "overflowing_shape", "shape_that_overflows_to_the_right_size"])
def test_what_a_client_claims_takes_no_memory(scene: Scene, name: str) -> None:
    process = psutil.Process()
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        work, _ = hand.work()
        message = BAD_ANSWERS[name][0](work)[0]
        before = process.memory_info()
        tracemalloc.start()
        hand.send(message)
        assert hand.receipt().verdict == Verdict.VERDICT_INVALID_ARGUMENT
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        after = process.memory_info()
        outcome.result()
    assert peak < 4 << 20
    assert after.rss - before.rss < 64 << 20
    assert after.vms - before.vms < 1 << 30


def test_tensors_where_numbers_are_expected_are_refused(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", reply_schema=None)
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS))
        assert "tensors where numbers are expected" in hand.receipt().reason
        assert list(outcome.result().missing) == ["hand"]


def test_a_stream_that_ends_within_an_answer_counts_for_nothing(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS)[:-1])
        hand.half_close()
        result = outcome.result()
    assert result.missing == {"hand": "disconnected"}
    assert result.reduced is not None
    assert result.reduced.sha256() == HONEST.sha256()


def test_chunks_that_no_answer_announced_are_ignored(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        _, *chunks = Payload(OURS, 8).frames()
        hand.send(*chunks)  # while no exchange is open
        outcome = scene.begin("hand")
        work, _ = hand.work()
        hand.send(*chunks)
        hand.send(*answer_frames(work, OURS))
        hand.send(*chunks)  # when all is said
        result = outcome.result()
    assert result.missing == {}
    assert result.reduced is not None
    assert result.reduced.sha256() == OURS.sha256()


def test_a_failure_is_recorded_with_a_reason_of_limited_length(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest")
        work, _ = hand.work()
        failure = pb.Failure(id=work.id, reason="x" * 1000)
        hand.send(pb.ParticipateRequest(failure=failure).SerializeToString())
        assert outcome.result().missing == {"hand": "x" * 200}


# Identity: each contribution counts once


class Gate:
    """An honest client that answers when it is told to, so that an exchange stays open."""

    def __init__(self, server: Server) -> None:
        self.release: Future[None] = Future()
        server.agent("slow", FakeWorker(self._respond))

    def _respond(self, _: Task) -> Reply:
        self.release.result()
        return Reply(HONEST)


def test_the_same_answer_twice_counts_once(scene: Scene) -> None:
    gate = Gate(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS), *answer_frames(work, OURS))
        assert hand.receipt().verdict == Verdict.VERDICT_DUPLICATE
        gate.release.set_result(None)
        assert hand.receipt().verdict == Verdict.VERDICT_OK
        result = outcome.result()
    assert result.reduced is not None
    assert result.reduced.sha256() == mean_of({"hand": OURS, "slow": HONEST}, {"hand": 1, "slow": 1}).sha256()
    assert result.traffic.payload_bytes_up == 2 * SCHEMA.size_bytes


def test_other_content_under_the_same_identity_is_refused_and_the_first_stands(scene: Scene) -> None:
    gate = Gate(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS), *answer_frames(work, MODEL))
        assert hand.receipt().verdict == Verdict.VERDICT_ALREADY_EXISTS
        gate.release.set_result(None)
        result = outcome.result()
    assert result.reduced is not None
    assert result.reduced.sha256() == mean_of({"hand": OURS, "slow": HONEST}, {"hand": 1, "slow": 1}).sha256()


def test_an_answer_to_a_closed_exchange_is_told_where_the_run_is(scene: Scene) -> None:
    gate = Gate(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        first = scene.begin("hand")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS))
        assert hand.receipt().verdict == Verdict.VERDICT_OK
        first.result()
        hand.send(*answer_frames(work, MODEL))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_FAILED_PRECONDITION
        assert not receipt.HasField("current")
        second = scene.begin("hand", "slow")
        now, _ = hand.work()
        hand.send(*answer_frames(work, MODEL))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_FAILED_PRECONDITION
        assert receipt.id == work.id
        assert receipt.current == now.id
        hand.send(failure_message(id_from_message(work.id), "too late"))
        assert hand.receipt().verdict == Verdict.VERDICT_FAILED_PRECONDITION
        hand.send(*answer_frames(now, OURS))
        gate.release.set_result(None)
        assert second.result().missing == {}


@pytest.mark.parametrize("change", [{"run_id": "another"}, {"round": 7}, {"attempt": 1}, {"name": "dkd_step"}, {"step": 1}])
def test_every_part_of_the_identity_counts(scene: Scene, change: dict[str, object]) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand")
        work, _ = hand.work()
        other = pb.Work(id=work.id, payload=work.payload)
        for field, value in change.items():
            setattr(other.id, field, value)
        hand.send(*answer_frames(other, MODEL))
        assert hand.receipt().verdict == Verdict.VERDICT_FAILED_PRECONDITION
        hand.send(*answer_frames(work, OURS))
        result = outcome.result()
    assert result.reduced is not None
    assert result.reduced.sha256() == OURS.sha256()


def test_an_answer_from_outside_the_cohort_is_refused(scene: Scene) -> None:
    gate = Gate(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("slow")
        until(lambda: scene.server.engine.states().working == 1)
        open_now = exchange_of(["slow"], MODEL, round_number=scene.round).id
        work = pb.Work(id=id_to_message(open_now), payload=Payload(MODEL, small_config().transport.chunk_bytes).header)
        hand.send(*answer_frames(work, OURS))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_FAILED_PRECONDITION
        assert "cohort" in receipt.reason
        gate.release.set_result(None)
        result = outcome.result()
    assert list(result.replies) == ["slow"]


def test_who_has_failed_cannot_answer_after_all(scene: Scene) -> None:
    gate = Gate(scene.server)
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        hand.send(failure_message(id_from_message(work.id), "out of memory"), *answer_frames(work, OURS))
        receipt = hand.receipt()
        assert (receipt.verdict, receipt.reason) == (Verdict.VERDICT_DEADLINE_EXCEEDED, "out of memory")
        gate.release.set_result(None)
        result = outcome.result()
    assert result.missing == {"hand": "out of memory"}
    assert result.reduced is not None
    assert result.reduced.sha256() == HONEST.sha256()


# Bytes that are no messages


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


@pytest.fixture(scope="module")
def lasting_scene() -> Iterator[Scene]:
    with serving() as server:
        server.agent("honest", answering(HONEST))
        server.wait_for("honest")
        yield Scene(server)


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


# Addresses


def test_a_port_that_is_taken_is_an_error_at_once(scene: Scene) -> None:
    engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
    port = int(scene.server.address.rpartition(":")[2])
    with pytest.raises(AddressInUseError, match=f"{LOOPBACK}:{port}"):
        engine.start(LOOPBACK, port)


def test_an_address_of_another_machine_is_an_error_at_once() -> None:
    engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
    with pytest.raises(AddressInUseError, match=r"192\.0\.2\.1:0"):
        engine.start("192.0.2.1", 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_DELAY_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_client_tries_again_and_says_so_until_its_patience_ends(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken, serving() as server:
        taken.bind((LOOPBACK, 0))  # and never listens
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        agent = Agent(address, "alone", answering(OURS), server._threads, retry_for_s=0.2)
        with pytest.raises(UnreachableError, match=rf"server {address}: .*\(gave up after 0\.2 s\)"):
            start_agent(agent).result()
    tries = [record.getMessage() for record in caplog.records if "trying again in" in record.getMessage()]
    assert len(tries) > 1
    assert all(address in line and "\n" not in line for line in tries)


def test_a_client_with_another_model_refuses_to_take_part(scene: Scene) -> None:
    other = FakeWorker(lambda _: Reply(), Schema([TensorSpec("layer.weight", torch.float32, (4, 6))]))
    agent = Agent(scene.server.address, "other", other, scene.server._threads)
    with pytest.raises(RefusedError, match="this client's model is not the server's: tensor"):
        start_agent(agent).result()


@pytest.mark.usefixtures("impatient")
def test_a_client_finds_its_server_again_after_a_restart() -> None:
    executor_of = FakeWorker(lambda _: Reply(OURS))
    with serving() as first:
        port = int(first.address.rpartition(":")[2])
        taking_part = start_agent(Agent(first.address, "site", executor_of, first._threads))
        first.wait_for("site")
        first.engine._server.stop()  # without a farewell, as when the process dies
        engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
        engine.start(LOOPBACK, port)
        engine.wait_for_clients(1, None)
        outcome = engine.carry_out(exchange_of(["site"], MODEL))
        engine.finish(True, "done")
        assert taking_part.result().reason == "done"
        first.engine._finished = True
    assert outcome.missing == {}
