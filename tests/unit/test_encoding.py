"""How payloads are laid out as bytes: chunk by chunk, what a codec may change by the codec, the rest as it is."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from coding import MIXED, NAMES, Alternate, coding, decoded
from harness import filled
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import any_tensors, schemas, with_ordinary_values

from feddkd.compression.codecs import find
from feddkd.compression.encoding import UNCODED, Coding, Encoding, derive_seed, relative_error
from feddkd.tensors import Schema, Tensors, TensorSpec

CHUNKS = [8, 64, 1000, 1024, 1 << 20]

codings = st.builds(Coding, st.sampled_from([find(name, unbiased=True) for name in NAMES] + [Alternate()]), st.integers(0, 2**63 - 1))
chunk_sizes = st.one_of(st.integers(8, 80), st.sampled_from(CHUNKS))
coded_tensors = st.builds(with_ordinary_values, schemas, st.integers(0, 2**32))


def layout(pieces: Encoding) -> list[tuple[torch.dtype, int, bool, int]]:
    """Dtype, elements, whether coded, and bytes of each piece."""
    return [(piece.segment.dtype, piece.segment.numel, piece.codec is not None, piece.size_bytes) for piece in pieces.pieces]


def test_a_layout_by_hand() -> None:
    schema = Schema(
        [
            TensorSpec("w", torch.float32, (500,)),
            TensorSpec("b", torch.float32, (20,)),
            TensorSpec("mean", torch.float32, (3,), trainable=False),
            TensorSpec("s", torch.float32, (2,)),
            TensorSpec("n", torch.int64, ()),
        ]
    )
    found = Encoding(schema, 1024, coding("int8"))
    f32 = torch.float32
    assert layout(found) == [
        (torch.int64, 1, False, 8),
        (f32, 256, True, 256 + 4),  # parameters that are neighbours share chunks
        (f32, 256, True, 256 + 4),
        (f32, 8, True, 8 + 4),
        (f32, 3, False, 12),
        (f32, 2, True, 2 + 4),
    ]
    assert found.size_bytes == 8 + 260 + 260 + 12 + 12 + 6


@given(any_tensors, chunk_sizes)
def test_without_a_codec_the_bytes_are_those_of_the_elements(tensors: Tensors, chunk_bytes: int) -> None:
    encoding = Encoding(tensors.schema, chunk_bytes)
    encoded = encoding.encode(tensors)
    assert encoded.block.equal(tensors.block)
    assert encoding.size_bytes == tensors.schema.size_bytes
    assert [piece.segment for piece in encoding.pieces] == list(tensors.schema.chunks(chunk_bytes))
    assert encoded.decode().block.equal(tensors.block)


@given(schemas, chunk_sizes, codings)
def test_pieces_follow_one_another_and_hold_every_element_once(schema: Schema, chunk_bytes: int, how: Coding) -> None:
    encoding = Encoding(schema, chunk_bytes, how)
    sent, laid_out = 0, []
    for piece in encoding.pieces:
        assert piece.start == sent
        assert piece.segment.numel > 0
        assert piece.segment.stop - piece.segment.start <= max(8, chunk_bytes)
        expected = how.codec.size_bytes(piece.segment.numel) if piece.codec is not None and how.codec is not None else None
        assert piece.size_bytes == (expected or piece.segment.stop - piece.segment.start)
        sent = piece.stop
        laid_out += list(range(piece.segment.start, piece.segment.stop))
    assert sent == encoding.size_bytes
    assert laid_out == list(range(schema.size_bytes))


@settings(max_examples=50)
@given(coded_tensors, chunk_sizes, codings)
def test_only_what_is_lossy_is_changed(tensors: Tensors, chunk_bytes: int, how: Coding) -> None:
    """Buffers, integers and bools come back with every bit, wherever their bytes begin."""
    found = decoded(tensors, chunk_bytes, how)
    assert found.schema == tensors.schema
    assert found.is_finite()
    for spec in tensors.schema.specs:
        if not spec.lossy:
            assert found[spec.name].reshape(-1).view(torch.uint8).equal(tensors[spec.name].reshape(-1).view(torch.uint8))


@settings(max_examples=50)
@given(coded_tensors, chunk_sizes, codings)
def test_each_piece_holds_the_code_of_its_elements_with_its_own_seed(tensors: Tensors, chunk_bytes: int, how: Coding) -> None:
    encoding = Encoding(tensors.schema, chunk_bytes, how)
    encoded = encoding.encode(tensors)
    for piece in encoding.pieces:
        elements = tensors.elements(piece.segment)
        code = encoded.block[piece.start : piece.stop]
        by_hand = piece.codec.encode(elements.float(), piece.seed) if piece.codec is not None else elements.view(torch.uint8)
        assert code.equal(by_hand)
    seeds = [piece.seed for piece in encoding.pieces]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_models_of_all_dtypes_come_back_near(name: str, chunk_bytes: int) -> None:
    model = filled(MIXED, 3)
    encoded = Encoding(MIXED, chunk_bytes, coding(name)).encode(model)
    found = encoded.decode()
    assert encoded.block.shape == (encoded.size_bytes,)
    assert found["nothing"].shape == (0, 4)
    for other in ("mean", "count", "mask"):
        assert found[other].equal(model[other])
    # One bit does not say much of a single element; the others are within what a bit is worth.
    assert relative_error(model, found) < {"fp16": 0.01, "bf16": 0.01, "int8": 0.02, "int4": 0.5}.get(name, 1.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_another_precision_is_coded_in_float32_and_comes_back_as_its_own(dtype: torch.dtype) -> None:
    model = filled(Schema([TensorSpec("w", dtype, (999,))]), 5)
    how = coding("eden4")
    encoding = Encoding(model.schema, 1 << 20, how)
    (piece,) = encoding.pieces
    found = encoding.encode(model).decode()
    assert how.codec is not None
    code = how.codec.encode(model["w"].float(), piece.seed)
    assert found["w"].dtype == dtype
    assert found["w"].equal(how.codec.decode(code, 999, piece.seed).to(dtype))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schema", [Schema([]), Schema([TensorSpec("w", torch.float32, (0,))])])
def test_nothing_takes_no_bytes(name: str, schema: Schema) -> None:
    encoded = Encoding(schema, 64, coding(name)).encode(Tensors(schema))
    assert (encoded.size_bytes, encoded.encoding.pieces) == (0, ())
    assert encoded.decode().schema == schema


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30])
def test_what_no_receiver_would_take_is_not_encoded(number: float) -> None:
    model = filled(MIXED, 3)
    model["bias"][40] = number
    for name in NAMES:
        with pytest.raises(ValueError, match="cannot encode"):
            Encoding(MIXED, 1024, coding(name)).encode(model)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_another_code_where_the_codec_draws(name: str) -> None:
    model = filled(MIXED, 3)
    codes = [Encoding(MIXED, 1024, coding(name, seed)).encode(model).block for seed in (1, 2, 1)]
    assert codes[0].equal(codes[2])
    assert codes[0].equal(codes[1]) is (name in ("fp16", "bf16"))


def test_equal_chunks_of_one_payload_are_coded_differently() -> None:
    """Or the errors of all chunks would add up instead of averaging out."""
    schema = Schema([TensorSpec("w", torch.float32, (512,))])
    model = Tensors(schema)
    model["w"].copy_(torch.arange(256).repeat(2))
    first, second = torch.split(decoded(model, 1024, coding("eden1"))["w"], 256)
    assert not first.equal(second)


def test_a_seed_depends_on_every_part_of_its_key_and_on_their_order() -> None:
    keys: list[tuple[object, ...]] = [(1, "a", 2), (1, "a", 3), (2, "a", 1), ("a", 1, 2), (1, "b", 2), (0, 1, "a", 2), (1, "a")]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    digest = hashlib.sha256(b"1/a/2").digest()
    assert seeds[0] == int.from_bytes(digest[:8], "little") // 2  # the same in any process, on any machine


def test_the_relative_error_by_hand() -> None:
    schema = Schema(
        [
            TensorSpec("w", torch.float32, (2,)),
            TensorSpec("d", torch.float64, (1,)),
            TensorSpec("mean", torch.float32, (1,), trainable=False),
        ]
    )
    tensors = Tensors.copy_of(schema, {"w": torch.tensor([3.0, 0.0]), "d": torch.tensor([4.0]).double(), "mean": torch.tensor([100.0])})
    other = tensors.replace({"w": torch.tensor([3.0, 0.5])})
    assert relative_error(tensors, other) == 0.1
    assert relative_error(tensors, tensors) == 0.0
    assert relative_error(Tensors(schema), other) == 0.0  # there was nothing to lose
    assert relative_error(tensors, tensors.replace({"mean": torch.tensor([0.0])})) == 0.0


def test_an_encoding_without_a_codec_has_no_name_and_no_seed() -> None:
    assert (UNCODED.name, UNCODED.seed) == ("", 0)
    assert coding("int4").name == "int4"
