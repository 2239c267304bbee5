"""Reads from the server's messages how payloads are encoded."""

from __future__ import annotations

from feddkd.compression import lossless
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Coding
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.pb import tensors_pb2


def coding_of(header: tensors_pb2.PayloadHeader) -> Coding:
    """Read how the server encodes a payload. Raises ConfigError for what cannot be decoded here."""
    if header.zstd:
        lossless.require()
    codec = find(header.codec, unbiased=False) if header.codec else None
    return Coding(codec, header.seed, header.zstd)


def reply_coding(message: pb.Work) -> Coding:
    """Read how the reply has to be encoded. Raises ConfigError for a codec that is not known here."""
    if message.answer_zstd:
        lossless.require()
    codec = find(message.answer_codec, unbiased=True) if message.answer_codec else None
    return Coding(codec, message.answer_seed, message.answer_zstd)
