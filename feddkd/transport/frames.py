"""Chunks as stream messages, framed by hand.

A chunk is the field `chunk = 2` of `ParticipateRequest` and of `ParticipateResponse` alike. Building and
parsing those messages through protobuf would copy every megabyte two or three times more; the functions
here write and read exactly the same bytes with one copy and with none. The tests hold them equal to
protobuf's own serialization, so a client in another language needs nothing but the .proto files.
"""

from __future__ import annotations

from typing import NamedTuple

from feddkd.errors import ProtocolError

SERVICE = "feddkd.v1.FederationService"
"""The name under which a server is asked."""

PROTOCOL_VERSION = 1
"""The version of protos/feddkd/v1 that this code speaks."""

_STREAM_CHUNK_TAG = 0x12  # field 2, length-delimited
_OFFSET_TAG = 0x08  # field 1, varint
_CRC_TAG = 0x15  # field 2, fixed32
_DATA_TAG = 0x1A  # field 3, length-delimited


class Chunk(NamedTuple):
    """One piece of a payload: position in bytes, CRC-32C, and data that share the message's memory."""

    offset: int
    crc32c: int
    data: memoryview


def encode_chunk(chunk: Chunk) -> bytes:
    """Build the stream message that carries `chunk`; copies its data once."""
    head = bytearray()
    if chunk.offset:  # proto3 leaves zeros out
        head.append(_OFFSET_TAG)
        _write_varint(head, chunk.offset)
    if chunk.crc32c:
        head.append(_CRC_TAG)
        head += chunk.crc32c.to_bytes(4, "little")
    if chunk.data:
        head.append(_DATA_TAG)
        _write_varint(head, len(chunk.data))
    message = bytearray((_STREAM_CHUNK_TAG,))
    _write_varint(message, len(head) + len(chunk.data))
    return b"".join((message, head, chunk.data))


def chunk_message_bytes(offset: int, crc32c: int, length: int) -> int:
    """Return the size in bytes of the message of `encode_chunk`, without building it."""
    inner = length
    inner += (1 + _varint_bytes(offset)) if offset else 0
    inner += 5 if crc32c else 0
    inner += (1 + _varint_bytes(length)) if length else 0
    return 1 + _varint_bytes(inner) + inner


def is_chunk(message: bytes) -> bool:
    """Return whether a stream message carries a chunk."""
    return message[:1] == b"\x12"


def decode_chunk(message: bytes | memoryview) -> Chunk:
    """Read a chunk message without copying its data.

    Raises:
        ProtocolError: the bytes are not a well-formed chunk message.
    """
    try:
        length, at = _read_varint(message, 1)
        if at + length != len(message):
            raise ProtocolError(f"chunk message of {len(message)} bytes declares {length} bytes after byte {at}")
        offset, crc = 0, 0
        data = memoryview(b"")
        while at < len(message):
            tag = message[at]
            if tag == _OFFSET_TAG:
                offset, at = _read_varint(message, at + 1)
            elif tag == _CRC_TAG:
                crc, at = int.from_bytes(message[at + 1 : at + 5], "little"), at + 5
            elif tag == _DATA_TAG:
                size, start = _read_varint(message, at + 1)
                at = start + size
                data = memoryview(message)[start:at]
            else:
                raise ProtocolError(f"chunk message has unknown field tag {tag:#x}")
        if at != len(message):
            raise ProtocolError("chunk message ends in the middle of a field")
    except IndexError:
        raise ProtocolError("chunk message ends in the middle of a field") from None
    return Chunk(offset, crc, data)


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _read_varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ProtocolError("chunk message holds an integer of more than 64 bits")


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)
