"""The reduction of contributions that are encoded: decoded block by block, whatever the order of arrival."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from coding import MIXED, NAMES, Alternate
from collecting import CHUNK, CONTRIBUTIONS, EXCHANGE, LARGE, WEIGHTS, Scene, Sender, expected
from crc32c import crc32c
from harness import filled, mean_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import UNCODED, Encoding
from feddkd.engines.collection import Arrival, Judgement
from feddkd.engines.spool import CODE_MARGIN_BYTES, Spool
from feddkd.exchange import Cause, Closing, Exchange, Missing, Reply
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk
from feddkd.transport.messages import Verdict
from feddkd.transport.pb import federation_pb2 as pb

CODECS: list[Codec] = [*(find(name, unbiased=True) for name in NAMES), Alternate()]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
INT8 = find("int8", unbiased=True)


def mean_of_decoded(exchange: Exchange, *clients: str) -> str:
    """Decode each contribution as a whole, then take the weighted mean, straight from its definition."""
    decoded = {client: Encoding(LARGE, CHUNK, exchange.reply_coding(client)).encode(CONTRIBUTIONS[client]).decode() for client in clients}
    return mean_of(decoded, WEIGHTS).sha256()


@pytest.mark.parametrize("codec", [CODECS[0], CODECS[3], CODECS[5], CODECS[-1]], ids=lambda codec: codec.name)
@settings(max_examples=4)
@given(seed=st.integers(0, 2**32), budget_bytes=st.sampled_from([0, 20_000, 1 << 20]))
def test_the_mean_is_that_of_the_decoded_contributions_in_whatever_order_their_chunks_arrive(
    codec: Codec, seed: int, budget_bytes: int
) -> None:
    chooser = random.Random(seed)
    scene = Scene(budget_bytes=budget_bytes, codec=codec)
    queues = {client: Sender(scene, client, CONTRIBUTIONS[client]).steps() for client in WEIGHTS}
    while queues:
        client = chooser.choice(list(queues))
        assert queues[client].pop(0)() is None
        if not queues[client]:
            del queues[client]
        if chooser.random() < 0.3:
            scene.reduce()
    result = scene.result()
    assert result is not None
    assert result.sha256() == mean_of_decoded(scene.collection.exchange, *WEIGHTS)
    assert result.sha256() != expected(*WEIGHTS)
    assert result["n"].equal(mean_of(CONTRIBUTIONS, WEIGHTS)["n"])
    scene.collection.close()
    assert scene.spool.used_bytes == 0


@pytest.mark.parametrize("offset_of", [lambda pieces: 0, lambda pieces: pieces[1].start, lambda pieces: pieces[7].start])
def test_an_upload_that_broke_goes_on_at_a_byte_of_its_code(offset_of: Callable[..., int]) -> None:
    scene = Scene(codec=INT8, closing=Closing(1000.0, reconnect_grace_s=10.0))
    for client in "bcd":
        Sender(scene, client, CONTRIBUTIONS[client]).send()
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    assert sender.payload is not None
    pieces = sender.payload.encoding.pieces
    offset = offset_of(pieces)
    for step in sender.steps()[: 1 + sum(piece.start < offset for piece in pieces)]:
        step()
    scene.collection.disconnect("a", 0.0)
    scene.collection.connect("a", 0.0, holds_broadcast=True)
    assert scene.collection.contributions["a"].received_bytes == offset
    for step in sender.steps(offset):
        assert step() is None
    result = scene.result()
    assert result is not None
    assert result.sha256() == mean_of_decoded(scene.collection.exchange, *WEIGHTS)


def test_the_same_code_again_is_a_duplicate_and_another_is_refused() -> None:
    scene = Scene(codec=INT8)
    for client in WEIGHTS:
        Sender(scene, client, CONTRIBUTIONS[client]).send()
    assert Sender(scene, "a", CONTRIBUTIONS["a"]).header(again=True) == Judgement(Verdict.VERDICT_DUPLICATE)
    other = Sender(scene, "a", CONTRIBUTIONS["b"]).header(again=True)
    assert other is not None
    assert other.verdict == Verdict.VERDICT_ALREADY_EXISTS


def test_a_client_that_is_lost_leaves_the_mean_of_the_others() -> None:
    scene = Scene(codec=INT8)
    for client in WEIGHTS:
        for step in Sender(scene, client, CONTRIBUTIONS[client]).steps()[: 20 if client == "c" else None]:
            step()
        scene.reduce()
    scene.collection.fail("c", "lost")
    result = scene.result()
    assert result is not None
    assert result.sha256() == mean_of_decoded(scene.collection.exchange, "a", "b", "d")


def test_it_says_what_a_contribution_takes_with_and_without_its_codec() -> None:
    scene = Scene(codec=INT8)
    assert scene.fold is not None
    assert (scene.fold.code_bytes, scene.fold.dense_bytes) == (
        Encoding(LARGE, CHUNK, EXAMPLE.reply_coding("a")).size_bytes,
        LARGE.size_bytes,
    )
    assert scene.fold.decode_s == 0.0
    for client in WEIGHTS:
        Sender(scene, client, CONTRIBUTIONS[client]).send()
    scene.result()
    assert scene.fold.decode_s > 0.0
    plain = Scene()
    assert plain.fold is not None
    for client in WEIGHTS:
        Sender(plain, client, CONTRIBUTIONS[client]).send()
    plain.result()
    assert (plain.fold.code_bytes, plain.fold.dense_bytes, plain.fold.decode_s) == (LARGE.size_bytes, LARGE.size_bytes, 0.0)


EXAMPLE = Scene(codec=INT8).collection.exchange


# What is refused.


def judged(scene: Scene, sender: Sender) -> tuple[Judgement, Missing]:
    """What a client is told of a reply that is refused, and why it is missing; nothing of it is kept."""
    (judgement,) = sender.send()
    missing = scene.collection.missing()[sender.client]
    assert scene.collection.contributions[sender.client].blocks == []
    return judgement, missing


def others_reply(scene: Scene) -> None:
    """They are reduced as if the first had not been there."""
    for client in "bcd":
        assert Sender(scene, client, CONTRIBUTIONS[client]).send() == []
    result = scene.result()
    assert result is not None
    assert result.sha256() == mean_of_decoded(scene.collection.exchange, "b", "c", "d")


class Hostile(Sender):
    """Changes its header, and the bytes of its chunks before they are checksummed."""

    def __init__(self, scene: Scene, change: Callable[[pb.Answer], object], client: str = "a") -> None:
        super().__init__(scene, client, CONTRIBUTIONS[client])
        self._change = change

    @property
    def answer(self) -> pb.Answer:
        answer = super().answer
        self._change(answer)
        return answer


HEADERS: dict[str, tuple[Callable[[pb.Answer], object], str]] = {
    "codec": (lambda answer: setattr(answer.payload, "codec", "int4"), "codec 'int4' with seed"),
    "unknown codec": (lambda answer: setattr(answer.payload, "codec", "zip\n"), r"codec 'zip\n' with seed"),
    "no codec": (lambda answer: answer.payload.ClearField("codec"), "codec '' with seed"),
    "seed": (lambda answer: setattr(answer.payload, "seed", 1), "codec 'int8' with seed 1 where 'int8' with seed"),
    "seed of another": (lambda answer: setattr(answer.payload, "seed", EXAMPLE.reply_coding("b").seed), "codec 'int8' with seed"),
    "size": (lambda answer: setattr(answer.payload, "size_bytes", 2**50), f"{2**50} bytes declared where the schema has"),
    "chunks": (lambda answer: setattr(answer.payload, "chunk_bytes", 8), "chunks of 8 bytes where the server's have 1024"),
    "a list": (lambda answer: answer.payload.schema.tensors.add(name="w", dtype=3, shape=[1]), "tensor 'd' is missing"),
    "digest": (lambda answer: setattr(answer.payload, "digest", b""), "a digest of 0 bytes"),
    "no tensors": (lambda answer: answer.ClearField("payload"), "the reply holds no tensors"),
}


@pytest.mark.parametrize(("change", "reason"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_not_what_was_asked_for_is_refused(change: Callable[[pb.Answer], object], reason: str) -> None:
    scene = Scene(codec=INT8)
    judgement, missing = judged(scene, Hostile(scene, change))
    assert judgement.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    assert missing.cause is Cause.REFUSED
    assert missing.reason.startswith(f"refused: {reason}")
    assert missing.reason.isprintable()
    others_reply(scene)


def test_a_code_where_none_is_asked_for_is_refused() -> None:
    scene, coded = Scene(), Scene(codec=INT8)
    sender = Sender(coded, "a", CONTRIBUTIONS["a"])
    sender.scene = scene
    _, missing = judged(scene, sender)
    assert missing.reason.startswith("refused: codec 'int8' with seed")


def code_of(scene: Scene, change: Callable[[Tensor], object], index: int) -> Judgement | None:
    """Send a reply of "a" whose chunk `index` was changed, with right checksums, up to that chunk."""
    sender = Sender(scene, "a", CONTRIBUTIONS["a"])
    assert sender.payload is not None
    assert sender.header() is None
    piece = sender.payload.encoding.pieces[index]
    for frame in list(sender.payload.frames())[:index]:
        assert sender.chunk(frame) is None
    encoding = Encoding(LARGE, CHUNK, scene.collection.exchange.reply_coding("a"))
    code = encoding.encode(CONTRIBUTIONS["a"]).block[piece.start : piece.stop].clone()
    change(code)
    data = bytes(code.tolist())
    accepted = scene.collection.accept("a", Chunk(piece.start, crc32c(data), memoryview(data)))
    assert not isinstance(accepted, Arrival)
    return accepted


@every_codec
def test_a_code_that_no_encoder_makes_is_refused_and_the_others_count(codec: Codec) -> None:
    """NaN in scales, exponents and elements."""
    scene = Scene(codec=codec)
    judgement = code_of(scene, lambda code: code.fill_(0xFF), index=6)  # the third of "w"
    assert judgement is not None
    assert judgement.verdict == Verdict.VERDICT_INVALID_ARGUMENT
    missing = scene.collection.missing()["a"]
    assert missing.cause is Cause.REFUSED
    assert missing.reason == "refused: a code holds a number that is NaN or infinite"
    others_reply(scene)


def test_exact_bytes_beside_codes_are_checked_as_ever() -> None:
    scene = Scene(codec=INT8)
    pieces = Encoding(LARGE, CHUNK, EXAMPLE.reply_coding("a")).pieces
    index = next(index for index, piece in enumerate(pieces) if piece.segment.dtype == torch.bool)
    judgement = code_of(scene, lambda code: code.fill_(2), index)
    assert judgement is not None
    assert scene.collection.missing()["a"].reason == "refused: a bool element is neither 0 nor 1"
    others_reply(scene)


def test_a_code_whose_elements_overflow_their_dtype_is_refused() -> None:
    """A float16 decodes in float32, where 1e5 is finite."""
    codec = find("bf16", unbiased=True)
    scene = Scene(codec=codec)
    encoding = Encoding(LARGE, CHUNK, scene.collection.exchange.reply_coding("a"))
    index = next(index for index, piece in enumerate(encoding.pieces) if piece.segment.dtype == torch.float16)
    judgement = code_of(scene, lambda code: code.view(torch.bfloat16).fill_(1e5), index)
    assert judgement is not None
    assert scene.collection.missing()["a"].reason == "refused: an element is NaN or infinite"
    others_reply(scene)


@every_codec
def test_the_norm_that_is_limited_is_that_of_what_is_decoded(codec: Codec) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (1000,)), TensorSpec("mean", torch.float32, (9,), trainable=False)])
    contribution = filled(schema, 3)
    contribution["mean"].fill_(1e6)  # counts for nothing
    for factor, refused in ((1.001, False), (0.999, True)):
        exchange = Scene({"a": 1.0}, schema, codec=codec).collection.exchange
        decoded = Encoding(schema, CHUNK, exchange.reply_coding("a")).encode(contribution).decode()
        limit = factor * float(decoded["w"].double().norm())
        scene = Scene({"a": 1.0}, schema, codec=codec, max_norm=limit)
        judgements = Sender(scene, "a", contribution).send()
        assert bool(judgements) is refused
        if refused:
            assert scene.collection.missing()["a"].reason == f"refused: its norm is above aggregation.max_norm = {limit:g}"


def test_a_loss_that_is_not_finite_is_a_model_that_is_of_no_use_also_with_a_code_of_nothing() -> None:
    scene = Scene(codec=INT8)
    _, missing = judged(scene, Sender(scene, "a", CONTRIBUTIONS["a"], Reply(loss=math.nan)))
    assert missing == Missing(Cause.DIVERGED, "refused: the loss is nan")


# Room for codes.


@every_codec
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_code_of_any_chunk_fits_into_a_slot(codec: Codec, dtype: torch.dtype) -> None:
    """However short the chunk, and however narrow its elements: the spool reserves slots of one size."""
    for count in [*range(1, 300), *range(1000, 1100), 4095, 4096, 4097, 10_000, 65_537]:
        assert codec.size_bytes(count) <= count * dtype.itemsize + CODE_MARGIN_BYTES


@every_codec
@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
def test_codes_of_one_element_are_kept_in_memory_and_in_the_file(codec: Codec, budget_bytes: int) -> None:
    schema = Schema([TensorSpec("w", torch.float16, (1,)), TensorSpec("m", torch.float16, (1,), trainable=False)])
    contributions = {client: filled(schema, seed) for seed, client in enumerate("ab")}
    scene = Scene({"a": 1.0, "b": 1.0}, schema, codec=codec, budget_bytes=budget_bytes)
    for client, contribution in contributions.items():
        assert Sender(scene, client, contribution).send() == []
    assert (scene.spool.file_bytes > 0) is (budget_bytes == 0)
    result = scene.result()
    assert result is not None
    exchange = scene.collection.exchange
    decoded = {
        client: Encoding(schema, CHUNK, exchange.reply_coding(client)).encode(part).decode() for client, part in contributions.items()
    }
    assert result.sha256() == mean_of(decoded, exchange.clients).sha256()


def test_a_block_beyond_the_margin_is_no_block() -> None:
    spool = Spool(0, CHUNK + CODE_MARGIN_BYTES)
    spool.reserve(CHUNK + CODE_MARGIN_BYTES).free()
    with pytest.raises(ValueError, match="slots"):
        spool.reserve(CHUNK + CODE_MARGIN_BYTES + 1)
    spool.close()


def test_a_contribution_of_nothing_is_reduced_to_nothing() -> None:
    empty = Schema([])
    scene = Scene({"a": 1.0}, empty, codec=INT8)
    assert Sender(scene, "a", Tensors(empty)).send() == []
    result = scene.result()
    assert result is not None
    assert (result.schema, EXCHANGE.name, UNCODED.name) == (empty, "local_train", "")


def test_scalars_beside_a_model_are_exact() -> None:
    """They are how clients tell the server half numbers that it has to know."""
    schema = MIXED.beside({"loss": Schema([TensorSpec("value", torch.float64, (), trainable=False)])})
    contributions = {client: filled(schema, seed) for seed, client in enumerate("ab")}
    scene = Scene({"a": 1.0, "b": 1.0}, schema, codec=find("eden1", unbiased=True))
    for client, contribution in contributions.items():
        assert Sender(scene, client, contribution).send() == []
    result = scene.result()
    assert result is not None
    assert result["loss/value"].equal(mean_of(contributions, {"a": 1.0, "b": 1.0})["loss/value"])
