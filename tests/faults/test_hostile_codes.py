"""Peers that send codes, seeds and claims that no honest one sends: each is refused, and the others go on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import grpc
import pytest
from agent_scenes import taking_part
from coding import coding
from crc32c import crc32c
from hand_server import exchange as exchange_id
from hand_server import on_loop
from harness import SCHEMA, FakeWorker, HandClient, Server, answering, exchange_of, filled, serving

from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codecs import find
from feddkd.compression.encoding import UNCODED, Coding, Encoding
from feddkd.engines.forms import Forms
from feddkd.exchange import Cause, Exchange, ExchangeId, Outcome, Reply
from feddkd.tensors import Tensors
from feddkd.transport.frames import Chunk, decode_chunk, encode_chunk, is_chunk
from feddkd.transport.messages import lacking_message, receipt_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK_BYTES = 1 << 20
INT8 = find("int8", unbiased=True)
MODEL, OTHER, THIRD, OURS, THEIRS = (filled(SCHEMA, seed) for seed in range(5))
"""The model's 20 + 5 parameters are one code; the buffers are exact."""


class Scene:
    """A live server whose exchanges are encoded, an honest client, and "hand", whose messages are made by hand."""

    def __init__(self, server: Server, hand: HandClient) -> None:
        self.server = server
        self.hand = hand
        self.broadcaster = Broadcaster(CHUNK_BYTES, 3)
        self.round = 0

    def describe(self, model: Tensors, *, codec: str = "int8") -> Exchange:
        sent, broadcast = self.broadcaster.broadcast(INT8, model, ["hand", "honest"])
        self.broadcaster.received(broadcast, sent, ["hand", "honest"])
        self.round += 1
        exchange = exchange_of(["hand", "honest"], sent, round_number=self.round)
        return replace(exchange, broadcast=broadcast, reply_codec=find(codec, unbiased=True))

    def begin(self, exchange: Exchange) -> Future[Outcome]:
        return self.server.begin(exchange)

    def step(self) -> Exchange:
        """An exchange whose broadcast is a step, after one in which the hand failed."""
        begun = self.begin(self.describe(MODEL))
        self.receive()
        self.fail(self.round)
        assert list(begun.result().replies) == ["honest"]
        return self.describe(OTHER)

    def receive(self) -> tuple[pb.Work, int]:
        """The next broadcast: its first message, and how many bytes of chunks follow it."""
        while (response := self.hand.response()).WhichOneof("message") != "work":
            pass
        received = 0
        while received < response.work.payload.size_bytes:
            message = self.hand.receive()
            assert is_chunk(message)
            received += len(decode_chunk(message).data)
        return response.work, received

    def fail(self, number: int) -> None:
        failure = pb.Failure(id=exchange_message(number), reason="enough")
        self.hand.send(pb.ParticipateRequest(failure=failure).SerializeToString())

    def check(self, exchange: Exchange, outcome: Outcome, reason: str, cause: Cause = Cause.REFUSED) -> None:
        """The hand is left out for this reason, and the honest client counts alone."""
        assert list(outcome.missing) == ["hand"]
        missing = outcome.missing["hand"]
        assert missing.cause is cause
        assert reason in missing.reason
        assert missing.reason.isprintable()
        assert outcome.reduced is not None
        decoded = Encoding(SCHEMA, CHUNK_BYTES, exchange.reply_coding("honest")).encode(OURS).decode()
        assert outcome.reduced.sha256() == decoded.sha256()


def exchange_message(number: int) -> pb.ExchangeId:
    found = exchange_of([], MODEL, round_number=number).id
    return pb.ExchangeId(run_id=found.run_id, round=found.round, name=found.name)


@pytest.fixture
def play() -> Iterator[Scene]:
    with serving() as server, HandClient(server.address) as hand:
        server.agent("honest", answering(OURS))
        hand.connect()
        server.wait_for("hand", "honest")
        yield Scene(server, hand)


# A client that asks again and again.


def test_a_client_is_sent_one_whole_model_an_exchange_however_often_it_asks(play: Scene) -> None:
    exchange = play.step()
    begun = play.begin(exchange)
    work, received = play.receive()
    assert work.replica.base_sha256 != b""
    for _ in range(20):
        play.hand.send(lacking_message(exchange.id))
    work, received = play.receive()
    assert (work.replica.base_sha256, received) == (b"", SCHEMA.size_bytes)
    play.fail(play.round)
    outcome = begun.result()
    play.check(exchange, outcome, "enough", Cause.FAILED)
    assert exchange.broadcast is not None
    assert exchange.broadcast.step is not None
    assert outcome.traffic.snapshot_bytes_down == 0
    assert outcome.traffic.payload_bytes_down == 2 * exchange.broadcast.step.size_bytes
    assert outcome.lost.wire_bytes_down > SCHEMA.size_bytes
    # Nothing else came before the receipt.
    following = play.describe(THIRD)
    begun = play.begin(following)
    work, _ = play.receive()
    assert work.id.round == following.id.round
    play.fail(play.round)
    begun.result()


def test_a_client_that_never_stops_asking_is_cut_off(play: Scene) -> None:
    exchange = play.step()
    begun = play.begin(exchange)
    play.receive()
    play.hand.send(*[lacking_message(exchange.id)] * 500)
    assert play.hand.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
    outcome = begun.result()
    play.check(exchange, outcome, "not connected", Cause.DISCONNECTED)
    assert outcome.traffic.wire_bytes_down < 20 * SCHEMA.size_bytes  # the model once, and messages


@pytest.mark.parametrize("change", [{"round": 99}, {"name": "deliver"}, {"run_id": "x" * 64}, {"attempt": 1}, {"step": 2**32 - 1}])
def test_to_ask_in_another_exchange_changes_nothing(change: dict[str, str | int], play: Scene) -> None:
    exchange = play.step()
    begun = play.begin(exchange)
    play.receive()
    message = pb.Lacking(id=exchange_message(play.round))
    for name, value in change.items():
        setattr(message.id, name, value)
    play.hand.send(*[pb.ParticipateRequest(lacking=message).SerializeToString()] * 5)
    play.fail(play.round)
    outcome = begun.result()
    play.check(exchange, outcome, "enough", Cause.FAILED)
    assert outcome.traffic.snapshot_bytes_down == 0


def test_a_name_that_no_server_chose_ends_the_stream(play: Scene) -> None:
    exchange = play.step()
    begun = play.begin(exchange)
    play.receive()
    message = pb.Lacking(id=pb.ExchangeId(run_id="x" * 1000))
    play.hand.send(pb.ParticipateRequest(lacking=message).SerializeToString())
    assert play.hand.status() is grpc.StatusCode.INVALID_ARGUMENT
    play.check(exchange, begun.result(), "not connected", Cause.DISCONNECTED)


def test_who_was_sent_the_model_cannot_ask_for_it(play: Scene) -> None:
    exchange = play.describe(MODEL)
    begun = play.begin(exchange)
    play.receive()
    play.hand.send(*[lacking_message(exchange.id)] * 5)
    play.fail(play.round)
    outcome = begun.result()
    play.check(exchange, outcome, "enough", Cause.FAILED)
    assert outcome.traffic.payload_bytes_down == 2 * SCHEMA.size_bytes


def test_who_has_begun_to_reply_cannot_ask_for_it(play: Scene) -> None:
    exchange = play.step()
    begun = play.begin(exchange)
    work, _ = play.receive()
    header, *chunks = frames(work, THEIRS)
    play.hand.send(header, lacking_message(exchange.id), *chunks)
    outcome = begun.result()
    assert outcome.missing == {}
    assert outcome.traffic.snapshot_bytes_down == 0


# A client whose reply is not what was asked for.


def asked_for(work: pb.Work) -> Coding:
    return Coding(find(work.answer_codec, unbiased=True), work.answer_seed)


def frames(
    work: pb.Work,
    contribution: Tensors,
    how: Coding | None = None,
    *,
    loss: float = 0.5,
    change: Callable[[pb.Answer], object] = lambda _: None,
) -> list[bytes]:
    """A reply, with changes in its header."""
    encoding = Encoding(contribution.schema, work.payload.chunk_bytes, how or asked_for(work))
    payload = Payload.of(encoding.encode(contribution))
    answer = pb.Answer(id=work.id, payload=payload.header, loss=loss)
    change(answer)
    return [pb.ParticipateRequest(answer=answer).SerializeToString(), *payload.frames()]


def test_the_reply_by_hand_is_right_but_for_what_is_changed(play: Scene) -> None:
    exchange = play.describe(MODEL)
    begun = play.begin(exchange)
    work, _ = play.receive()
    play.hand.send(*frames(work, THEIRS))
    assert begun.result().missing == {}


REPLIES: dict[str, tuple[Callable[[pb.Work], list[bytes]], str]] = {
    "no codec": (lambda work: frames(work, THEIRS, UNCODED), "codec '' with seed 0 where 'int8' with seed"),
    "another codec": (lambda work: frames(work, THEIRS, Coding(find("int4", unbiased=True), work.answer_seed)), "codec 'int4' with seed"),
    "another seed": (lambda work: frames(work, THEIRS, coding("int8", 1)), "codec 'int8' with seed 1 where"),
    "escapes": (
        lambda work: frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "codec", "\x1b[31m\n")),
        r"codec '\x1b[31m\n' with seed",
    ),
    "a long name": (lambda work: frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "codec", "x" * 30_000)), "codec 'xxx"),
    "an absurd size": (
        lambda work: frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "size_bytes", 2**63)),
        f"{2**63} bytes declared where the schema has",
    ),
    "the size of the elements": (
        lambda work: frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "size_bytes", SCHEMA.size_bytes)),
        f"{SCHEMA.size_bytes} bytes declared where the schema has",
    ),
    "other chunks": (
        lambda work: frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "chunk_bytes", 8)),
        "chunks of 8 bytes where the server's have",
    ),
}


@pytest.mark.parametrize(("reply", "reason"), REPLIES.values(), ids=REPLIES)
def test_a_reply_with_another_header_than_was_asked_for_is_refused(
    reply: Callable[[pb.Work], list[bytes]], reason: str, play: Scene
) -> None:
    exchange = play.describe(MODEL)
    begun = play.begin(exchange)
    work, _ = play.receive()
    play.hand.send(*reply(work))
    play.check(exchange, begun.result(), f"refused: {reason}")
    assert reason in play.hand.receipt().reason


def spoiled(work: pb.Work, change: Callable[[bytearray], object]) -> list[bytes]:
    """A reply whose code was changed; checksums and digest are right, and so is the rest."""
    encoding = Encoding(SCHEMA, work.payload.chunk_bytes, asked_for(work))
    block = encoding.encode(THEIRS).block
    chunks = []
    for piece in encoding.pieces:
        data = bytearray(block[piece.start : piece.stop].tolist())
        if piece.codec is not None:
            change(data)
        chunks.append(Chunk(piece.start, crc32c(bytes(data)), memoryview(bytes(data))))
    digest = hashlib.sha256(b"".join(chunk.crc32c.to_bytes(4, "little") for chunk in chunks)).digest()
    header, *_ = frames(work, THEIRS, change=lambda answer: setattr(answer.payload, "digest", digest))
    return [header, *map(encode_chunk, chunks)]


def fill(value: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(slice(0, len(data)), bytes([value]) * len(data))


SPOILED: dict[str, tuple[str, Callable[[bytearray], object], str]] = {
    **{
        f"NaN in {name}": (name, fill(0xFF), "NaN or infinite")
        for name in ("fp16", "bf16", "int8", "int4", "eden1", "eden2", "eden3", "eden4")
    },
    "an infinite scale": ("int8", lambda data: data.__setitem__(slice(0, 4), b"\x00\x00\x80\x7f"), "NaN or infinite"),
    "a negative scale": ("int8", lambda data: data.__setitem__(slice(0, 4), b"\x00\x00\x80\xbf"), "negative"),
    "an enormous scale": ("eden2", lambda data: data.__setitem__(slice(0, 4), b"\xff\xff\x7f\x7f"), "too large"),
    "a truncated code": ("int8", lambda data: data.__delitem__(slice(-1, None)), "where 29 are due"),
    "a longer code": ("int8", lambda data: data.append(0), "where 29 are due"),
}


@pytest.mark.parametrize(("codec", "change", "reason"), SPOILED.values(), ids=SPOILED)
def test_a_code_that_no_encoder_makes_is_refused(codec: str, change: Callable[[bytearray], object], reason: str, play: Scene) -> None:
    exchange = play.describe(MODEL, codec=codec)
    begun = play.begin(exchange)
    work, _ = play.receive()
    play.hand.send(*spoiled(work, change))
    play.check(exchange, begun.result(), reason)


def test_a_code_of_nothing_with_a_loss_that_is_not_finite_says_that_the_model_is_of_no_use(play: Scene) -> None:
    exchange = play.describe(MODEL)
    begun = play.begin(exchange)
    work, _ = play.receive()
    play.hand.send(*frames(work, THEIRS, loss=float("nan")))
    play.check(exchange, begun.result(), "the loss is nan", Cause.DIVERGED)


# A server that is not what it says.


def forms_of(*models: Tensors) -> list[Forms]:
    """What an honest server sends a client, exchange by exchange."""
    broadcaster, found = Broadcaster(CHUNK_BYTES, 3), []
    for number, model in enumerate(models, start=1):
        sent, broadcast = broadcaster.broadcast(INT8, model, ["site"])
        broadcaster.received(broadcast, sent, ["site"])
        exchange = replace(exchange_of(["site"], sent, round_number=number), id=exchange_id(number), broadcast=broadcast)
        found.append(Forms(exchange, CHUNK_BYTES))
    return found


def first_message(forms: Forms, change: Callable[[pb.Work], object] = lambda _: None) -> bytes:
    response = pb.ParticipateResponse.FromString(forms.message("site"))
    change(response.work)
    return response.SerializeToString()


def receipt(number: int) -> bytes:
    return receipt_message(exchange_id(number), pb.Verdict.VERDICT_OK)


def add_stranger(work: pb.Work) -> None:
    work.payload.schema.tensors.add(name="stranger", dtype=3, shape=[2**40], trainable=True)


def enlarge(work: pb.Work) -> None:
    del work.payload.schema.tensors[:]
    work.payload.schema.tensors.add(name="layer.bias", dtype=3, shape=[2**40], trainable=True)
    work.payload.size_bytes = 2**42


WORKS: dict[str, tuple[Callable[[pb.Work], object], str]] = {
    "an unknown codec": (lambda work: setattr(work.payload, "codec", "zip\x1b[2J"), r'there is no codec "zip\x1b[2J"'),
    "an unknown codec for the reply": (lambda work: setattr(work, "answer_codec", "zip"), 'there is no codec "zip"'),
    "a very long codec": (lambda work: setattr(work.payload, "codec", "x" * 1_000_000), 'there is no codec "xxx'),
    "a tensor of another model": (add_stranger, "tensor 'stranger' is not expected"),
    "a tensor that is too large": (enlarge, "tensor layer.bias: float32[1099511627776] where layer.bias: float32[5] is expected"),
    "an absurd size": (lambda work: setattr(work.payload, "size_bytes", 2**63), f"{2**63} bytes declared"),
    "chunks of 4 GiB": (lambda work: setattr(work.payload, "chunk_bytes", 2**32 - 1), f"chunks of {2**32 - 1} bytes"),
    "no digest": (lambda work: setattr(work.payload, "digest", b""), "a digest of 0 bytes"),
}


@pytest.mark.parametrize(("change", "reason"), WORKS.values(), ids=WORKS)
def test_a_client_refuses_work_that_no_server_sends_and_takes_part_in_the_next(
    change: Callable[[pb.Work], object], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = forms_of(MODEL, OTHER)
    worker = FakeWorker(lambda task: Reply(task.payload))

    async def scenario() -> None:
        async with taking_part(worker) as scene:
            stream = await scene.stream()
            await stream.send(first_message(first), *first.payload("site").frames())
            await stream.answer()
            await stream.send(receipt(1))
            with monkeypatch.context() as patch:
                patch.setattr(Tensors, "empty", lambda schema: pytest.fail("memory was taken"))
                await stream.send(first_message(second, change))
                failure = (await stream.request()).failure
            assert failure.reason.startswith(reason[:190])
            assert failure.reason.isprintable()
            # The same exchange, honestly: what the client held it still holds.
            await stream.send(receipt(2), first_message(second), *second.payload("site").frames())
            _, contribution = await stream.answer()
            assert contribution.sha256() == second._exchange.payload.sha256()
            await stream.send(receipt(2))
            assert await scene.part(stream) == []

    on_loop(scenario())
    (warning,) = [record.getMessage() for record in caplog.records if "cannot take part" in record.getMessage()]
    assert "\n" not in warning
    assert len(warning) < 700


def test_a_client_asks_for_the_model_each_time_that_it_lacks_the_base() -> None:
    _, second = forms_of(MODEL, OTHER)

    async def scenario() -> None:
        async with taking_part(FakeWorker(lambda task: Reply(task.payload))) as scene:
            stream = await scene.stream()
            for _ in range(5):
                await stream.send(first_message(second), *second.payload("site").frames())
                request = await stream.request()
                assert request.WhichOneof("message") == "lacking"
                assert ExchangeId("run", request.lacking.id.round, 0, request.lacking.id.name, 0) == exchange_id(2)
            assert second.lacks("site")
            await stream.send(first_message(second), *second.payload("site").frames())
            _, contribution = await stream.answer()
            assert contribution.sha256() == second._exchange.payload.sha256()
            await stream.send(receipt(2))
            await scene.part(stream)

    on_loop(scenario())


def test_a_client_that_asked_says_so_again_to_the_connection_that_follows() -> None:
    _, second = forms_of(MODEL, OTHER)

    async def scenario() -> None:
        async with taking_part(FakeWorker(lambda task: Reply(task.payload))) as scene:
            stream = await scene.stream()
            await stream.send(first_message(second))
            assert (await stream.request()).WhichOneof("message") == "lacking"
            stream = await scene.back(stream)
            assert not stream.hello.HasField("holding")
            await stream.send(first_message(second), *second.payload("site").frames())
            assert (await stream.request()).WhichOneof("message") == "lacking"
            await scene.part(stream)

    on_loop(scenario())


def test_a_broadcast_with_a_code_that_no_encoder_makes_is_received_again() -> None:
    """The client breaks the connection, as for any chunk that is damaged on its way."""
    first, second = forms_of(MODEL, OTHER)
    payload = second.payload("site")
    chunks = [decode_chunk(frame) for frame in payload.frames()]
    index = next(index for index, piece in enumerate(payload.encoding.pieces) if piece.codec is not None)
    data = b"\xff" * len(chunks[index].data)
    chunks[index] = Chunk(chunks[index].offset, crc32c(data), memoryview(data))
    digest = hashlib.sha256(b"".join(chunk.crc32c.to_bytes(4, "little") for chunk in chunks)).digest()

    async def scenario() -> None:
        async with taking_part(FakeWorker(lambda task: Reply(task.payload))) as scene:
            stream = await scene.stream()
            await stream.send(first_message(first), *first.payload("site").frames())
            await stream.answer()
            await stream.send(receipt(1))
            header = first_message(second, lambda work: setattr(work.payload, "digest", digest))
            await stream.send(header, *map(encode_chunk, chunks))
            stream = await asyncio.wait_for(scene.stream(), 60)
            assert not stream.hello.HasField("holding")
            await stream.send(first_message(second), *payload.frames())
            _, contribution = await stream.answer()
            assert contribution.sha256() == second._exchange.payload.sha256()
            await stream.send(receipt(2))
            await scene.part(stream)

    on_loop(scenario())


def test_a_server_that_names_another_model_than_it_sends_is_not_believed() -> None:
    (first,) = forms_of(MODEL)
    seen: list[str] = []

    def respond(task: object) -> Reply:
        seen.append("computed")
        return Reply(OURS)

    async def scenario() -> None:
        async with taking_part(FakeWorker(respond)) as scene:
            stream = await scene.stream()
            wrong = first_message(first, lambda work: setattr(work.replica, "content_sha256", bytes(16)))
            await stream.send(wrong, *first.payload("site").frames())
            stream = await asyncio.wait_for(scene.stream(), 60)
            assert not stream.hello.HasField("holding")
            await scene.part(stream)

    on_loop(scenario())
    assert seen == []
