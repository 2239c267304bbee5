"""Payloads that a codec has encoded: their messages, and what is refused of a peer's."""

from __future__ import annotations

import hashlib

import pytest
import torch
import zstandard
from coding import MIXED, NAMES, Alternate, coding
from crc32c import crc32c
from harness import filled
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import schemas, with_ordinary_values

from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import UNCODED, Coding, Encoding
from feddkd.errors import CorruptionError, ProtocolError, SchemaError
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, decode_chunk
from feddkd.transport.payload import Assembly, ChunkSequence, Payload, check_header, schema_to_message
from feddkd.transport.pb import tensors_pb2

CHUNK_BYTES = 256
MODEL = filled(MIXED, 1)
INT8 = coding("int8")
ANY = st.builds(Coding, st.sampled_from([find(name, unbiased=True) for name in NAMES] + [Alternate()]), st.integers(0, 2**63 - 1))


def payload_of(tensors: Tensors = MODEL, how: Coding = INT8, *, listed: bool = False, chunk_bytes: int = CHUNK_BYTES) -> Payload:
    return Payload.of(Encoding(tensors.schema, chunk_bytes, how).encode(tensors), listed=listed)


def header_of(*, listed: bool = False, **changes: object) -> tensors_pb2.PayloadHeader:
    header = tensors_pb2.PayloadHeader()
    header.CopyFrom(payload_of(listed=listed).header)
    for field, value in changes.items():
        setattr(header, field, value)
    return header


def transfer(payload: Payload, schema: Schema, how: Coding) -> Tensors:
    """Through messages and back."""
    assembly = Assembly(tensors_pb2.PayloadHeader.FromString(payload.header.SerializeToString()), schema, how)
    for frame in payload.frames():
        assert not assembly.complete
        assembly.add(decode_chunk(frame))
    assert assembly.complete
    assert assembly.received_bytes == payload.size_bytes
    return assembly.tensors


@settings(max_examples=50)
@given(st.builds(with_ordinary_values, schemas, st.integers(0, 2**32)), st.integers(8, 300), ANY, st.booleans())
def test_what_arrives_is_what_the_sender_decodes(tensors: Tensors, chunk_bytes: int, how: Coding, listed: bool) -> None:
    encoded = Encoding(tensors.schema, chunk_bytes, how).encode(tensors)
    payload = Payload.of(encoded, listed=listed)
    found = transfer(payload, tensors.schema, how)
    assert found.block.equal(encoded.decode().block)
    frames = list(payload.frames())
    assert payload.frames_bytes == sum(map(len, frames))
    assert b"".join(bytes(decode_chunk(frame).data) for frame in frames) == bytes(encoded.block.tolist())
    assert payload.content_sha256 == hashlib.sha256(bytes(encoded.block.tolist())).digest()


def test_the_header_says_how_it_is_encoded() -> None:
    header = header_of()
    assert (header.codec, header.seed, header.chunk_bytes) == ("int8", 7, CHUNK_BYTES)
    assert header.size_bytes == Encoding(MIXED, CHUNK_BYTES, INT8).size_bytes < MIXED.size_bytes


def test_tensors_that_both_ends_know_are_not_listed() -> None:
    assert len(header_of().schema.tensors) == 0
    assert header_of(listed=True).schema == schema_to_message(MIXED)
    assert payload_of(how=UNCODED).header.schema == schema_to_message(MIXED)
    assert len(header_of().SerializeToString()) < 70


def test_frames_may_be_sent_from_any_chunk_on() -> None:
    payload = payload_of()
    frames = list(payload.frames())
    starts = [piece.start for piece in payload.encoding.pieces]
    for index, start in enumerate(starts):
        assert list(payload.frames(start)) == frames[index:]
    assert list(payload.frames(payload.size_bytes)) == []
    for offset in set(range(payload.size_bytes + 3)) - {*starts, payload.size_bytes}:
        with pytest.raises(ProtocolError, match=f"byte {offset}$"):
            payload.frames(offset)


SIZE = Encoding(MIXED, CHUNK_BYTES, INT8).size_bytes
FEWER = Schema(MIXED.specs[1:])
WRONG = {
    "another codec": (header_of(codec="int4"), INT8, "codec 'int4' with seed 7 where 'int8' with seed 7 is expected"),
    "no codec": (payload_of(how=UNCODED).header, INT8, "codec '' with seed 0 where 'int8' with seed 7 is expected"),
    "a codec": (header_of(), UNCODED, "codec 'int8' with seed 7 where '' with seed 0 is expected"),
    "another seed": (header_of(seed=8), INT8, "codec 'int8' with seed 8 where 'int8' with seed 7 is expected"),
    "a seed without a codec": (header_of(codec="", seed=7), UNCODED, "codec '' with seed 7 where '' with seed 0 is expected"),
    "a long name": (header_of(codec="x" * 5000), INT8, f"codec '{'x' * 40}' with"),
    "the size of the elements": (
        header_of(size_bytes=MIXED.size_bytes),
        INT8,
        f"{MIXED.size_bytes} bytes declared where the schema has {SIZE}",
    ),
    "no size": (header_of(size_bytes=0), INT8, f"0 bytes declared where the schema has {SIZE}"),
    "an absurd size": (header_of(size_bytes=2**62), INT8, f"{2**62} bytes declared"),
    "other chunks": (header_of(chunk_bytes=1024), INT8, f"{SIZE} bytes declared where"),
    "tiny chunks": (header_of(chunk_bytes=4), INT8, "chunks of 4 bytes"),
    "a tensor too few": (payload_of(Tensors(FEWER), listed=True).header, INT8, f"'{MIXED.specs[0].name}' is missing"),
    "a tensor too many": (
        payload_of(Tensors(MIXED.beside({"x": FEWER})), listed=True).header,
        INT8,
        "'x/weight' is not expected|'x/count' is not expected",
    ),
    "no digest": (header_of(digest=b""), INT8, "digest of 0 bytes"),
}


@pytest.mark.parametrize(("header", "how", "reason"), WRONG.values(), ids=WRONG)
def test_a_header_of_anything_else_is_refused_before_memory_is_taken(
    header: tensors_pb2.PayloadHeader, how: Coding, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("memory was taken")

    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, taken)
    for read in (check_header, ChunkSequence, Assembly):
        with pytest.raises(SchemaError, match=reason):
            read(header, MIXED, how)


def test_a_list_of_the_expected_tensors_may_be_there() -> None:
    for listed in (False, True):
        assert check_header(header_of(listed=listed), MIXED, INT8).size_bytes == SIZE


def test_a_list_in_another_order_is_refused() -> None:
    header = header_of(listed=True)
    tensors = list(header.schema.tensors)
    del header.schema.tensors[:]
    header.schema.tensors.extend(sorted(tensors, key=lambda spec: (spec.dtype, spec.name)))
    with pytest.raises(SchemaError, match="another order"):
        check_header(header, MIXED, INT8)


def add_all(assembly: Assembly, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        assembly.add(chunk)


def changed(chunks: list[Chunk], index: int, data: bytes) -> list[Chunk]:
    return [*chunks[:index], Chunk(chunks[index].offset, crc32c(data), memoryview(data)), *chunks[index + 1 :]]


@pytest.mark.parametrize("change", ["shorter", "longer", "as long as the elements", "empty"])
def test_a_code_of_another_length_is_refused(change: str) -> None:
    payload = payload_of()
    chunks = [decode_chunk(frame) for frame in payload.frames()]
    index = next(index for index, piece in enumerate(payload.encoding.pieces) if piece.codec is not None)
    data = bytes(chunks[index].data)
    longer = payload.encoding.pieces[index].segment.stop - payload.encoding.pieces[index].segment.start
    wrong = {"shorter": data[:-1], "longer": data + b"0", "as long as the elements": bytes(longer), "empty": b""}[change]
    assembly = Assembly(payload.header, MIXED, INT8)
    with pytest.raises(CorruptionError, match=f"{len(wrong)} bytes at byte {chunks[index].offset} where {len(data)} are due"):
        add_all(assembly, changed(chunks, index, wrong))


@pytest.mark.parametrize("name", NAMES)
def test_a_code_that_no_encoder_makes_is_refused(name: str) -> None:
    """All ones: scales, exponents and halves that are NaN, with right checksums."""
    schema = Schema([TensorSpec("w", torch.float32, (100,))])
    how = coding(name)
    data = b"\xff" * Encoding(schema, CHUNK_BYTES * 2, how).size_bytes
    digest = hashlib.sha256(crc32c(data).to_bytes(4, "little")).digest()
    header = tensors_pb2.PayloadHeader(codec=name, seed=7, size_bytes=len(data), chunk_bytes=CHUNK_BYTES * 2, digest=digest)
    with pytest.raises(SchemaError, match="NaN or infinite"):
        Assembly(header, schema, how).add(Chunk(0, crc32c(data), memoryview(data)))


def test_the_same_code_read_with_another_seed_is_another_vector() -> None:
    """So a header cannot be let through with a seed that is not the expected one."""
    how, other = coding("eden2", 1), coding("eden2", 2)
    encoded = Encoding(MIXED, CHUNK_BYTES, how).encode(MODEL)
    header = Payload.of(encoded).header
    header.seed = 2
    assembly = Assembly(header, MIXED, other)
    for frame in Payload.of(encoded).frames():
        assembly.add(decode_chunk(frame))
    assert not assembly.tensors["weight"].equal(encoded.decode()["weight"])


def test_an_empty_payload_is_complete_at_once() -> None:
    empty = Schema([])
    payload = payload_of(Tensors(empty))
    assert list(payload.frames()) == []
    assert Assembly(payload.header, empty, INT8).complete


PACKED = Coding(zstd=True)
ZEROS = Tensors(Schema([TensorSpec("w", torch.float32, (400,))]))


@settings(max_examples=30)
@given(
    st.builds(with_ordinary_values, schemas, st.integers(0, 2**32)),
    st.integers(8, 300),
    st.sampled_from([None, find("int4", unbiased=True)]),
)
def test_what_zstandard_compresses_arrives_bit_for_bit(tensors: Tensors, chunk_bytes: int, codec: Codec | None) -> None:
    encoded = Encoding(tensors.schema, chunk_bytes, Coding(codec, 3, zstd=True)).encode(tensors)
    payload = Payload.of(encoded)
    assert transfer(payload, tensors.schema, encoded.encoding.coding).block.equal(encoded.decode().block)
    assert payload.frames_bytes == sum(map(len, payload.frames()))


def test_zstandard_makes_messages_smaller_and_is_the_same_for_every_receiver() -> None:
    plain, packed = payload_of(ZEROS, UNCODED, chunk_bytes=1600), payload_of(ZEROS, PACKED, chunk_bytes=1600)
    assert packed.frames_bytes < plain.frames_bytes / 10
    assert list(packed.frames()) == list(packed.frames())
    assert packed.header.digest == plain.header.digest, "of the bytes before they were compressed"


@pytest.mark.parametrize(("sent", "expected"), [(PACKED, UNCODED), (UNCODED, PACKED)])
def test_zstandard_is_used_where_it_was_agreed_alone(sent: Coding, expected: Coding) -> None:
    with pytest.raises(SchemaError, match="zstandard"):
        check_header(payload_of(ZEROS, sent).header, ZEROS.schema, expected)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        bytes(100),
        zstandard.compress(bytes(1599)),
        zstandard.compress(bytes(1 << 30)),
        zstandard.compress(bytes(1600))[:-1],
    ],
    ids=["empty", "garbage", "zeros", "one byte short", "a gigabyte", "cut off"],
)
def test_a_frame_that_is_not_the_chunk_is_refused(data: bytes) -> None:
    sequence = ChunkSequence(payload_of(ZEROS, PACKED, chunk_bytes=1600).header, ZEROS.schema, PACKED)
    with pytest.raises(CorruptionError):
        sequence.accept(Chunk(0, crc32c(data), memoryview(data)))
