"""Encodes a client's contributions as the server asks for them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import torch

from feddkd.client.held import Held
from feddkd.compression.encoding import Coding, Encoded, Encoding, relative_error
from feddkd.exchange import MAX_METRICS, Reply
from feddkd.tensors import Tensors
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS


class ReplyEncoder:
    """Encodes the contribution of one exchange."""

    def __init__(self, chunk_bytes: int, coding: Coding, held: Held, *, measures_error: bool = True) -> None:
        """Prepare to encode.

        Args:
            measures_error: decode each code to see what it lost, which takes about as long as to encode.
        """
        self._chunk_bytes = chunk_bytes
        self._coding = coding
        self._held = held
        self._measures_error = measures_error

    def encode(self, exchange: str, reply: Reply, contribution: Tensors, *, decode_s: float = 0.0) -> tuple[Reply, Encoded]:
        """Encode a contribution.

        Args:
            exchange: name of the exchange: what a codec leaves out is kept by it.
            decode_s: seconds that were spent on decoding the broadcast.

        Returns:
            The reply, which says what codecs cost, and what is to be sent.
        """
        encoding = Encoding(contribution.schema, self._chunk_bytes, self._coding)
        codec = self._coding.codec
        if codec is None:
            cost = {CODEC_SECONDS["up"]: decode_s} if decode_s > 0 else {}
            return _with_cost(reply, cost), encoding.encode(contribution)
        started = time.perf_counter()
        if codec.error_feedback:
            contribution = self._held.with_leftover(exchange, contribution)
        encoded = _encoded(encoding, contribution)
        if encoded is None:
            # What no codec decodes: the server refuses it, with the reply's numbers before it, as it would the elements.
            return reply, Encoded(encoding, torch.full((encoding.size_bytes,), 0xFF, dtype=torch.uint8))
        cost = {}
        if codec.error_feedback or self._measures_error:
            decoded = encoded.decode()
            cost[CODEC_ERROR["up"]] = relative_error(contribution, decoded)
            if codec.error_feedback:
                self._held.leave(exchange, contribution, decoded)
        seconds = time.perf_counter() - started
        cost[CODEC_SECONDS["up"]] = decode_s + seconds
        told = _with_cost(reply, cost)
        return dataclasses.replace(told, compute_s=told.compute_s + seconds), encoded


def _with_cost(reply: Reply, cost: Mapping[str, float]) -> Reply:
    """Add metrics to a reply that has room for them."""
    metrics = {**reply.metrics, **cost}
    return dataclasses.replace(reply, metrics=metrics) if len(metrics) <= MAX_METRICS else reply


def _encoded(encoding: Encoding, contribution: Tensors) -> Encoded | None:
    """Encode a contribution; None for one that is not finite, or enormous."""
    if not contribution.is_finite():
        return None
    try:
        return encoding.encode(contribution)
    except ValueError:
        return None
