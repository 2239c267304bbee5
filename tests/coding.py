"""Codecs that a test can follow by hand, and tensors of which a codec may change some."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from feddkd.compression.checks import check_code_norm, check_own_norm, check_size
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Coding, Encoding
from feddkd.registry import CODECS, codec_key
from feddkd.tensors import Schema, Tensors, TensorSpec

NAMES = ["fp16", "bf16", "int8", "int4", "eden1", "eden2", "eden3", "eden4"]

MIXED = Schema(
    [
        TensorSpec("wide", torch.float64, (70,)),
        TensorSpec("weight", torch.float32, (30, 41)),
        TensorSpec("bias", torch.float32, (41,)),
        TensorSpec("mean", torch.float32, (41,), trainable=False),
        TensorSpec("scale", torch.float32, (3,)),
        TensorSpec("half", torch.float16, (77,)),
        TensorSpec("brain", torch.bfloat16, (9,)),
        TensorSpec("count", torch.int64, (), trainable=False),
        TensorSpec("mask", torch.bool, (3,), trainable=False),
        TensorSpec("nothing", torch.float32, (0, 4)),
    ]
)
"""All kinds of tensors; a buffer between parameters of its dtype, so that codes and exact bytes alternate."""


@dataclass(frozen=True)
class Alternate:
    """Keeps every second element as it is, beginning with the first or the second by the seed."""

    name: str = "topk:0.25"
    error_feedback: bool = True

    def size_bytes(self, num_elements: int) -> int:
        return 4 * -(-num_elements // 2)

    def encode(self, elements: Tensor, seed: int) -> Tensor:
        check_own_norm(float(elements.double().norm()))
        code = torch.zeros(-(-len(elements) // 2))
        kept = elements[seed % 2 :: 2]
        code[: len(kept)] = kept
        return code.view(torch.uint8)

    def decode(self, code: Tensor, num_elements: int, seed: int) -> Tensor:
        self.check(code, num_elements)
        elements = torch.zeros(num_elements)
        places = elements[seed % 2 :: 2]
        places.copy_(code.clone().view(torch.float32)[: len(places)])
        return elements

    def check(self, code: Tensor, num_elements: int) -> None:
        check_size(code, self.size_bytes(num_elements))
        check_code_norm(float(code.clone().view(torch.float32).double().norm()))


def know(monkeypatch: pytest.MonkeyPatch, codec: Codec) -> None:
    """Let the configuration name a codec of a test's, also in place of a built-in one."""
    stand_in = SimpleNamespace(of=lambda name, unbiased: codec, error_feedback=codec.error_feedback)
    assert list(CODECS)  # so that none registers itself later, when its name would be taken
    monkeypatch.setitem(CODECS._items, codec_key(codec.name), stand_in)


def coding(name: str, seed: int = 7, *, unbiased: bool = True) -> Coding:
    return Coding(find(name, unbiased=unbiased), seed)


def decoded(tensors: Tensors, chunk_bytes: int, coding: Coding) -> Tensors:
    """What a receiver makes of the codes of tensors."""
    return Encoding(tensors.schema, chunk_bytes, coding).encode(tensors).decode()
