"""A client's end of broadcasts and replies that are encoded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from coding import MIXED, Alternate, coding, know
from harness import FakeWorker, exchange_of, filled

from feddkd.client.held import Held
from feddkd.client.reply_encoder import ReplyEncoder
from feddkd.client.work import Work
from feddkd.compression.broadcaster import Broadcast, Broadcaster
from feddkd.compression.codecs import find
from feddkd.compression.encoding import UNCODED, Coding, Encoding, relative_error
from feddkd.compression.replica import Replica, version_of
from feddkd.compression.running_mean import RunningMean
from feddkd.engines.forms import Forms
from feddkd.errors import CorruptionError, ProtocolError
from feddkd.exchange import MAX_METRICS, Exchange, ExchangeId, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS
from feddkd.transport.frames import decode_chunk, encode_chunk
from feddkd.transport.payload import Assembly, Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK_BYTES = 256


def at(number: int, attempt: int) -> ExchangeId:
    return ExchangeId("run", number, attempt, "local_train", 0)


INT8 = find("int8", unbiased=False)
MODEL, OTHER, THIRD = (filled(MIXED, seed) for seed in range(3))
UPDATE = filled(MIXED, 9)


def exchange(sent: Tensors, broadcast: Broadcast | None, number: int = 1) -> Exchange:
    return replace(exchange_of("ab", sent, reply_schema=MIXED, round_number=number), broadcast=broadcast)


class Server:
    """Broadcasts to client "a", as the scheduler and the engines do."""

    def __init__(self) -> None:
        self.broadcaster = Broadcaster(CHUNK_BYTES, 3)
        self.round = 0

    def send(self, model: Tensors, *, received: bool = True) -> Forms:
        sent, broadcast = self.broadcaster.broadcast(INT8, model, "a")
        self.broadcaster.received(broadcast, sent, "a" if received else "")
        self.round += 1
        self.sent = sent
        return Forms(exchange(sent, broadcast, self.round), CHUNK_BYTES)


def work_of(forms: Forms, held: Held) -> Work:
    """A client that has received the first message of a broadcast."""
    message = pb.ParticipateResponse.FromString(forms.message("a")).work
    return Work(message, FakeWorker(lambda _: Reply(UPDATE), MIXED), held)


def receive_all(work: Work, forms: Forms) -> None:
    for frame in forms.payload("a").frames():
        work.receive(frame)


def received(forms: Forms, held: Held) -> Work:
    """A client that has received all of it."""
    work = work_of(forms, held)
    receive_all(work, forms)
    return work


def reason(work: Work) -> str:
    """Why a client cannot take part; it says so to the server in the same words."""
    assert work.refusal is not None
    (message,) = work.reply_from(0)
    failure = pb.ParticipateRequest.FromString(message).failure
    assert failure.reason == work.refusal[:200]
    assert not work.can_be_computed
    return work.refusal


# What is broadcast.


def test_a_client_holds_what_the_server_says_step_after_step() -> None:
    server, held = Server(), Held()
    for number, seed in enumerate((0, 1, 2, 2, 3)):
        forms = server.send(filled(MIXED, seed))
        assert forms.is_step("a") is (number > 0)
        work = received(forms, held)
        assert work.can_be_computed
        assert work.start().payload.block.equal(server.sent.block)


def test_the_mean_of_the_models_is_formed_by_the_client() -> None:
    server, held, mean = Server(), Held(), RunningMean()
    received(server.send(MODEL), held)
    for model in (OTHER, THIRD):
        last = server.broadcaster.adopt(INT8, model, in_mean=True)
        mean.add(last)
        received(server.send(last), held)
    forms = server.send(mean.of(last))
    assert forms.payload("a").size_bytes == 0
    task = received(forms, held).start()
    assert task.payload.block.equal(mean.of(last).block)
    received(server.send(OTHER), held)


FLOATS = Schema([TensorSpec("w", torch.float32, (100,)), TensorSpec("n", torch.int64, (), trainable=False)])


@pytest.mark.parametrize(("names", "listed"), [("w", []), ("wn", ["n", "w"]), ("n", ["n"])])
def test_a_step_lists_its_tensors_unless_they_are_those_that_a_codec_may_change(names: str, listed: list[str]) -> None:
    """Its header would be longer than many a code."""
    first, second = filled(FLOATS, 0), filled(FLOATS, 1)
    second["n"].copy_(first["n"] + 1)
    model = first.replace({name: second[name] for name in names})
    server = Broadcaster(CHUNK_BYTES, 3)
    sent, broadcast = server.broadcast(INT8, first, "a")
    server.received(broadcast, sent, "a")
    held = Held()
    held.replicas[FLOATS] = Replica(first)
    sent, broadcast = server.broadcast(INT8, model, "a")
    forms = Forms(replace(exchange_of("a", sent, reply_schema=FLOATS), broadcast=broadcast), CHUNK_BYTES)
    assert [spec.name for spec in forms.payload("a").header.schema.tensors] == listed
    message = pb.ParticipateResponse.FromString(forms.message("a")).work
    work = Work(message, FakeWorker(lambda _: Reply(first), FLOATS), held)
    for frame in forms.payload("a").frames():
        work.receive(frame)
    assert work.start().payload.block.equal(sent.block)


@pytest.mark.parametrize("base", ["none", "another"])
def test_a_step_from_another_model_is_lacking_and_takes_no_memory(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.send(MODEL)
    forms, held = server.send(OTHER), Held()
    if base == "another":
        held.replicas[MIXED] = Replica(THIRD)
    forms.message("a")
    with monkeypatch.context() as patch:
        patch.setattr(Tensors, "empty", lambda _: pytest.fail("memory was taken"))
        work = received(forms, held)
    assert work.is_lacking
    assert work.holding is None
    assert not work.can_be_computed
    assert work.refusal is None
    assert forms.lacks("a")
    assert not forms.lacks("a")  # it was said before
    work = received(forms, held)
    assert not work.is_lacking
    assert work.start().payload.block.equal(server.sent.block)


def test_a_client_whose_model_was_written_to_asks_for_the_whole_one() -> None:
    server, held = Server(), Held()
    received(server.send(MODEL), held).start().payload["bias"].zero_()
    forms = server.send(OTHER)
    work = received(forms, held)
    assert work.is_lacking
    assert MIXED not in held.replicas
    assert forms.lacks("a")
    assert received(forms, held).start().payload.block.equal(server.sent.block)
    forms = server.send(THIRD)
    assert received(forms, held).start().payload.block.equal(server.sent.block)


def test_also_where_the_same_model_is_broadcast_again() -> None:
    """No byte of it is sent, so nothing else would show that it was written to."""
    server, held = Server(), Held()
    received(server.send(MODEL), held).start().payload["bias"].zero_()
    forms = server.send(MODEL)
    assert forms.payload("a").size_bytes == 0
    assert received(forms, held).is_lacking
    assert forms.lacks("a")
    assert received(forms, held).start().payload.block.equal(MODEL.block)


def test_a_whole_model_that_is_not_the_one_that_is_named_is_damage() -> None:
    forms = Server().send(MODEL)
    message = pb.ParticipateResponse.FromString(forms.message("a")).work
    message.replica.content_sha256 = bytes(16)
    work = Work(message, FakeWorker(lambda _: Reply(), MIXED), Held())
    with pytest.raises(CorruptionError, match="not the model that the server names"):
        receive_all(work, forms)


def test_a_damaged_chunk_leaves_the_model_before_it() -> None:
    server, held = Server(), Held()
    received(server.send(MODEL), held)
    forms = server.send(OTHER)
    work = work_of(forms, held)
    first, *_ = forms.payload("a").frames()
    chunk = decode_chunk(first)
    with pytest.raises(CorruptionError, match="checksum"):
        work.receive(encode_chunk(chunk._replace(crc32c=chunk.crc32c ^ 1)))
    assert held.replicas[MIXED].version == version_of(MODEL)
    assert received(forms, held).start().payload.block.equal(server.sent.block)


def test_a_client_says_how_much_of_an_encoded_broadcast_it_has() -> None:
    server, held = Server(), Held()
    received(server.send(MODEL), held)
    forms = server.send(OTHER)
    work, payload = work_of(forms, held), forms.payload("a")
    for piece, frame in zip(payload.encoding.pieces, payload.frames(), strict=True):
        assert work.holding is not None
        assert (work.holding.size_bytes, work.holding.digest) == (piece.start, payload.header.digest)
        work.receive(frame)
    assert work.holding is not None
    assert work.holding.size_bytes == payload.size_bytes


def message_with(forms: Forms, **changes: object) -> pb.Work:
    """The first message of a broadcast with changes in its payload's header."""
    message = pb.ParticipateResponse.FromString(forms.message("a")).work
    for name, value in changes.items():
        setattr(message.payload, name, value)
    return message


def stepping() -> tuple[Forms, Held]:
    """A server whose client holds what its next step leads from."""
    server, held = Server(), Held()
    received(server.send(MODEL), held)
    return server.send(OTHER), held


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"codec": "zip"}, 'there is no codec "zip"; there is bf16, eden1'),
        ({"codec": "a\nb\x1b[31m"}, r'there is no codec "a\nb\x1b[31m"; there is'),
        ({"codec": "x" * 100_000}, 'there is no codec "xxx'),
        ({"codec": "", "seed": 0}, "bytes declared where the schema has"),
        ({"codec": "int4"}, "bytes declared where the schema has"),
        ({"size_bytes": 2**62}, f"{2**62} bytes declared where the schema has"),
        ({"size_bytes": 0}, "0 bytes declared"),
        ({"chunk_bytes": 2**31}, f"chunks of {2**31} bytes"),
        ({"digest": b"1"}, "digest of 1 bytes"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_header_that_no_server_sends_is_refused_in_one_line(
    changes: Mapping[str, object], expected: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms, held = stepping()
    if whole:
        forms.lacks("a")
        if "codec" in changes and changes["codec"] in ("", "int4"):
            pytest.skip("a whole model may be sent with any codec")
    message = message_with(forms, **changes)
    monkeypatch.setattr(Tensors, "empty", lambda _: pytest.fail("memory was taken"))
    work = Work(message, FakeWorker(lambda _: Reply(), MIXED), held)
    text = reason(work)
    assert text.startswith(expected) or expected in text
    assert text.isprintable()
    assert len(text) <= 500
    assert held.replicas[MIXED].version == version_of(MODEL)


def spec(name: str, shape: list[int], trainable: bool = True) -> pb.Manifest:
    dtype = Payload(Tensors(Schema([TensorSpec(name, torch.float32, (1,))])), 8).header.schema.tensors[0].dtype
    message = pb.Manifest()
    message.model.tensors.add(name=name, dtype=dtype, shape=shape, trainable=trainable)
    return message


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (spec("stranger", [3]), "tensor 'stranger' is not expected"),
        (spec("bias", [2**40]), "tensor bias: float32[1099511627776] where bias: float32[41] is expected"),
        (spec("", [3]), "tensor name '' is empty"),
        (spec("bias", [1] * 9), "9 dimensions"),
    ],
    ids=["stranger", "absurd", "no name", "dimensions"],
)
def test_a_step_of_tensors_that_are_not_the_models_is_refused(listed: pb.Manifest, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forms, held = stepping()
    message = message_with(forms)
    message.payload.schema.CopyFrom(listed.model)
    monkeypatch.setattr(Tensors, "empty", lambda _: pytest.fail("memory was taken"))
    assert expected in reason(Work(message, FakeWorker(lambda _: Reply(), MIXED), held))
    assert held.replicas[MIXED].version == version_of(MODEL)


def test_a_step_that_lists_a_tensor_twice_is_refused() -> None:
    forms, held = stepping()
    message = message_with(forms)
    message.payload.schema.tensors.append(message.payload.schema.tensors[0])
    assert "share a name" in reason(Work(message, FakeWorker(lambda _: Reply(), MIXED), held))


@pytest.mark.parametrize("codec", ["zip", "", "topk:1.0"])
def test_a_codec_for_the_reply_that_is_not_known_is_refused(codec: str) -> None:
    forms, held = stepping()
    message = message_with(forms)
    message.answer_codec = codec
    work = Work(message, FakeWorker(lambda _: Reply(), MIXED), held)
    if codec:
        assert f'"{codec}"' in reason(work)
    else:
        assert work.refusal is None


# What is replied.


def encoded(contribution: Tensors, how: Coding, held: Held | None = None, reply: Reply | None = None) -> tuple[Reply, Payload]:
    encoder = ReplyEncoder(CHUNK_BYTES, how, held or Held())
    numbers, code = encoder.encode("local_train", reply or Reply(contribution, loss=0.5), contribution)
    return numbers, Payload.of(code)


def read(payload: Payload, how: Coding, schema: Schema = MIXED) -> Tensors:
    assembly = Assembly(payload.header, schema, how)
    for frame in payload.frames():
        assembly.add(decode_chunk(frame))
    return assembly.tensors


def test_a_reply_is_encoded_as_the_server_asks_and_says_what_that_cost() -> None:
    how = coding("eden2")
    numbers, payload = encoded(UPDATE, how)
    found = read(payload, how)
    assert found.block.equal(Encoding(MIXED, CHUNK_BYTES, how).encode(UPDATE).decode().block)
    assert numbers.metrics[CODEC_ERROR["up"]] == relative_error(UPDATE, found)
    assert numbers.metrics[CODEC_SECONDS["up"]] > 0
    assert numbers.loss == 0.5


def test_without_a_codec_nothing_is_said_of_one() -> None:
    numbers, payload = encoded(UPDATE, UNCODED)
    assert numbers.metrics == {}
    assert read(payload, UNCODED).block.equal(UPDATE.block)


@pytest.mark.parametrize("count", [MAX_METRICS - 2, MAX_METRICS - 1])
def test_a_reply_that_is_full_of_metrics_leaves_out_those_of_the_codec(count: int) -> None:
    own = {f"m{number}": 1.0 for number in range(count)}
    numbers, _ = encoded(UPDATE, coding("int8"), reply=Reply(UPDATE, metrics=own))
    assert len(numbers.metrics) == (MAX_METRICS if count == MAX_METRICS - 2 else count)
    assert own.items() <= numbers.metrics.items()


def test_a_reply_by_way_of_work_is_encoded_with_codec_and_seed_of_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    for codec in (find("int4", unbiased=True), Alternate()):
        know(monkeypatch, codec)
        described = replace(exchange(MODEL, None), reply_codec=codec, seed=11)
        codes = []
        for client in "ab":
            message = pb.ParticipateResponse.FromString(Forms(described, CHUNK_BYTES).message(client)).work
            work = Work(message, FakeWorker(lambda _: Reply(UPDATE), MIXED))
            for frame in Forms(described, CHUNK_BYTES).payload(client).frames():
                work.receive(frame)
            payload = work.compute(work.start()).payload
            assert payload is not None
            how = described.reply_coding(client)
            assert (payload.header.codec, payload.header.seed) == (codec.name, how.seed)
            read(payload, how)
            codes.append(payload.content_sha256)
        assert codes[0] != codes[1]


def test_a_reply_that_is_sent_again_names_the_code_that_it_was() -> None:
    described = replace(exchange(MODEL, None), reply_codec=find("eden1", unbiased=True))
    forms = Forms(described, CHUNK_BYTES)
    work = received(forms, Held())
    kept = work.compute(work.start())
    work.keep(kept)
    assert kept.payload is not None
    list(work.reply_from(0))
    offset = kept.payload.encoding.pieces[2].start
    header, *frames = work.reply_from(offset)
    answer = pb.ParticipateRequest.FromString(header).answer
    assert answer.payload.content_sha256 == kept.payload.content_sha256
    assert decode_chunk(frames[0]).offset == offset
    with pytest.raises(ProtocolError, match="no chunk"):
        work.reply_from(offset + 1)


def test_what_a_codec_leaves_out_is_sent_later() -> None:
    held, total, arrived = Held(), Tensors(MIXED), Tensors(MIXED)
    lossy = [name for name, spec in MIXED.by_name.items() if spec.lossy]
    for number in range(6):
        how = Coding(Alternate(), number)
        contribution = filled(MIXED, 20 + number)
        _, payload = encoded(contribution, how, held)
        held.settle(counted=True)
        found = read(payload, how)
        for name in ("mean", "count", "mask"):
            assert found[name].equal(contribution[name])
        total, arrived = total + contribution, arrived + found
        leftover = held.with_leftover("local_train", Tensors(MIXED))
        for name in lossy:
            torch.testing.assert_close(arrived[name] + leftover[name], total[name], rtol=0.02, atol=0.05)
    weights = "weight", "bias", "scale"
    for name in weights:  # float32: but for the rounding of the last digits
        torch.testing.assert_close(arrived[name] + leftover[name], total[name])


def test_each_exchange_has_leftovers_of_its_own() -> None:
    held, how = Held(), Coding(Alternate(), 1)
    ReplyEncoder(CHUNK_BYTES, Coding(Alternate(), 0), held).encode("local_train", Reply(), UPDATE)
    held.settle(counted=True)
    encoder = ReplyEncoder(CHUNK_BYTES, how, held)
    _, code = encoder.encode("dkd_step", Reply(), OTHER)
    assert code.decode()["weight"].equal(Encoding(MIXED, CHUNK_BYTES, how).encode(OTHER).decode()["weight"])
    _, code = encoder.encode("local_train", Reply(), OTHER)
    assert not code.decode()["weight"].equal(Encoding(MIXED, CHUNK_BYTES, how).encode(OTHER).decode()["weight"])


def test_leftovers_of_another_kind_of_contribution_are_dropped() -> None:
    held, how = Held(), Coding(Alternate(), 0)
    encoder = ReplyEncoder(CHUNK_BYTES, how, held)
    encoder.encode("local_train", Reply(), UPDATE)
    held.settle(counted=True)
    model = filled(FLOATS, 1)
    _, code = encoder.encode("local_train", Reply(), model)
    assert code.decode()["w"].equal(Encoding(FLOATS, CHUNK_BYTES, how).encode(model).decode()["w"])


def test_a_reply_that_did_not_count_leaves_what_was_left_before() -> None:
    """Its largest elements never arrived: what the code left out is not all that is missing."""
    held, first, second = Held(), Coding(Alternate(), 0), Coding(Alternate(), 1)
    ReplyEncoder(CHUNK_BYTES, first, held).encode("local_train", Reply(), UPDATE)
    held.settle(counted=True)
    before = held.with_leftover("local_train", Tensors(MIXED))
    ReplyEncoder(CHUNK_BYTES, second, held).encode("local_train", Reply(), OTHER)
    held.settle(counted=False)
    held.settle(counted=True)
    assert held.with_leftover("local_train", Tensors(MIXED)).block.equal(before.block)
    assert not before.block.equal(Tensors(MIXED).block)


def test_a_receipt_does_not_settle_an_earlier_reply_of_which_nothing_was_heard() -> None:
    held = Held()
    held.enter(at(1, 0))
    ReplyEncoder(CHUNK_BYTES, Coding(Alternate(), 0), held).encode("local_train", Reply(), UPDATE)
    held.enter(at(1, 0))
    ReplyEncoder(CHUNK_BYTES, coding("eden1"), held).encode("dkd_step", Reply(), OTHER)
    held.settle(counted=True)
    assert held.with_leftover("local_train", UPDATE) is UPDATE


def test_an_attempt_starts_from_what_was_left_before_its_round() -> None:
    """What failed attempts sent was not used, so nothing of theirs is left over."""
    held = Held()
    held.enter(at(1, 0))
    ReplyEncoder(CHUNK_BYTES, Coding(Alternate(), 0), held).encode("local_train", Reply(), UPDATE)
    held.settle(counted=True)
    held.enter(at(2, 0))
    before = held.with_leftover("local_train", Tensors(MIXED)).block
    for attempt in range(1, 4):
        ReplyEncoder(CHUNK_BYTES, Coding(Alternate(), attempt), held).encode("local_train", Reply(), OTHER)
        held.settle(counted=True)
        assert not held.with_leftover("local_train", Tensors(MIXED)).block.equal(before)
        held.enter(at(2, attempt))
        assert held.with_leftover("local_train", Tensors(MIXED)).block.equal(before)


def test_codecs_that_round_leave_nothing_to_be_sent_later() -> None:
    held = Held()
    for number in range(3):
        encoded(UPDATE, coding("eden1", number), held)
    assert held.with_leftover("local_train", UPDATE) is UPDATE


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "int4", "eden1", "eden4", "topk:0.25"])
@pytest.mark.parametrize(("tensor", "number"), [("weight", math.nan), ("mean", math.inf), ("wide", -math.inf), ("weight", 1e30)])
def test_a_contribution_that_is_of_no_use_is_sent_as_a_code_that_is_refused(
    name: str, tensor: str, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the server sees the loss that came with it, and judges both as it would without a codec."""
    know(monkeypatch, Alternate())
    how, held = coding(name), Held()
    encoded(UPDATE, how, held)
    before = held.with_leftover("local_train", OTHER)
    bad = UPDATE.replace({})
    bad[tensor].view(-1)[-1] = number
    numbers, payload = encoded(bad, how, held, Reply(bad, loss=math.nan))
    assert math.isnan(numbers.loss or 0)
    assert payload.size_bytes == Encoding(MIXED, CHUNK_BYTES, how).size_bytes
    with pytest.raises(ProtocolError, match=r"NaN or infinite|negative|bool"):
        read(payload, how)
    assert held.with_leftover("local_train", OTHER).block.equal(before.block)
