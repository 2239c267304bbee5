"""When a client's reply counts, and when the client is given up: on a clock that the test moves."""

import hashlib
import math

import pytest
import torch
from collecting import CHUNK, CONTRIBUTIONS, LARGE, Scene, Sender
from crc32c import crc32c
from harness import SCHEMA, filled

from feddkd.engines.collection import Arrival, Judgement
from feddkd.engines.contribution import Progress
from feddkd.exchange import Cause, Closing, Evaluation, Missing, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import decode_chunk
from feddkd.transport.messages import Verdict

NOTHING = Schema([TensorSpec("w", torch.float32, (0,))])


def test_numbers_alone_make_a_reply_where_numbers_are_expected() -> None:
    scene = Scene({"a": 1.0}, schema=None)
    reply = Reply(loss=0.25, evaluation=Evaluation(10, 7, 3.0), compute_s=1.5)
    assert Sender(scene, "a", None, reply).send() == []
    assert scene.collection.settled
    assert scene.collection.replies() == {"a": reply}
    assert list(scene.collection.judgements()) == [("a", Judgement(Verdict.VERDICT_OK))]


def test_the_same_reply_again_counts_once_and_another_is_refused() -> None:
    scene = Scene({"a": 1.0, "b": 1.0})
    Sender(scene, "a", CONTRIBUTIONS["a"]).send()
    for again in (False, True):
        assert Sender(scene, "a", CONTRIBUTIONS["a"]).header(again=again) == Judgement(Verdict.VERDICT_DUPLICATE)
    other = Sender(scene, "a", CONTRIBUTIONS["b"]).header()
    assert other is not None
    assert other.verdict == Verdict.VERDICT_ALREADY_EXISTS
    assert list(scene.collection.replies()) == ["a"]


def test_other_content_with_the_same_checksums_is_other_content() -> None:
    """CRC-32C guards against accidents only: bytes with a given checksum are easily made."""
    schema = Schema([TensorSpec("x", torch.uint8, (8,))])
    honest, forged = (
        Tensors.copy_of(schema, {"x": torch.tensor(list(data), dtype=torch.uint8)})
        for data in (bytes(range(8)), same_checksum(bytes(range(8))))
    )
    scene = Scene({"a": 1.0}, schema=schema)
    assert Sender(scene, "a", honest).send() == []
    verdicts = []
    for contribution in (honest, forged):
        judgement = Sender(scene, "a", contribution).header(again=True)
        assert judgement is not None
        verdicts.append(judgement.verdict)
    assert verdicts == [Verdict.VERDICT_DUPLICATE, Verdict.VERDICT_ALREADY_EXISTS]


def same_checksum(data: bytes) -> bytes:
    """Other bytes of the same CRC-32C: the last four make up for a change in the first four."""
    wanted = crc32c(data)
    changed = bytes([data[0] ^ 1]) + data[1:-4]
    # The checksum is affine in the last four bytes: solve the 32 equations over GF(2).
    base = crc32c(changed + bytes(4)) ^ wanted
    tails = [(1 << bit).to_bytes(4, "little") for bit in range(32)]
    columns = [crc32c(changed + tail) ^ base ^ wanted for tail in tails]
    rows = [(column, 1 << bit) for bit, column in enumerate(columns)]
    solution = 0
    for pivot in range(32):
        index = next((i for i, (value, _) in enumerate(rows) if value >> pivot & 1), None)
        if index is None:
            continue
        value, combination = rows.pop(index)
        rows = [(v ^ value, c ^ combination) if v >> pivot & 1 else (v, c) for v, c in rows]
        if base >> pivot & 1:
            base, solution = base ^ value, solution ^ combination
    forged = changed + solution.to_bytes(4, "little")
    assert (crc32c(forged), forged != data) == (wanted, True)
    return forged


def test_an_upload_that_goes_on_with_bytes_of_another_content_is_refused_at_its_end() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0))
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    for step in sender.steps()[:4]:
        step()
    scene.collection.disconnect("a", 0.0)
    scene.collection.connect("a", 0.0, holds_broadcast=True)
    offset = scene.collection.contributions["a"].received_bytes
    answer = sender.answer
    answer.payload.content_sha256 = bytes(32)
    assert scene.collection.reply("a", answer, 0.0) is None
    judgements = [step() for step in sender.steps(offset)[1:]]
    assert set(judgements[:-1]) == {None}
    assert judgements[-1] == Judgement(Verdict.VERDICT_INVALID_ARGUMENT, "the rest of the reply has other content")
    assert scene.missing() == {"a": "refused: the rest of the reply has other content"}
    assert scene.result() is None


def test_a_client_outside_the_cohort_is_told_so() -> None:
    judgement = Sender(Scene({"a": 1.0}), "stranger", CONTRIBUTIONS["a"]).header()
    assert judgement is not None
    assert judgement.verdict == Verdict.VERDICT_FAILED_PRECONDITION


def test_a_contribution_of_another_schema_is_refused_and_takes_no_memory() -> None:
    scene = Scene({"a": 1.0})
    (judgement,) = Sender(scene, "a", filled(SCHEMA, 1)).send()
    assert judgement.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert scene.collection.missing() == {"a": Missing(Cause.REFUSED, f"refused: {judgement.reason}")}
    assert list(scene.collection.judgements()) == []  # it knows
    assert scene.spool.used_bytes == 0


@pytest.mark.parametrize("schema", [LARGE, None])
def test_tensors_where_numbers_are_expected_are_refused_and_the_other_way_round(schema: Schema | None) -> None:
    scene = Scene({"a": 1.0}, schema=schema)
    (judgement,) = Sender(scene, "a", None if schema else CONTRIBUTIONS["a"]).send()[:1]
    assert judgement.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert "holds" in judgement.reason


def test_a_reply_that_begins_before_the_last_one_is_complete_is_refused() -> None:
    scene = Scene({"a": 1.0})
    for step in Sender(scene, "a", CONTRIBUTIONS["a"]).steps()[:3]:
        assert step() is None
    judgement = Sender(scene, "a", CONTRIBUTIONS["a"]).header()
    assert judgement is not None
    assert "before the last one was complete" in judgement.reason


@pytest.mark.parametrize("schema", [NOTHING, Schema([])], ids=["a tensor without elements", "no tensors"])
def test_an_empty_payload_is_complete_with_its_header(schema: Schema) -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, schema=schema)
    assert Sender(scene, "a", Tensors(schema)).send() == []
    assert Sender(scene, "a", Tensors(schema)).header() == Judgement(Verdict.VERDICT_DUPLICATE)
    refused = Judgement(Verdict.VERDICT_INVALID_ARGUMENT, "the reply holds no tensors")
    assert Sender(scene, "b", None).send() == [refused]
    assert scene.collection.settled
    assert list(scene.collection.replies()) == ["a"]


def test_a_client_that_holds_nothing_out_cannot_claim_an_evaluation_of_millions() -> None:
    scene = Scene({"a": 1.0}, schema=None, max_evaluated={"a": 100})
    (judgement,) = Sender(scene, "a", None, Reply(evaluation=Evaluation(2**53, 2**53, 1.0))).send()
    assert "can hold out 100 at most" in judgement.reason


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_a_contribution_may_be_as_long_as_allowed_and_no_longer(factor: float) -> None:
    contribution = CONTRIBUTIONS["a"]
    floats = [contribution.elements(segment) for segment in LARGE.segments if segment.dtype.is_floating_point]
    norm = math.sqrt(sum(float(elements.double().square().sum()) for elements in floats))
    scene = Scene({"a": 1.0}, max_norm=norm / factor * (1 + 1e-9))
    judgements = Sender(scene, "a", contribution).send()
    if factor == 1.0:
        assert judgements == []
    else:
        assert judgements[0].verdict == Verdict.VERDICT_INVALID_ARGUMENT
        assert "aggregation.max_norm" in scene.missing()["a"]


@pytest.mark.parametrize(("name", "value"), [("w", 1e38), ("d", 1e200), ("w", math.inf), ("h", math.nan)])
def test_values_that_no_model_survives_are_refused(name: str, value: float) -> None:
    scene = Scene({"a": 1.0})
    contribution = Tensors(LARGE)
    contribution[name].fill_(value)
    judgements = Sender(scene, "a", contribution).send()
    assert [judgement.verdict for judgement in judgements] == [Verdict.VERDICT_INVALID_ARGUMENT]


# Time.


def test_a_silent_client_is_given_up_at_the_deadline() -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, closing=Closing(10.0))
    Sender(scene, "a", CONTRIBUTIONS["a"]).send()
    assert scene.collection.next_expiry() == 10.0
    scene.advance_to(9.9)
    assert scene.missing() == {}
    scene.advance_to(10.0)
    assert scene.collection.missing() == {"b": Missing(Cause.SILENT, "no reply within 10 s")}
    assert scene.collection.settled
    assert scene.collection.next_expiry() == math.inf


def test_a_reply_that_is_arriving_at_the_deadline_has_as_long_again() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(10.0, stall_timeout_s=1000.0))
    scene.now = 9.0
    for step in Sender(scene, "a", CONTRIBUTIONS["a"]).steps()[:5]:
        step()
    scene.advance_to(19.9)
    assert scene.missing() == {}
    scene.advance_to(20.0)
    assert scene.missing() == {"a": "no reply within 10 s"}


def test_an_upload_that_stalls_is_given_up_and_each_chunk_gives_it_more_time() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, stall_timeout_s=5.0))
    steps = Sender(scene, "a", CONTRIBUTIONS["a"]).steps()
    steps[0]()
    scene.advance_to(4.0)
    steps[1]()
    scene.advance_to(8.9)
    assert scene.missing() == {}
    scene.advance_to(9.0)
    assert scene.collection.missing() == {"a": Missing(Cause.SILENT, "its reply stalled for 5 s")}


def test_a_client_without_connection_has_time_to_come_back_and_each_loss_has_its_own() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0))
    scene.collection.disconnect("a", 0.0)
    scene.advance_to(2.9)
    scene.collection.connect("a", scene.now, holds_broadcast=False)
    scene.advance_to(100.0)
    assert scene.missing() == {}
    scene.collection.disconnect("a", 100.0)
    scene.advance_to(102.9)
    assert scene.missing() == {}
    scene.advance_to(103.0)
    assert scene.collection.missing() == {"a": Missing(Cause.DISCONNECTED, "not connected")}


def test_without_grace_a_client_without_connection_is_given_up_at_once() -> None:
    scene = Scene({"a": 1.0})
    scene.collection.disconnect("a", 0.0)
    scene.advance_to(0.0)
    assert scene.missing() == {"a": "not connected"}


def test_an_upload_goes_on_at_the_byte_where_its_connection_broke() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0, stall_timeout_s=2.0))
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    for step in sender.steps()[:6]:
        step()
    scene.collection.disconnect("a", 1.0)
    scene.advance_to(3.5)  # a stall is not counted while the client is away
    scene.collection.connect("a", 3.5, holds_broadcast=True)
    offset = scene.collection.contributions["a"].received_bytes
    assert offset == LARGE.chunks(CHUNK)[5].start
    scene.advance_to(5.4)
    assert sender.send(offset) == []
    result = scene.result()
    assert result is not None
    assert result.sha256() == CONTRIBUTIONS["a"].sha256()


def test_an_upload_that_goes_on_must_have_the_same_content() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0))
    Sender(scene, "a", CONTRIBUTIONS["a"]).header()
    scene.collection.disconnect("a", 0.0)
    scene.collection.connect("a", scene.now, holds_broadcast=True)
    judgement = Sender(scene, "a", CONTRIBUTIONS["b"]).header()
    assert judgement is not None
    assert "other content" in judgement.reason


def test_a_client_that_lost_the_broadcast_sends_its_reply_from_the_start_and_it_may_be_another() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0))
    for step in Sender(scene, "a", CONTRIBUTIONS["a"]).steps()[:6]:
        step()
    scene.collection.disconnect("a", 0.0)
    scene.collection.connect("a", scene.now, holds_broadcast=False)
    assert scene.spool.used_bytes == 0
    assert Sender(scene, "a", CONTRIBUTIONS["b"]).send() == []
    result = scene.result()
    assert result is not None
    assert result.sha256() == CONTRIBUTIONS["b"].sha256()


def test_a_chunk_that_is_written_after_its_upload_began_again_is_dropped() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1000.0, reconnect_grace_s=3.0))
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    sender.header()
    assert sender.payload is not None
    late = scene.collection.accept("a", decode_chunk(next(iter(sender.payload.frames()))))
    assert isinstance(late, Arrival)
    scene.collection.disconnect("a", 0.0)
    scene.collection.connect("a", scene.now, holds_broadcast=False)
    sender.header()
    late.write()
    scene.collection.store(late, 0.0)
    assert scene.collection.contributions["a"].blocks == []
    assert scene.spool.used_bytes == 0


@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
def test_a_chunk_that_is_written_after_its_exchange_has_ended_is_dropped(budget_bytes: int) -> None:
    scene = Scene({"a": 1.0}, budget_bytes=budget_bytes)
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    sender.header()
    assert sender.payload is not None
    late = scene.collection.accept("a", decode_chunk(next(iter(sender.payload.frames()))))
    assert isinstance(late, Arrival)
    scene.collection.close()  # an error ended it
    late.write()
    assert scene.collection.store(late, 0.0) is None
    assert scene.spool.used_bytes == 0
    scene.spool.reserve(CHUNK)
    assert scene.spool.file_bytes <= CHUNK  # its place is free again


def test_an_exchange_closes_soon_after_enough_replies() -> None:
    scene = Scene(dict.fromkeys("abcde", 1.0), schema=None, closing=Closing(1000.0, enough=2, grace_after_enough_s=5.0))
    Sender(scene, "a", None).send()
    assert scene.collection.next_expiry() == 1000.0
    scene.now = 7.0
    Sender(scene, "b", None).send()
    assert scene.collection.next_expiry() == 12.0
    scene.now = 11.0
    Sender(scene, "c", None).send()  # in time, and does not prolong the grace
    scene.advance_to(12.0)
    assert list(scene.collection.replies()) == ["a", "b", "c"]
    assert scene.collection.missing() == dict.fromkeys("de", Missing(Cause.CLOSED, "the exchange closed after 2 replies"))


def test_without_a_grace_after_enough_replies_the_deadline_stands() -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, schema=None, closing=Closing(1000.0, enough=1))
    Sender(scene, "a", None).send()
    assert scene.collection.next_expiry() == 1000.0


def test_clients_that_are_lost_are_no_replies() -> None:
    scene = Scene(dict.fromkeys("abc", 1.0), schema=None, closing=Closing(1000.0, enough=2, grace_after_enough_s=0.0))
    scene.collection.fail("a", "no data")
    Sender(scene, "b", None).send()
    scene.advance_to(500.0)
    assert list(scene.missing()) == ["a"]


# What is settled stays settled.


def test_a_complete_reply_is_not_lost_any_more() -> None:
    scene = Scene({"a": 1.0}, closing=Closing(1.0))
    Sender(scene, "a", CONTRIBUTIONS["a"]).send()
    scene.collection.fail("a", "too late")
    scene.collection.disconnect("a", 0.0)
    scene.advance_to(1e9)
    assert scene.collection.contributions["a"].progress is Progress.COMPLETE
    assert scene.missing() == {}


def test_the_first_reason_for_a_loss_stands_and_a_late_reply_hears_it() -> None:
    scene = Scene({"a": 1.0})
    scene.collection.fail("a", "first")
    scene.collection.fail("a", "second")
    assert scene.collection.missing() == {"a": Missing(Cause.FAILED, "first")}
    assert Sender(scene, "a", CONTRIBUTIONS["a"]).header() == Judgement(Verdict.VERDICT_DEADLINE_EXCEEDED, "first")


def test_what_a_client_says_decides_nothing() -> None:
    scene = Scene({"a": 1.0})
    scene.collection.fail("a", "disconnected from my camera")
    assert not scene.collection.missing()["a"].connection_lost


def test_everything_is_freed_when_an_exchange_closes() -> None:
    scene = Scene(budget_bytes=20_000)
    for client in "abc":
        Sender(scene, client, CONTRIBUTIONS[client]).send()
    scene.collection.fail("d", "no data")
    assert scene.spool.used_bytes > 0
    before = scene.spool.file_bytes
    assert before > 0
    scene.collection.close()
    assert scene.spool.used_bytes == 0
    again = [scene.spool.reserve(CHUNK) for _ in range(before // CHUNK)]
    assert scene.spool.file_bytes == before  # all slots were free
    assert len(again) > 0


def test_an_evaluation_that_was_not_asked_for_is_refused() -> None:
    scene = Scene({"a": 1.0}, schema=None, evaluate=False)
    (judgement,) = Sender(scene, "a", None, Reply(evaluation=Evaluation(10, 7, 3.0))).send()
    assert judgement.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert "was not asked for" in judgement.reason


def test_numbers_beside_the_model_do_not_count_in_its_norm() -> None:
    model = Schema([TensorSpec("w", torch.float32, (600,)), TensorSpec("v", torch.float64, (300,))])
    schema = model.beside({"steps": Schema([TensorSpec("value", torch.float64, ())])})
    contribution = Tensors(schema)
    contribution["w"].fill_(1.0)
    contribution["v"].fill_(2.0)
    contribution["steps/value"].fill_(1e6)
    norm = math.sqrt(600 + 4 * 300)
    assert Sender(Scene({"a": 1.0}, schema=schema, max_norm=norm * (1 + 1e-12)), "a", contribution).send() == []
    judgements = Sender(Scene({"a": 1.0}, schema=schema, max_norm=norm * (1 - 1e-9)), "a", contribution).send()
    assert "aggregation.max_norm" in judgements[0].reason


def test_a_loss_that_no_useful_model_has_is_told_from_other_bad_numbers() -> None:
    scene = Scene({"a": 1.0, "b": 1.0}, schema=None)
    Sender(scene, "a", None, Reply(loss=math.nan)).send()
    Sender(scene, "b", None, Reply(metrics={"x": math.nan})).send()
    assert [missing.cause for missing in scene.collection.missing().values()] == [Cause.DIVERGED, Cause.REFUSED]


@pytest.mark.parametrize("hashes_bytes", [False, True])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_contribution_is_named_by_the_hash_of_its_bytes_or_of_their_checksums(hashes_bytes: bool, interrupted: bool) -> None:
    scene = Scene(hashes_bytes=hashes_bytes)
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    assert sender.payload is not None
    chunks = [decode_chunk(frame) for frame in sender.payload.frames(0)]
    if interrupted:
        for step in sender.steps()[:2]:
            step()
        scene.collection.disconnect("a", scene.now)
        scene.collection.connect("a", scene.now, holds_broadcast=True)
    sender.send(scene.collection.contributions["a"].received_bytes)
    parts = [bytes(chunk.data) if hashes_bytes else chunk.crc32c.to_bytes(4, "little") for chunk in chunks]
    expected = hashlib.sha256(b"".join(parts)).hexdigest()
    assert scene.collection.contributions["a"].digest == f"{'sha256' if hashes_bytes else 'sha256-of-crc32c'}:{expected}"
