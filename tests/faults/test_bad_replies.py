"""Replies of broken and hostile clients: refused with a reason, and everyone else is counted."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest
import torch
from harness import (
    SCHEMA,
    HandClient,
    answer_frames,
    exchange_of,
    mean_of,
    reasons,
    small_config,
    until,
)
from live import HONEST, MODEL, OURS, Scene

from feddkd.exchange import Outcome
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, decode_chunk, encode_chunk
from feddkd.transport.messages import Verdict, failure_message, id_from_message, id_to_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2


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
    for index in range(count):
        answer.payload.schema.tensors.add(name=f"t{index}", dtype=tensors_pb2.ELEMENT_TYPE_BOOL)


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
    "extra_tensor": (
        lambda work: with_schema(work, *ALL, TensorSpec("more", torch.int8, (1,))),
        "'more' is not expected",
    ),
    "extra_empty_tensor": (
        lambda work: with_schema(work, *ALL, TensorSpec("more", torch.int8, (0,))),
        "'more' is not expected",
    ),
    "other_order": (lambda work: with_schema(work, *reversed(ALL)), "another order"),
    "no_element_type": (
        lambda work: rewritten(work, lambda answer: answer.payload.schema.tensors[0].ClearField("dtype")),
        "unknown element type 0",
    ),
    "unknown_element_type": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload.schema.tensors[0], "dtype", 99)),
        "unknown element type 99",
    ),
    "too_many_tensors": (
        lambda work: rewritten(work, lambda answer: add_tensors(answer, 10_000)),
        "at most 10000 are allowed",
    ),
    "two_of_one_name": (
        lambda work: rewritten(
            work,
            lambda answer: answer.payload.schema.tensors.append(answer.payload.schema.tensors[3]),
        ),
        "share a name",
    ),
    "long_name": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload.schema.tensors[0], "name", "x" * 257)),
        "longer than 256 bytes",
    ),
    "many_dimensions": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, *[1] * 9)),
        "9 dimensions",
    ),
    "huge_size": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload, "size_bytes", 2**40)),
        f"{2**40} bytes declared where the schema has {SCHEMA.size_bytes}",
    ),
    "huge_shape": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**40)),
        f"layer.weight: float32[{2**40}]",
    ),
    "overflowing_shape": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**40, 2**40)),
        f"layer.weight: float32[{2**40}, {2**40}]",
    ),
    "shape_that_overflows_to_the_right_size": (
        lambda work: rewritten(work, lambda answer: set_sizes(answer, 2**62 + 5, 4)),
        f"layer.weight: float32[{2**62 + 5}, 4]",
    ),
    "no_chunk_bytes": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload, "chunk_bytes", 0)),
        "chunks of 0 bytes",
    ),
    "other_chunk_bytes": (
        lambda work: answer_frames(work, OURS, chunk_bytes=16),
        "chunks of 16 bytes where",
    ),
    "short_digest": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload, "digest", bytes(31))),
        "digest of 31 bytes",
    ),
    "other_digest": (
        lambda work: rewritten(work, lambda answer: setattr(answer.payload, "digest", bytes(32))),
        "digest of the payload",
    ),
    "flipped_bit": (
        lambda work: damaged(work, lambda chunk: chunk._replace(data=flipped(chunk.data))),
        "checksum",
    ),
    "other_checksum": (
        lambda work: damaged(work, lambda chunk: chunk._replace(crc32c=chunk.crc32c ^ 1)),
        "checksum",
    ),
    "other_offset": (
        lambda work: damaged(work, lambda chunk: chunk._replace(offset=chunk.offset + 4)),
        "where byte 0 comes next",
    ),
    "offset_of_64_bits": (
        lambda work: damaged(work, lambda chunk: chunk._replace(offset=2**64 - 1)),
        "where byte 0 comes next",
    ),
    "long_chunk": (
        lambda work: damaged(work, lambda chunk: chunk._replace(data=memoryview(bytes(chunk.data) + b"\0"))),
        "a chunk of 9 bytes at byte 0 where 8 are due",
    ),
    "short_chunk": (
        lambda work: damaged(work, lambda chunk: chunk._replace(data=chunk.data[:-1])),
        "a chunk of 7 bytes",
    ),
    "empty_chunk": (
        lambda work: damaged(work, lambda _: Chunk(0, 0, memoryview(b""))),
        "a chunk of 0 bytes",
    ),
    "chunk_left_out": (
        lambda work: [frame for i, frame in enumerate(answer_frames(work, OURS)) if i != 1],
        "a chunk at byte 8 where",
    ),
    "chunk_twice": (
        lambda work: [frame for frame in answer_frames(work, OURS) for _ in range(2)][1:],
        "byte 0 where byte 8 comes next",
    ),
    "nan": (
        lambda work: answer_frames(work, filled_with("layer.bias", float("nan"))),
        "NaN or infinite",
    ),
    "infinity": (
        lambda work: answer_frames(work, filled_with("layer.weight", -float("inf"))),
        "NaN or infinite",
    ),
    "bool_of_7": (lambda work: answer_frames(work, filled_with("mask", 7)), "neither 0 nor 1"),
    "nan_loss": (lambda work: answer_frames(work, OURS, loss=float("nan")), "the loss is nan"),
    "infinite_loss": (lambda work: answer_frames(work, OURS, loss=float("inf")), "the loss is inf"),
    "nobody_evaluated": (
        lambda work: rewritten(work, lambda answer: set_evaluation(answer, 0, 0)),
        "0 correct among 0",
    ),
    "more_than_all_correct": (
        lambda work: rewritten(work, lambda answer: set_evaluation(answer, 3, 4)),
        "4 correct among 3",
    ),
    "no_tensors": (
        lambda work: rewritten(work, lambda answer: answer.ClearField("payload"))[:1],
        "holds no tensors",
    ),
    "answer_within_an_answer": (
        lambda work: answer_frames(work, OURS)[:1] * 2,
        "a reply began before the last one was complete",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_answer_is_refused_with_a_reason_and_the_others_are_counted(
    scene: Scene, answer: Callable[[pb.Work], list[bytes]], reason: str
) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        outcome = scene.begin("hand", "honest", evaluate=True)
        work, _ = hand.work()
        hand.send(*answer(work))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_INVALID_ARGUMENT
        assert reason in receipt.reason
        assert receipt.id == work.id
        result = outcome.result()
        assert list(result.replies) == ["honest"]
        assert reasons(result) == {"hand": f"refused: {receipt.reason}"}
        assert result.reduced is not None
        assert result.reduced.sha256() == HONEST.sha256()
        # It is left out of this exchange only.
        again = scene.begin("hand", "honest")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS))
        assert again.result().missing == {}


@pytest.mark.parametrize(
    "name",
    ["huge_size", "huge_shape", "overflowing_shape", "shape_that_overflows_to_the_right_size"],
)
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
    assert reasons(result) == {"hand": "not connected"}
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
        assert reasons(outcome.result()) == {"hand": "x" * 197 + "..."}


# Identity: each contribution counts once


def both(first: Tensors) -> str:
    """The SHA-256 of the mean of the contributions of "hand" and "slow"."""
    return mean_of({"hand": first, "slow": HONEST}, {"hand": 1, "slow": 1}).sha256()


def test_the_same_answer_twice_counts_once(scene: Scene) -> None:
    with scene.slow() as release, scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS), *answer_frames(work, OURS))
        hand.send(failure_message(replace(id_from_message(work.id), round=7), "what else?"))
        assert hand.receipt().id.round == 7  # nothing came before: a client that is told forgets its reply
        release()
        result = outcome.result()
        assert hand.receipt().verdict == Verdict.VERDICT_DUPLICATE
    assert result.reduced is not None
    assert result.reduced.sha256() == both(OURS)
    assert result.traffic.payload_bytes_up == 2 * SCHEMA.size_bytes


def test_other_content_under_the_same_identity_is_refused_and_the_first_stands(
    scene: Scene,
) -> None:
    with scene.slow() as release, scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS), *answer_frames(work, MODEL))
        assert hand.receipt().verdict == Verdict.VERDICT_ALREADY_EXISTS
        release()
        result = outcome.result()
    assert result.reduced is not None
    assert result.reduced.sha256() == both(OURS)


def test_a_reply_to_the_last_exchange_is_told_again_what_became_of_it(scene: Scene) -> None:
    with scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest")
        first = scene.begin("hand")
        work, _ = hand.work()
        hand.send(*answer_frames(work, OURS))
        assert hand.receipt().verdict == Verdict.VERDICT_OK
        first.result()
        hand.send(*answer_frames(work, OURS))
        receipt = hand.receipt()
    assert receipt.verdict == Verdict.VERDICT_OK
    assert receipt.id == work.id
    assert not receipt.HasField("current")


def test_a_reply_to_an_exchange_before_the_last_is_told_where_the_run_is(scene: Scene) -> None:
    with scene.slow() as release, scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        old, _ = _answered(scene, hand)
        _answered(scene, hand)
        hand.send(*answer_frames(old, MODEL))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_FAILED_PRECONDITION
        assert not receipt.HasField("current")
        open_now = scene.begin("hand", "slow")
        now, _ = hand.work()
        hand.send(*answer_frames(old, MODEL))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_FAILED_PRECONDITION
        assert receipt.id == old.id
        assert receipt.current == now.id
        hand.send(failure_message(id_from_message(old.id), "too late"))
        assert hand.receipt().verdict == Verdict.VERDICT_FAILED_PRECONDITION
        hand.send(*answer_frames(now, OURS))
        release()
        assert open_now.result().missing == {}


def _answered(scene: Scene, hand: HandClient) -> tuple[pb.Work, Outcome]:
    """Let an exchange with this client alone be carried out."""
    outcome = scene.begin("hand")
    work, _ = hand.work()
    hand.send(*answer_frames(work, OURS))
    assert hand.receipt().verdict == Verdict.VERDICT_OK
    return work, outcome.result()


@pytest.mark.parametrize(
    "change",
    [{"run_id": "another"}, {"round": 7}, {"attempt": 1}, {"name": "dkd_step"}, {"step": 1}],
    ids=lambda change: next(iter(change)),
)
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


def test_a_reply_from_outside_the_cohort_is_refused(scene: Scene) -> None:
    with scene.slow() as release, scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("slow")
        until(lambda: scene.server.engine.states().working == 1)
        open_now = exchange_of(["slow"], MODEL, round_number=scene.round).id
        header = Payload(MODEL, small_config().transport.chunk_bytes).header
        work = pb.Work(id=id_to_message(open_now), payload=header)
        hand.send(*answer_frames(work, OURS))
        assert hand.receipt().verdict == Verdict.VERDICT_FAILED_PRECONDITION
        release()
        result = outcome.result()
    assert list(result.replies) == ["slow"]
    assert result.reduced is not None
    assert result.reduced.sha256() == HONEST.sha256()


def test_who_has_failed_cannot_answer_after_all(scene: Scene) -> None:
    with scene.slow() as release, scene.hand().connect() as hand:
        scene.server.wait_for("hand", "honest", "slow")
        outcome = scene.begin("hand", "slow")
        work, _ = hand.work()
        failure = failure_message(id_from_message(work.id), "out of memory")
        hand.send(failure, *answer_frames(work, OURS))
        receipt = hand.receipt()
        assert receipt.verdict == Verdict.VERDICT_DEADLINE_EXCEEDED
        assert receipt.reason == "out of memory"
        release()
        result = outcome.result()
    assert reasons(result) == {"hand": "out of memory"}
    assert result.reduced is not None
    assert result.reduced.sha256() == HONEST.sha256()
