"""Encodes a client's contributions as the server asks for them."""

from __future__ import annotations

import dataclasses
import time

import torch

from feddkd.client.held import Held
from feddkd.client.incoming_broadcast import check_zstd
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Coding, Encoded, Encoding, relative_error
from feddkd.exchange import MAX_METRICS, Reply
from feddkd.tensors import Tensors
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS
from feddkd.transport.pb import federation_pb2 as pb


def reply_coding(message: pb.Work) -> Coding:
    """Read how the reply has to be encoded. Raises ConfigError for a codec that is not known here."""
    check_zstd(message.answer_zstd)
    codec = find(message.answer_codec, unbiased=True) if message.answer_codec else None
    return Coding(codec, message.answer_seed, message.answer_zstd)


class ReplyEncoder:
    """Encodes the contribution of one exchange."""

    def __init__(self, chunk_bytes: int, coding: Coding, held: Held) -> None:
        self._chunk_bytes = chunk_bytes
        self._coding = coding
        self._held = held

    def encode(self, exchange: str, reply: Reply, contribution: Tensors) -> tuple[Reply, Encoded]:
        """Encode a contribution; the reply that is returned says what that cost."""
        encoding = Encoding(contribution.schema, self._chunk_bytes, self._coding)
        codec = self._coding.codec
        if codec is None:
            return reply, encoding.encode(contribution)
        started = time.perf_counter()
        if codec.error_feedback:
            contribution = self._held.with_leftover(exchange, contribution)
        encoded = _encoded(encoding, contribution)
        if encoded is None:
            # What no codec decodes: the server refuses it, with the reply's numbers before it, as it would the elements.
            return reply, Encoded(encoding, torch.full((encoding.size_bytes,), 0xFF, dtype=torch.uint8))
        decoded = encoded.decode()
        if codec.error_feedback:
            self._held.keep_leftover(exchange, contribution, decoded)
        cost = {
            CODEC_ERROR["up"]: relative_error(contribution, decoded),
            CODEC_SECONDS["up"]: time.perf_counter() - started,
        }
        metrics = {**reply.metrics, **cost}
        return (dataclasses.replace(reply, metrics=metrics) if len(metrics) <= MAX_METRICS else reply), encoded


def _encoded(encoding: Encoding, contribution: Tensors) -> Encoded | None:
    """Encode a contribution; None for one that is not finite, or enormous."""
    if not contribution.is_finite():
        return None
    try:
        return encoding.encode(contribution)
    except ValueError:
        return None
