"""Several short stream messages in one: gRPC's price is by the message, not by the byte.

Each is counted as if it had come alone, at both ends and on every engine. The 2 to 4 bytes that a batch has for it are
not, as little as the 5 bytes that gRPC would have had.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from feddkd.errors import ProtocolError
from feddkd.transport.pb import federation_pb2 as pb

MAX_BATCH_BYTES = 32 << 10
"""What the messages of a batch have together. A longer message travels alone: there a message costs little."""

MAX_BATCH_MESSAGES = 64

_BATCH_TAG = b"\x3a"  # field 7, length-delimited


def request_batch(messages: Sequence[bytes]) -> bytes:
    """Build the stream message with a client's `messages` in it, or return the only one."""
    if len(messages) == 1:
        return messages[0]
    return pb.ParticipateRequest(batch=pb.Batch(messages=messages)).SerializeToString()


def response_batch(messages: Sequence[bytes]) -> bytes:
    """Build the stream message with the server's `messages` in it, or return the only one."""
    if len(messages) == 1:
        return messages[0]
    return pb.ParticipateResponse(batch=pb.Batch(messages=messages)).SerializeToString()


def messages_of(message: bytes) -> Sequence[bytes]:
    """Return the messages of a batch, or the message itself if it is none.

    Raises:
        ProtocolError: the batch is malformed: not 2 to 64 messages, a batch in it, too long, or with other bytes.
    """
    if message[:1] != _BATCH_TAG:
        return (message,)
    try:
        # Of either end: the field has the same number.
        messages = pb.ParticipateRequest.FromString(message).batch.messages
    except DecodeError:
        raise ProtocolError(f"a message of {len(message)} bytes is not a batch") from None
    if not 2 <= len(messages) <= MAX_BATCH_MESSAGES:
        raise ProtocolError(f"a batch of {len(messages)} messages; 2 to {MAX_BATCH_MESSAGES} are allowed")
    if any(inner[:1] == _BATCH_TAG for inner in messages):
        raise ProtocolError("a batch in a batch")
    if (size_bytes := sum(map(len, messages))) > MAX_BATCH_BYTES:
        raise ProtocolError(f"messages of {size_bytes} bytes in a batch; at most {MAX_BATCH_BYTES} are allowed")
    # What is in no message would be neither counted nor bounded.
    if len(message) != _field_bytes(sum(_field_bytes(len(inner)) for inner in messages)):
        raise ProtocolError(f"a batch of {len(message)} bytes with more than its messages")
    return messages


def _field_bytes(size_bytes: int) -> int:
    """Size of a field of `size_bytes` bytes with its tag and its length, as protobuf writes it."""
    length_bytes = max(1, (size_bytes.bit_length() + 6) // 7)
    return 1 + length_bytes + size_bytes
