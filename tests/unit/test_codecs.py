"""What every codec keeps to: sizes, seeds, ranges, portability, and what it refuses."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import with_every_number_of_threads
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from feddkd.compression.checks import LARGEST_NORM
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.errors import ConfigError, SchemaError
from feddkd.transport import payload

# The largest share of the squared norm that an error takes, for whatever vector.
WORST_ERROR = {"fp16": 1e-6, "bf16": 2e-5, "int8": 0.02, "int4": 6.0, "eden1": 1.5, "eden2": 0.6, "eden3": 0.3, "eden4": 0.1}
WORST_ERROR |= {"topk:0.01": 1.0, "topk:0.25": 1.0, "randk:0.01": 1.0, "randk:0.25": 1.0}
NAMES = list(WORST_ERROR)
# The first half of the SHA-256 of what `arbitrary_code` decodes to.
DECODED = {
    "fp16": "9d196cbd09b12d00",
    "bf16": "9ac21b96e56afd9d",
    "int8": "1fbd4f8070fc542a",
    "int4": "abe787b969a99db6",
    "eden1": "a7dbf16ef7f07089",
    "eden2": "498ebcce91c92a86",
    "eden3": "d91cf0c924a60f4a",
    "eden4": "b1f7fcd6025f1c1a",
    "topk:0.01": "79308323c23b071a",
    "topk:0.25": "f93cedcb8b1ce72c",
    "randk:0.01": "eb24c75e2c6b8391",
    "randk:0.25": "3d28afa87baca128",
}
# Those that are the same for both directions once.
CODECS = {f"{name}-{use}": find(name, unbiased=use == "up") for name in NAMES for use in ("down", "up")}
CODECS = {key: codec for key, codec in CODECS.items() if key.endswith("up") or codec != CODECS[f"{codec.name}-up"]}

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
few_examples = settings(max_examples=15)
sizes = st.one_of(st.integers(1, 300), st.integers(1, 10_000))
seeds = st.integers(0, 2**63 - 1)


def gaussian(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed % 2**32))


def error_share(codec: Codec, vector: Tensor, seed: int) -> float:
    decoded = codec.decode(codec.encode(vector, seed), len(vector), seed)
    assert decoded.dtype == torch.float32
    wide = vector.double()
    return float((decoded.double() - wide).square().sum() / wide.square().sum())


def test_the_limit_on_norms_is_the_transports() -> None:
    assert LARGEST_NORM == payload.LARGEST_NORM


def test_an_unknown_codec_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r'"int9".*bf16.*eden1.*eden4.*int4.*topk:SHARE'):
        find("int9", unbiased=True)


@pytest.mark.parametrize("share", ["", "0", "-0.1", "0.2501", "nan", "inf", "much", "1e-400"])
@pytest.mark.parametrize("kind", ["topk", "randk"])
def test_a_share_that_is_out_of_range_is_refused(kind: str, share: str) -> None:
    with pytest.raises(ConfigError, match=f'"{kind}:{share}".*up to 0.25'):
        find(f"{kind}:{share}", unbiased=True)


def test_a_codec_bears_the_name_it_was_found_by() -> None:
    assert [find(name, unbiased=True).name for name in NAMES] == NAMES


def test_what_leaves_elements_out_asks_for_error_feedback() -> None:
    assert [name for name in NAMES if find(name, unbiased=True).error_feedback] == [n for n in NAMES if "k:" in n]


@every_codec
@few_examples
@given(size=sizes, seed=seeds)
def test_a_vector_comes_back_from_a_code_of_the_size_known_beforehand(codec: Codec, size: int, seed: int) -> None:
    vector = gaussian(size, seed)
    before = vector.clone()
    code = codec.encode(vector, seed)
    assert (code.dtype, code.shape) == (torch.uint8, (codec.size_bytes(size),))
    codec.check(code, size)
    assert torch.equal(vector, before)
    assert torch.equal(codec.encode(vector, seed), code)
    assert error_share(codec, vector, seed) <= WORST_ERROR[codec.name]


@every_codec
@pytest.mark.parametrize("size", [1, 63, 4096, 10_000])
def test_zeros_come_back_as_zeros(codec: Codec, size: int) -> None:
    zeros = torch.zeros(size)
    assert torch.equal(codec.decode(codec.encode(zeros, 7), size, 7), zeros)


@every_codec
@pytest.mark.parametrize("magnitude", [1e13, 1e-20, 1e-30])
@pytest.mark.parametrize("size", [1, 5000])
def test_the_scale_of_a_vector_does_not_matter(codec: Codec, magnitude: float, size: int) -> None:
    assert error_share(codec, gaussian(size, 3) * magnitude, 5) <= WORST_ERROR[codec.name]


@every_codec
@few_examples
@given(size=st.integers(1, 200), exponent=st.integers(-149, -90), seed=seeds)
def test_the_tiniest_numbers_decode_to_something_no_larger(codec: Codec, size: int, exponent: int, seed: int) -> None:
    vector = gaussian(size, seed).sign() * 2.0**exponent
    decoded = codec.decode(codec.encode(vector, seed), size, seed)
    assert float(decoded.double().norm()) <= 3 * float(vector.double().norm())


@every_codec
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30, -3e38])
@pytest.mark.parametrize(("size", "place"), [(1, 0), (300, 299), (10_000, 4100)])
def test_a_vector_that_no_receiver_would_take_is_not_encoded(codec: Codec, number: float, size: int, place: int) -> None:
    vector = gaussian(size, 1)
    vector[place] = number
    with pytest.raises(ValueError, match="cannot encode"):
        codec.encode(vector, 0)


@every_codec
@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_code_of_another_size_is_refused(codec: Codec, size: int) -> None:
    code = codec.encode(gaussian(size, 1), 0)
    for wrong in (code[:-1], torch.cat([code, code[:1]]), code[:0], code.to(torch.int16), code[None]):
        for read in (lambda code: codec.check(code, size), lambda code: codec.decode(code, size, 0)):
            with pytest.raises(SchemaError, match="bytes"):
                read(wrong)


@every_codec
@few_examples
@given(size=st.integers(1, 600), seed=seeds, data=st.data())
def test_whatever_bytes_come_decode_to_a_useful_vector_or_are_refused(codec: Codec, size: int, seed: int, data: st.DataObject) -> None:
    octets = np.random.default_rng(seed % 2**32).integers(0, 256, codec.size_bytes(size), dtype=np.uint8)
    head = data.draw(st.binary(max_size=min(40, len(octets))))
    octets[: len(head)] = np.frombuffer(head, np.uint8)
    code = torch.from_numpy(octets)
    try:
        codec.check(code, size)
    except SchemaError as refused:
        with pytest.raises(SchemaError, match=str(refused).split(":")[0]):
            codec.decode(code, size, seed)
        return
    decoded = codec.decode(code, size, seed)
    assert decoded.shape == (size,)
    assert float(decoded.double().norm()) <= LARGEST_NORM


@every_codec
def test_the_same_bits_whatever_the_number_of_threads(codec: Codec) -> None:
    vector = gaussian(70_003, 4)
    codes = with_every_number_of_threads(lambda: codec.encode(vector, 9))
    assert all(torch.equal(code, codes[0]) for code in codes)
    decoded = with_every_number_of_threads(lambda: codec.decode(codes[0], len(vector), 9))
    assert all(torch.equal(one, decoded[0]) for one in decoded)


def arbitrary_code(codec: Codec, size: int) -> Tensor:
    """Make a valid code with operations that are exact, so that it is the same on every machine."""
    random = np.random.RandomState(12)
    if not codec.name.startswith("eden"):
        # Distinct numbers of few bits, in any order.
        vector = (random.permutation(size).astype(np.float32) + 1) / 4096 * random.choice([-1, 1], size)
        return codec.encode(torch.from_numpy(vector.astype(np.float32)), 6)
    octets = np.frombuffer(random.bytes(codec.size_bytes(size)), np.uint8).copy()
    scales = codec.size_bytes(size) - size // 8 * int(codec.name[-1])
    octets[:scales] = random.uniform(1e-4, 1e-3, scales // 4).astype("<f4").view(np.uint8)
    return torch.from_numpy(octets)


@pytest.mark.parametrize("name", NAMES)
def test_every_machine_decodes_to_these_bits(name: str) -> None:
    """Of 10752 elements: two blocks of 4096, one of 2048 and one of 512."""
    codec = find(name, unbiased=False)
    decoded = codec.decode(arbitrary_code(codec, 10752), 10752, 6)
    assert hashlib.sha256(decoded.numpy().tobytes()).hexdigest()[:16] == DECODED[name]


@every_codec
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_code_may_lie_anywhere_in_a_buffer(codec: Codec, offset: int) -> None:
    code = codec.encode(gaussian(777, 6), 2)
    buffer = torch.zeros(offset + len(code), dtype=torch.uint8)
    buffer[offset:] = code
    assert torch.equal(codec.decode(buffer[offset:], 777, 2), codec.decode(code, 777, 2))


@every_codec
def test_a_receiver_that_flushes_subnormal_numbers_has_the_same_bits(codec: Codec) -> None:
    """Also where all is as small as a code can say."""
    codes = {exponent: codec.encode(gaussian(5000, 8) * 2.0**exponent, 3) for exponent in (-140, -126, -110, -104, -98, 0)}
    plain = {exponent: codec.decode(code, 5000, 3) for exponent, code in codes.items()}
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        flushed = {exponent: codec.decode(code, 5000, 3) for exponent, code in codes.items()}
    finally:
        torch.set_flush_denormal(False)
    assert all(torch.equal(plain[exponent].view(torch.int32), flushed[exponent].view(torch.int32)) for exponent in codes)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "eden1", "eden4", "topk:0.25", "randk:0.25"])
def test_a_chunk_takes_a_small_multiple_of_its_memory(name: str) -> None:
    codec, vector = find(name, unbiased=True), gaussian(1 << 18, 5)
    codec.decode(codec.encode(vector, 3), len(vector), 3)  # a thread keeps some memory for the next call
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        decoded = codec.decode(codec.encode(vector, 3), len(vector), 3)
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    assert decoded.nbytes <= held.max() < 3.5 * vector.nbytes
    assert held[-1] == decoded.nbytes
