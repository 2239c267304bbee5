import math
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import any_tensors, ordinary_tensors, schemas, specs, with_ordinary_values, with_random_bytes
from threads import with_every_number_of_threads
from torch import nn

from feddkd.errors import SchemaError
from feddkd.tensors import DTYPES, Schema, Tensors, TensorSpec

RANK = list(DTYPES.values())


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@given(schemas)
def test_a_schema_puts_wide_types_first_and_aligns_every_tensor(schema: Schema) -> None:
    ranks = [RANK.index(spec.dtype) for spec in schema.specs]
    assert ranks == sorted(ranks)
    assert all(offset % spec.dtype.itemsize == 0 for spec, offset in zip(schema.specs, schema.offsets, strict=False))
    assert schema.size_bytes == sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in schema.specs)


@given(st.lists(specs, max_size=8, unique_by=lambda spec: spec.name))
def test_tensors_of_one_type_keep_the_order_they_were_listed_in(listed: list[TensorSpec]) -> None:
    schema = Schema(listed)
    for dtype in RANK:
        assert [spec for spec in schema.specs if spec.dtype == dtype] == [spec for spec in listed if spec.dtype == dtype]


@given(schemas)
def test_segments_cover_the_layout_and_never_mix_types(schema: Schema) -> None:
    assert [segment.start for segment in schema.segments] == [0, *(segment.stop for segment in schema.segments)][: len(schema.segments)]
    assert sum(segment.stop - segment.start for segment in schema.segments) == schema.size_bytes
    elements: Counter[torch.dtype] = Counter()
    for spec in schema.specs:
        elements[spec.dtype] += spec.numel
    assert {segment.dtype: (segment.stop - segment.start) // segment.dtype.itemsize for segment in schema.segments} == +elements


@given(schemas, st.integers(1, 100))
def test_chunks_cut_segments_at_whole_elements(schema: Schema, chunk_bytes: int) -> None:
    chunks = schema.chunks(chunk_bytes)
    assert sum(chunk.stop - chunk.start for chunk in chunks) == schema.size_bytes
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks)][: len(chunks)]
    for chunk in chunks:
        assert 0 < chunk.stop - chunk.start <= max(8, chunk_bytes)
        assert chunk.start % chunk.dtype.itemsize == chunk.stop % chunk.dtype.itemsize == 0
        assert any(segment.start <= chunk.start < chunk.stop <= segment.stop for segment in schema.segments if segment.dtype == chunk.dtype)


def test_a_schema_refuses_two_tensors_of_one_name() -> None:
    with pytest.raises(SchemaError, match="share a name"):
        Schema([TensorSpec("a", torch.float32, (1,)), TensorSpec("a", torch.int8, (2,))])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, torch.float8_e5m2, torch.qint8])
def test_a_schema_refuses_types_that_cannot_travel(dtype: torch.dtype) -> None:
    with pytest.raises(SchemaError, match=r"'odd' has dtype .* cannot be sent; use one of float64, "):
        Schema([TensorSpec("odd", dtype, (1,))])


def test_a_gradient_has_the_trainable_floating_point_tensors_alone() -> None:
    schema = Schema.of_module(model())
    assert sorted(schema.trainable.by_name) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.bias", "2.weight"]
    assert schema.by_name["1.num_batches_tracked"].dtype == torch.int64
    assert Schema([TensorSpec("count", torch.int64, (), trainable=True)]).trainable.specs == ()


def test_frozen_parameters_take_no_gradient() -> None:
    module = model()
    module.get_parameter("0.weight").requires_grad_(False)
    assert "0.weight" not in Schema.of_module(module).trainable.by_name
    assert "0.weight" in Schema.of_module(module).by_name


def test_tied_parameters_travel_once_and_are_loaded_into_both_places() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert list(Schema.of_module(module).by_name) == ["0.weight", "0.bias", "1.bias"]
    tensors = Tensors.of_module(module)
    tensors["0.weight"].fill_(7)
    tensors.load_into(module)
    assert module.get_parameter("1.weight").tolist() == [[7] * 3] * 3


def test_a_view_of_another_shape_is_not_taken_for_a_tied_tensor() -> None:
    module = nn.Module()
    base = torch.arange(6.0)
    module.register_buffer("whole", base)
    module.register_buffer("part", base[:3])
    module.register_buffer("empty_1", torch.zeros(0))
    module.register_buffer("empty_2", torch.zeros(0))
    assert sorted(Schema.of_module(module).by_name) == ["empty_1", "empty_2", "part", "whole"]


def test_a_model_goes_out_and_comes_back_with_every_bit() -> None:
    source, target = model(), model()
    source(torch.randn(5, 3))  # moves the running statistics and the counter
    Tensors.of_module(source).load_into(target)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)
    assert target.state_dict()["1.num_batches_tracked"].item() == 1


@given(any_tensors)
def test_copies_have_the_same_bytes_and_memory_of_their_own(tensors: Tensors) -> None:
    copy = Tensors.copy_of(tensors.schema, tensors)
    assert copy.sha256() == tensors.sha256()
    copy.block.add_(1)
    if tensors.schema.size_bytes:
        assert copy.sha256() != tensors.sha256()


def test_sources_need_not_be_contiguous() -> None:
    transposed = torch.arange(12.0).view(3, 4).t()
    strided = torch.arange(10)[::3]
    schema = Schema([TensorSpec("t", torch.float32, (4, 3)), TensorSpec("s", torch.int64, (4,))])
    copied = Tensors.copy_of(schema, {"t": transposed, "s": strided})
    assert copied["t"].tolist() == transposed.tolist()
    assert copied["s"].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "tensor 'w' is missing"),
        ({"w": torch.zeros(2, 3, dtype=torch.float64)}, r"tensor w: float64\[2, 3\] where w: float32\[2, 3\] is expected"),
        ({"w": torch.zeros(3, 2)}, r"w: float32\[3, 2\] where"),
        ({"w": torch.zeros(6)}, r"w: float32\[6\] where"),
    ],
)
def test_a_copy_of_the_wrong_tensors_is_refused(source: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Tensors.copy_of(Schema([TensorSpec("w", torch.float32, (2, 3))]), source)


@pytest.mark.parametrize("block", [torch.zeros(3, dtype=torch.uint8), torch.zeros(4), torch.zeros(2, 2, dtype=torch.uint8)])
def test_a_block_of_another_size_or_type_is_refused(block: torch.Tensor) -> None:
    with pytest.raises(SchemaError, match="a block of 4 bytes is expected"):
        Tensors(Schema([TensorSpec("w", torch.float32, ())]), block)


EXACT = [dtype for dtype in RANK if not dtype.is_floating_point]


@given(schemas, st.integers(0, 999), st.integers(0, 999))
def test_integers_and_bools_come_back_exactly_from_a_difference(schema: Schema, seed_before: int, seed_after: int) -> None:
    exact = Schema(spec for spec in schema.specs if spec.dtype in EXACT)
    before, after = with_random_bytes(exact, seed_before), with_random_bytes(exact, seed_after)
    assert (before + (after - before)).sha256() == after.sha256()


@given(schemas, st.integers(0, 999), st.integers(0, 999))
def test_floats_come_back_from_a_difference_up_to_rounding(schema: Schema, seed_before: int, seed_after: int) -> None:
    floats = Schema(spec for spec in schema.specs if spec.dtype not in EXACT)
    before, after = with_ordinary_values(floats, seed_before), with_ordinary_values(floats, seed_after)
    result = before + (after - before)
    for name, tensor in after.items():
        resolution = torch.finfo(tensor.dtype).eps
        torch.testing.assert_close(result[name], tensor, rtol=resolution, atol=200 * resolution)


def test_arithmetic_is_tensor_by_tensor_in_each_type() -> None:
    schema = Schema([TensorSpec("f", torch.float16, (2,)), TensorSpec("i", torch.uint8, (2,)), TensorSpec("b", torch.bool, (4,))])
    first = Tensors.copy_of(
        schema,
        {
            "f": torch.tensor([1.5, -2.0]).half(),
            "i": torch.tensor([250, 3], dtype=torch.uint8),
            "b": torch.tensor([True, True, False, False]),
        },
    )
    second = Tensors.copy_of(
        schema,
        {
            "f": torch.tensor([0.5, 0.25]).half(),
            "i": torch.tensor([10, 4], dtype=torch.uint8),
            "b": torch.tensor([True, False, True, False]),
        },
    )
    total, difference = first + second, first - second
    assert total["f"].tolist() == [2.0, -1.75]
    assert difference["f"].tolist() == [1.0, -2.25]
    assert total["i"].tolist() == [4, 7]  # modulo 256
    assert difference["i"].tolist() == [240, 255]
    assert total["b"].tolist() == difference["b"].tolist() == [False, True, True, False]


@given(any_tensors, any_tensors)
def test_tensors_of_two_schemas_do_not_add(first: Tensors, second: Tensors) -> None:
    layouts = [[(spec.name, spec.dtype, spec.shape) for spec in tensors.schema.specs] for tensors in (first, second)]
    if layouts[0] == layouts[1]:
        assert (first + second).schema == first.schema
    else:
        with pytest.raises(SchemaError):
            first + second


@given(any_tensors, st.data())
def test_a_selection_copies_the_named_tensors_and_replacing_puts_them_back(tensors: Tensors, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(tensors.schema.specs), unique=True)) if len(tensors) else []
    part = tensors.select(Schema(chosen))
    assert sorted(part) == sorted(spec.name for spec in chosen)
    other = with_random_bytes(tensors.schema, 5)
    merged = other.replace(part)
    for name in tensors:
        source = tensors if name in part else other
        assert (
            merged[name].contiguous().view(-1).view(torch.uint8).tolist() == source[name].contiguous().view(-1).view(torch.uint8).tolist()
        )


def test_replacing_leaves_the_original_alone() -> None:
    schema = Schema([TensorSpec("w", torch.float32, (2,))])
    original = Tensors(schema)
    assert original.replace({"w": torch.ones(2)})["w"].tolist() == [1, 1]
    assert original["w"].tolist() == [0, 0]


def test_selecting_or_replacing_what_is_not_there_is_refused() -> None:
    tensors = Tensors(Schema([TensorSpec("w", torch.float32, (2,))]))
    with pytest.raises(SchemaError, match="'v' is missing"):
        tensors.select(Schema([TensorSpec("v", torch.float32, (2,))]))
    with pytest.raises(SchemaError, match="'v' is not expected"):
        tensors.replace({"v": torch.zeros(2)})
    for other in (torch.zeros(3), torch.zeros(1), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(SchemaError, match=r"w: .* where w: float32"):
            tensors.replace({"w": other})


@given(any_tensors, any_tensors, any_tensors)
def test_vectors_laid_beside_a_model_come_back_bit_for_bit(model: Tensors, first: Tensors, second: Tensors) -> None:
    joined = model.beside(first=first, second=second)
    assert joined.schema == model.schema.beside({"first": first.schema, "second": second.schema})
    assert joined.schema.size_bytes == model.schema.size_bytes + first.schema.size_bytes + second.schema.size_bytes
    assert joined.select(model.schema).sha256() == model.sha256()
    assert joined.part("first", first.schema).sha256() == first.sha256()
    assert joined.part("second", second.schema).sha256() == second.sha256()
    assert all(spec.extra for name, spec in joined.schema.by_name.items() if name not in model)
    assert joined.schema.trainable == model.schema.trainable


def test_a_module_takes_its_own_tensors_and_leaves_what_lies_beside_them() -> None:
    module = model()
    before = Tensors.of_module(module)
    update = Tensors(before.schema)
    (before - before).beside(control=before).load_into(module)
    assert Tensors.of_module(module).sha256() == update.sha256()


def test_a_part_that_is_not_there_is_refused() -> None:
    tensors = Tensors.of_module(model())
    with pytest.raises(KeyError, match="control/"):
        tensors.part("control", tensors.schema)


@given(ordinary_tensors, st.floats(-4, 4))
def test_scaling_multiplies_every_element(tensors: Tensors, factor: float) -> None:
    floats = tensors.select(Schema(spec for spec in tensors.schema.specs if spec.dtype.is_floating_point))
    before = floats.sha256()
    scaled = floats.scaled(factor)
    assert floats.sha256() == before
    assert scaled.schema == floats.schema
    for name, tensor in floats.items():
        torch.testing.assert_close(scaled[name], tensor * factor)


@given(ordinary_tensors)
def test_the_norm_is_that_of_all_floating_point_elements(tensors: Tensors) -> None:
    values = [value for tensor in tensors.values() if tensor.dtype.is_floating_point for value in tensor.double().flatten().tolist()]
    assert tensors.norm() == pytest.approx(math.sqrt(math.fsum(value * value for value in values)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("numel", [32_767, 50_000, 300_001])
def test_the_norm_of_large_tensors_is_exact_to_float64_with_every_number_of_threads(numel: int, dtype: torch.dtype) -> None:
    tensors = Tensors(Schema([TensorSpec("w", dtype, (numel,)), TensorSpec("v", torch.float64, (numel,))]))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for tensor in tensors.values():
            tensor.copy_(0.01 * torch.randn(numel, generator=generator, dtype=torch.float64))
        expected = math.sqrt(math.fsum(value * value for tensor in tensors.values() for value in tensor.double().tolist()))
        (norm,) = set(with_every_number_of_threads(tensors.norm))
        assert norm == pytest.approx(expected, rel=1e-14)


def test_the_norm_of_fewer_elements_than_torch_splits_is_the_root_of_its_own_sum() -> None:
    for numel in (1, 1_000, 32_767):
        tensors = Tensors(Schema([TensorSpec("w", torch.float32, (numel,))]))
        tensors["w"].copy_(torch.randn(numel, generator=torch.Generator().manual_seed(numel)))
        assert tensors.norm() == math.sqrt(tensors["w"].double().square().sum().item())


def test_a_norm_whose_squares_overflow_is_infinite() -> None:
    tensors = Tensors(Schema([TensorSpec("w", torch.float64, (100_000,))]))
    tensors["w"].fill_(1e154)  # the square of one is finite, their sum is not
    assert tensors.norm() == math.inf
    tensors["w"].fill_(1e200)
    assert tensors.norm() == math.inf
    tensors["w"].zero_()
    tensors["w"][0] = math.sqrt(sys.float_info.max)
    assert tensors.norm() == math.inf  # its square would raise OverflowError
    tensors["w"][0] = 9e153
    assert tensors.norm() ** 2 == pytest.approx(8.1e307)
    tensors["w"][3] = math.nan
    assert math.isnan(tensors.norm())


@given(any_tensors)
def test_the_hash_sees_every_byte(tensors: Tensors) -> None:
    before = tensors.sha256()
    for position in range(tensors.schema.size_bytes):
        tensors.block[position] ^= 1
        assert tensors.sha256() != before
        tensors.block[position] ^= 1
    assert tensors.sha256() == before
