import pytest
from crc32c import crc32c
from hypothesis import example, given
from hypothesis import strategies as st

from feddkd.errors import ProtocolError
from feddkd.transport.frames import Chunk, chunk_message_bytes, decode_chunk, encode_chunk, is_chunk
from feddkd.transport.pb import federation_pb2, tensors_pb2

offsets = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1), st.sampled_from([2**7, 2**14, 2**32, 2**63]))
checksums = st.one_of(st.just(0), st.integers(0, 2**32 - 1))
data = st.one_of(st.binary(max_size=300), st.integers(0, 40_000).map(bytes))


@given(offsets, checksums, data)
@example(0, 0, b"")
@example(0, 0, b"\0")
@example(2**64 - 1, 2**32 - 1, bytes(127))
@example(1, 1, bytes(128))
def test_frames_are_the_bytes_that_protobuf_would_write_in_both_directions(offset: int, checksum: int, content: bytes) -> None:
    frame = encode_chunk(Chunk(offset, checksum, memoryview(content)))
    message = tensors_pb2.Chunk(offset=offset, crc32c=checksum, data=content)
    assert frame == federation_pb2.ParticipateRequest(chunk=message).SerializeToString()
    assert frame == federation_pb2.ParticipateResponse(chunk=message).SerializeToString()
    assert len(frame) == chunk_message_bytes(offset, checksum, len(content))
    assert is_chunk(frame)


@given(offsets, checksums, data)
@example(0, 0, b"")
def test_what_is_encoded_is_decoded_and_protobuf_agrees(offset: int, checksum: int, content: bytes) -> None:
    frame = encode_chunk(Chunk(offset, checksum, memoryview(content)))
    chunk = decode_chunk(frame)
    assert (chunk.offset, chunk.crc32c, bytes(chunk.data)) == (offset, checksum, content)
    parsed = federation_pb2.ParticipateRequest.FromString(frame).chunk
    assert (parsed.offset, parsed.crc32c, parsed.data) == (offset, checksum, content)


def test_decoding_shares_the_messages_memory() -> None:
    frame = encode_chunk(Chunk(8, crc32c(b"12345678"), memoryview(b"12345678")))
    assert decode_chunk(frame).data.obj is frame


def decodes_or_refuses(message: bytes) -> None:
    try:
        chunk = decode_chunk(message)
    except ProtocolError:
        return
    assert len(chunk.data) <= len(message)
    assert chunk.offset >= 0


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_decoded_or_refused_and_nothing_else(message: bytes) -> None:
    decodes_or_refuses(message)
    decodes_or_refuses(b"\x12" + message)
    decodes_or_refuses(b"\x12" + bytes([len(message)]) + message)


@given(offsets, checksums, st.binary(max_size=40), st.integers(0, 60), st.integers(0, 255))
def test_a_damaged_frame_is_decoded_or_refused_and_nothing_else(
    offset: int, checksum: int, content: bytes, position: int, byte: int
) -> None:
    frame = bytearray(encode_chunk(Chunk(offset, checksum, memoryview(content))))
    frame[position % len(frame)] = byte
    decodes_or_refuses(bytes(frame))


@given(offsets, st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=40), st.integers(1, 100))
def test_a_truncated_frame_is_refused(offset: int, checksum: int, content: bytes, cut: int) -> None:
    frame = encode_chunk(Chunk(offset, checksum, memoryview(content)))
    with pytest.raises(ProtocolError):
        decode_chunk(frame[: max(1, len(frame) - cut)])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "middle of a field"),
        (b"\x12", "middle of a field"),
        (b"\x12\x05\x08", "declares 5 bytes"),
        (b"\x12\x01\x08", "middle of a field"),
        (b"\x12\x02\x15\x01", "middle of a field"),
        (b"\x12\x02\x1a\x05", "middle of a field"),
        (b"\x12\x02\x28\x01", "unknown field tag 0x28"),
        (b"\x12\x0c\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x12\x00\x00", "declares 0 bytes"),
    ],
)
def test_refusals_say_what_is_wrong(message: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        decode_chunk(message)
