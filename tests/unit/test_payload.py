import hashlib
import itertools

import pytest
import torch
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_tensors, schemas, with_random_bytes
from torch import nn

from feddkd.errors import CorruptionError, ProtocolError, SchemaError
from feddkd.tensors import DTYPES, Schema, Tensors, TensorSpec
from feddkd.transport.frames import Chunk, decode_chunk, encode_chunk
from feddkd.transport.payload import (
    LARGEST_NORM,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    SHARED_FRAMES,
    Assembly,
    ChunkSequence,
    Payload,
    check_header,
    check_values,
    schema_from_message,
    schema_to_message,
)
from feddkd.transport.pb import federation_pb2, tensors_pb2

chunk_sizes = st.one_of(st.integers(8, 64), st.sampled_from([1000, 1024, 1 << 20, (4 << 20) - 4096]))


def add_all(assembly: Assembly, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        assembly.add(chunk)


def transfer(tensors: Tensors, chunk_bytes: int) -> Tensors:
    """Through messages and back."""
    payload = Payload(tensors, chunk_bytes)
    header = tensors_pb2.PayloadHeader.FromString(payload.header.SerializeToString())
    assembly = Assembly(header, tensors.schema)
    for frame in payload.frames():
        assert not assembly.complete
        assembly.add(decode_chunk(frame))
    assert assembly.complete
    return assembly.tensors


@given(any_tensors, chunk_sizes)
def test_any_tensors_arrive_with_every_bit_in_chunks_of_any_size(tensors: Tensors, chunk_bytes: int) -> None:
    arrived = transfer(tensors, chunk_bytes)
    assert arrived.schema == tensors.schema
    assert arrived.sha256() == tensors.sha256()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (0, 4)])
@pytest.mark.parametrize("chunk_bytes", [8, 9, 1 << 20])
def test_every_type_and_shape_travels(dtype: torch.dtype, shape: tuple[int, ...], chunk_bytes: int) -> None:
    tensors = with_random_bytes(Schema([TensorSpec("x", dtype, shape)]), 1)
    arrived = transfer(tensors, chunk_bytes)
    assert arrived["x"].shape == shape
    assert arrived["x"].dtype == dtype
    assert arrived.sha256() == tensors.sha256()


def test_a_batch_norm_counter_arrives_as_the_integer_it_is() -> None:
    module = nn.BatchNorm1d(3)
    for _ in range(5):
        module(torch.randn(4, 3))
    arrived = transfer(Tensors.of_module(module), 8)
    assert arrived["num_batches_tracked"].dtype == torch.int64
    assert arrived["num_batches_tracked"].item() == 5


@given(any_tensors, chunk_sizes)
def test_the_predicted_size_of_the_frames_is_their_size(tensors: Tensors, chunk_bytes: int) -> None:
    payload = Payload(tensors, chunk_bytes)
    frames = list(payload.frames())
    assert payload.frames_bytes == sum(map(len, frames))
    assert payload.num_frames == len(frames)
    assert all(len(frame) <= chunk_bytes + 32 for frame in frames)


@given(any_tensors, chunk_sizes)
def test_frames_may_be_read_by_several_receivers_at_their_own_pace(tensors: Tensors, chunk_bytes: int) -> None:
    payload = Payload(tensors, chunk_bytes)
    slow, fast = payload.frames(), list(payload.frames())
    assert list(slow) == fast
    assert list(payload.frames()) == fast


@given(any_tensors, chunk_sizes)
def test_the_digest_is_over_the_checksums_of_all_chunks(tensors: Tensors, chunk_bytes: int) -> None:
    payload = Payload(tensors, chunk_bytes)
    parsed = [federation_pb2.ParticipateRequest.FromString(frame).chunk for frame in payload.frames()]
    assert all(crc32c(chunk.data) == chunk.crc32c for chunk in parsed)
    assert b"".join(chunk.data for chunk in parsed) == bytes(tensors.block.tolist())
    digest = hashlib.sha256(b"".join(chunk.crc32c.to_bytes(4, "little") for chunk in parsed)).digest()
    assert payload.header.digest == digest
    assert payload.header.size_bytes == tensors.schema.size_bytes


def test_elements_travel_in_little_endian_order() -> None:
    schema = Schema([TensorSpec("i", torch.int32, (1,)), TensorSpec("h", torch.bfloat16, (1,))])
    tensors = Tensors.copy_of(
        schema,
        {
            "i": torch.tensor([0x01020304], dtype=torch.int32),
            "h": torch.tensor([1.0], dtype=torch.bfloat16),
        },
    )
    assert [bytes(decode_chunk(frame).data) for frame in Payload(tensors, 8).frames()] == [
        b"\x04\x03\x02\x01",
        b"\x80\x3f",
    ]


@given(schemas)
def test_a_schema_survives_the_wire(schema: Schema) -> None:
    message = tensors_pb2.Schema.FromString(schema_to_message(schema).SerializeToString())
    assert schema_from_message(message) == schema


def one_tensor(**changes: object) -> tensors_pb2.Schema:
    fields: dict[str, object] = {
        "name": "w",
        "dtype": tensors_pb2.ELEMENT_TYPE_FLOAT32,
        "shape": [2],
    } | changes
    return tensors_pb2.Schema(tensors=[tensors_pb2.TensorSpec(**fields)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (one_tensor(name=""), "is empty or longer than 256 bytes"),
        (one_tensor(name="é" * 129), "is empty or longer than 256 bytes"),
        (one_tensor(shape=[1] * (MAX_DIMENSIONS + 1)), "9 dimensions"),
        (one_tensor(dtype=0), "unknown element type 0"),
        (one_tensor(dtype=11), "unknown element type 11"),
        (
            tensors_pb2.Schema(
                tensors=[tensors_pb2.TensorSpec(name=str(i), dtype=tensors_pb2.ELEMENT_TYPE_FLOAT64) for i in range(MAX_TENSORS + 1)]
            ),
            "at most 10000",
        ),
        (
            tensors_pb2.Schema(tensors=[*one_tensor().tensors, *one_tensor(shape=[3]).tensors]),
            "share a name",
        ),
    ],
)
def test_a_schema_beyond_the_limits_is_refused(message: tensors_pb2.Schema, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        schema_from_message(message)


def test_a_schema_at_the_limits_is_accepted() -> None:
    assert schema_from_message(one_tensor(name="x" * MAX_NAME_BYTES, shape=[1] * MAX_DIMENSIONS)).size_bytes == 4
    many = tensors_pb2.Schema(
        tensors=[tensors_pb2.TensorSpec(name=str(i), dtype=tensors_pb2.ELEMENT_TYPE_BOOL) for i in range(MAX_TENSORS)]
    )
    assert len(schema_from_message(many)) == MAX_TENSORS


SCHEMA = Schema([TensorSpec("w", torch.float32, (10,)), TensorSpec("n", torch.int64, ())])


def header_of(schema: Schema = SCHEMA, **changes: object) -> tensors_pb2.PayloadHeader:
    header = Payload(Tensors(schema), 16).header
    for field, value in changes.items():
        setattr(header, field, value)
    return header


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (header_of(size_bytes=2**40), f"{2**40} bytes declared where the schema has 48"),
        (header_of(size_bytes=0), "0 bytes declared"),
        (header_of(chunk_bytes=7), "chunks of 7 bytes"),
        (header_of(chunk_bytes=4 << 20), f"chunks of {4 << 20} bytes"),
        (header_of(digest=b""), "digest of 0 bytes"),
        (header_of(Schema(SCHEMA.specs[1:])), "'n' is missing"),
        (
            header_of(Schema([*SCHEMA.specs, TensorSpec("more", torch.bool, ())])),
            "'more' is not expected",
        ),
    ],
)
def test_a_header_of_anything_else_is_refused_before_memory_is_taken(
    header: tensors_pb2.PayloadHeader, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(torch, "empty", taken)
    monkeypatch.setattr(torch, "zeros", taken)
    with pytest.raises(SchemaError, match=reason):
        Assembly(header, SCHEMA)
    with pytest.raises(SchemaError, match=reason):
        check_header(header, SCHEMA)


def test_the_trainable_flag_is_the_servers_business_and_not_compared() -> None:
    flipped = Schema(TensorSpec(spec.name, spec.dtype, spec.shape, not spec.trainable) for spec in SCHEMA.specs)
    check_header(header_of(flipped), SCHEMA)


def test_an_empty_payload_is_complete_at_once_if_its_digest_is_right() -> None:
    empty = Schema([TensorSpec("nothing", torch.float32, (0, 3))])
    assert ChunkSequence(header_of(empty), empty).complete
    with pytest.raises(CorruptionError, match="digest"):
        ChunkSequence(header_of(empty, digest=bytes(32)), empty)


@given(any_tensors, st.integers(8, 40), st.data())
def test_any_damage_to_any_chunk_is_noticed(tensors: Tensors, chunk_bytes: int, data: st.DataObject) -> None:
    payload = Payload(tensors, chunk_bytes)
    chunks = [decode_chunk(frame) for frame in payload.frames()]
    if not chunks:
        return
    index = data.draw(st.integers(0, len(chunks) - 1))
    chunk = chunks[index]
    content = bytearray(chunk.data)
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = memoryview(bytes(content))
    chunks[index] = data.draw(
        st.sampled_from(
            [
                Chunk(chunk.offset, chunk.crc32c, damaged),
                Chunk(chunk.offset, crc32c(damaged), damaged),  # with a checksum to match: only the digest tells
                Chunk(chunk.offset + 1, chunk.crc32c, chunk.data),
                Chunk(chunk.offset, chunk.crc32c, chunk.data[:-1]),
                Chunk(chunk.offset, chunk.crc32c, memoryview(bytes(chunk.data) + b"\0")),
                Chunk(chunk.offset, chunk.crc32c ^ 1, chunk.data),
            ]
        )
    )
    assembly = Assembly(payload.header, tensors.schema)
    with pytest.raises(CorruptionError):
        add_all(assembly, chunks)


@given(any_tensors, st.integers(8, 40))
def test_chunks_out_of_order_or_repeated_are_refused(tensors: Tensors, chunk_bytes: int) -> None:
    payload = Payload(tensors, chunk_bytes)
    chunks = [decode_chunk(frame) for frame in payload.frames()]
    if not chunks:
        return
    assembly = Assembly(payload.header, tensors.schema)
    with pytest.raises(CorruptionError):
        add_all(assembly, [*chunks, chunks[-1]])
    if len(chunks) > 1:
        with pytest.raises(CorruptionError):
            Assembly(payload.header, tensors.schema).add(chunks[1])


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_arbitrary_frames_never_make_a_payload(frames: list[bytes]) -> None:
    tensors = with_random_bytes(SCHEMA, 3)
    assembly = Assembly(Payload(tensors, 16).header, SCHEMA)
    for frame in frames:
        with pytest.raises(ProtocolError):
            assembly.add(decode_chunk(frame))
    assert not assembly.complete


def test_a_large_payload_keeps_only_a_few_encoded_frames() -> None:
    payload = Payload(Tensors(Schema([TensorSpec("w", torch.float32, (100_000,))])), 1000, shared=True)
    first = next(payload.frames())
    frames = payload.frames()
    assert next(frames) is first  # shared by receivers at the same place
    for _ in frames:
        pass
    assert next(payload.frames()) is not first
    assert next(payload.frames()) == first


@pytest.mark.parametrize("receivers", [4, 16, 64])
@pytest.mark.parametrize("apart", [0, SHARED_FRAMES - 1])
def test_a_broadcast_is_encoded_once_for_receivers_in_step(receivers: int, apart: int) -> None:
    payload = Payload(Tensors(Schema([TensorSpec("w", torch.float32, (5_000,))])), 1000, shared=True)
    first, *others = (payload.frames() for _ in range(receivers))
    sent = []
    for step in range(payload.num_frames + apart):
        if step < payload.num_frames:
            sent.append(next(first))
        if step >= apart:
            assert all(next(other) is sent[step - apart] for other in others)


# An upload or a broadcast that goes on where it broke.


@given(any_tensors, st.integers(8, 64))
def test_frames_begin_at_any_chunk_and_nowhere_else(tensors: Tensors, chunk_bytes: int) -> None:
    payload = Payload(tensors, chunk_bytes)
    frames = list(payload.frames())
    starts = [decode_chunk(frame).offset for frame in frames]
    for index, start in enumerate(starts):
        assert list(payload.frames(start)) == frames[index:]
    assert list(payload.frames(payload.size_bytes)) == []
    for offset in {*range(-1, payload.size_bytes + 2)} - {*starts, payload.size_bytes}:
        with pytest.raises(ProtocolError, match=f"begins at byte {offset}$"):
            payload.frames(offset)


@pytest.mark.parametrize("offset", [-8, 8, 2**40, 2**64 - 1])
def test_an_empty_payload_has_no_place_to_go_on_at(offset: int) -> None:
    payload = Payload(Tensors(Schema([])), 16)
    assert list(payload.frames(0)) == []
    with pytest.raises(ProtocolError):
        payload.frames(offset)


@given(any_tensors, st.integers(8, 64), st.data())
def test_a_transfer_that_broke_goes_on_where_it_broke(
    tensors: Tensors,
    chunk_bytes: int,
    data: st.DataObject,
) -> None:
    payload = Payload(tensors, chunk_bytes)
    assembly = Assembly(payload.header, tensors.schema)
    broken_at = data.draw(st.integers(0, payload.num_frames))
    for frame in itertools.islice(payload.frames(), broken_at):
        assembly.add(decode_chunk(frame))
    assert assembly.complete == (broken_at == payload.num_frames)
    for frame in payload.frames(assembly.received_bytes):
        assembly.add(decode_chunk(frame))
    assert assembly.received_bytes == payload.size_bytes
    assert assembly.complete
    assert assembly.tensors.sha256() == tensors.sha256()


# The content has a name.


def named(payload: Payload, content_sha256: bytes) -> tensors_pb2.PayloadHeader:
    header = tensors_pb2.PayloadHeader.FromString(payload.header.SerializeToString())
    header.content_sha256 = content_sha256
    return header


@given(any_tensors, chunk_sizes)
def test_the_name_of_a_content_depends_on_its_bytes_alone(
    tensors: Tensors,
    chunk_bytes: int,
) -> None:
    payload = Payload(tensors, chunk_bytes)
    assert payload.content_sha256 == hashlib.sha256(bytes(tensors.block.tolist())).digest()
    assert payload.content_sha256.hex() == tensors.sha256()


@pytest.mark.parametrize("length", [1, 31, 33])
def test_a_name_of_another_length_is_refused(length: int) -> None:
    payload = Payload(Tensors(SCHEMA), 16)
    with pytest.raises(SchemaError, match=f"a content hash of {length} bytes"):
        check_header(named(payload, bytes(length)), SCHEMA)


# Values.

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
WIDE_FLOATS = [dtype for dtype in FLOATS if torch.finfo(dtype).max > LARGEST_NORM]
INTEGERS = [dtype for dtype in DTYPES.values() if dtype not in (*FLOATS, torch.bool)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("length", [1, 9, 100_000])
def test_values_that_are_not_finite_are_refused(
    dtype: torch.dtype,
    value: float,
    length: int,
) -> None:
    elements = torch.ones(length, dtype=dtype)
    check_values(elements)
    elements[length * 7 // 9] = value
    with pytest.raises(SchemaError, match="NaN or infinite"):
        check_values(elements)


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinities_that_cancel_out_are_noticed(dtype: torch.dtype) -> None:
    with pytest.raises(SchemaError, match="NaN or infinite"):
        check_values(torch.tensor([float("inf"), -float("inf")], dtype=dtype))


@pytest.mark.parametrize("dtype", WIDE_FLOATS)
@pytest.mark.parametrize("length", [1, 4, 100, 90_000])
def test_elements_whose_norm_is_above_the_limit_are_refused(
    dtype: torch.dtype,
    length: int,
) -> None:
    each = LARGEST_NORM / length**0.5
    for sign in (1, -1):
        check_values(torch.full((length,), sign * 0.9 * each, dtype=dtype))
        with pytest.raises(SchemaError, match=r"too large: their norm is above 1e\+18"):
            check_values(torch.full((length,), sign * 1.1 * each, dtype=dtype))


@pytest.mark.parametrize("dtype", WIDE_FLOATS)
def test_the_largest_numbers_of_a_type_are_refused(dtype: torch.dtype) -> None:
    """Their squares overflow, and yet they are finite: the reason says which it is."""
    for sign in (1, -1):
        with pytest.raises(SchemaError, match="too large"):
            check_values(torch.tensor([0.0, sign * torch.finfo(dtype).max], dtype=dtype))


def test_the_largest_numbers_of_float16_are_ordinary() -> None:
    check_values(torch.full((100_000,), torch.finfo(torch.float16).max, dtype=torch.float16))


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_numbers_of_a_type_are_accepted(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = [info.tiny, -info.tiny, info.smallest_normal / 2, 0.0, -0.0]
    check_values(torch.tensor(tiny, dtype=dtype))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_anything(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    check_values(torch.tensor([info.min, 0, info.max], dtype=dtype))


def test_bools_are_0_or_1() -> None:
    check_values(torch.tensor([True, False]))
    for value in range(2, 256):
        with pytest.raises(SchemaError, match="neither 0 nor 1"):
            check_values(torch.tensor([1, value, 0], dtype=torch.uint8).view(torch.bool))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_no_elements_are_no_reason_to_refuse(dtype: torch.dtype) -> None:
    check_values(torch.empty(0, dtype=dtype))


def test_a_frame_can_be_built_again_from_what_was_decoded() -> None:
    for frame in Payload(with_random_bytes(SCHEMA, 9), 16).frames():
        assert encode_chunk(decode_chunk(frame)) == frame
