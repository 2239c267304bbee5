import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from feddkd.data.examples import Examples, Loaded, MemoryExamples, Reading, StreamedExamples, labelled_index
from feddkd.data.inputs import as_tensor
from feddkd.data.joined import joined
from feddkd.errors import DataError
from feddkd.tasks.base import UNLABELLED


class Squares:
    """A map-style data set whose example i is the 2x2 matrix of i squared; picklable for loader processes."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2, 2), float(index**2)), index % 3


def labels(n: int) -> Tensor:
    return torch.arange(n) % 3


def memory(n: int) -> MemoryExamples:
    return MemoryExamples(torch.arange(n).square().float().view(n, 1, 1).expand(n, 2, 2), labels(n))


def streamed(n: int) -> StreamedExamples:
    return StreamedExamples(Squares(n), labels(n))


@pytest.fixture(params=[memory, streamed])
def ten(request: pytest.FixtureRequest) -> Examples:
    examples: Examples = request.param(10)
    return examples


def test_gather_reads_in_the_order_asked_for(ten: Examples) -> None:
    x, y = ten.gather(torch.tensor([7, 0, 7]))
    assert x.dtype == torch.float32
    assert x[:, 0, 0].tolist() == [49.0, 0.0, 49.0]
    assert x.shape == (3, 2, 2)
    assert y.tolist() == [1, 0, 1]
    assert y.dtype == torch.int64


def test_batches_are_consecutive_pieces_of_the_order(ten: Examples) -> None:
    order = torch.tensor([9, 1, 5, 3, 2])
    pieces = list(ten.batches(order, 2))
    assert [index.tolist() for index, _, _ in pieces] == [[9, 1], [5, 3], [2]]
    for index, x, y in pieces:
        expected_x, expected_y = ten.gather(index)
        assert torch.equal(x, expected_x)
        assert torch.equal(y, expected_y)


def test_no_order_gives_no_batches(ten: Examples) -> None:
    assert list(ten.batches(torch.tensor([], dtype=torch.int64), 4)) == []


def test_a_subset_is_renumbered_and_can_be_cut_again(ten: Examples) -> None:
    part = ten.subset(torch.tensor([8, 2, 4]))
    assert len(part) == 3
    assert part.labels.tolist() == [2, 2, 1]
    assert part.gather(torch.tensor([0, 2]))[0][:, 0, 0].tolist() == [64.0, 16.0]
    again = part.subset(torch.tensor([2]))
    assert [(index.tolist(), x[0, 0, 0].item(), y.tolist()) for index, x, y in again.batches(torch.tensor([0]), 5)] == [([0], 16.0, [1])]
    assert len(ten) == 10


def test_subsets_in_memory_share_the_inputs_until_they_are_compacted() -> None:
    whole = MemoryExamples(torch.zeros(10, 2, 2), labels(10))
    part = whole.subset(torch.tensor([7, 3])).subset(torch.tensor([1]))
    whole.inputs[3] = 77.0
    assert part.gather(torch.tensor([0]))[0].flatten().tolist() == [77.0] * 4
    own = part.compact()
    whole.inputs[3] = 5.0
    assert own.gather(torch.tensor([0]))[0].flatten().tolist() == [77.0] * 4
    assert own.labels.tolist() == part.labels.tolist() == [whole.labels[3].item()]
    assert own.inputs.untyped_storage().nbytes() == 4 * 4


def test_what_is_no_subset_is_compact_already(ten: Examples) -> None:
    assert ten.compact() is ten


def test_a_subset_shows_its_own_inputs_in_its_own_order() -> None:
    part = memory(10).subset(torch.tensor([8, 2]))
    assert part.inputs[:, 0, 0].tolist() == [64.0, 4.0]


def test_other_labels_leave_the_inputs_and_the_original_alone(ten: Examples) -> None:
    part = ten.subset(torch.tensor([8, 2, 4]))
    before = part.labels.clone()
    other = part.with_labels(torch.tensor([5, UNLABELLED, 6]))
    x, y = other.gather(torch.tensor([2, 1]))
    assert x[:, 0, 0].tolist() == [16.0, 4.0]
    assert y.tolist() == [6, UNLABELLED]
    assert torch.equal(part.labels, before)
    for again in (other.compact(), other.subset(torch.tensor([0, 1, 2]))):
        assert again.labels.tolist() == [5, UNLABELLED, 6]
        assert [(x[:, 0, 0].tolist(), y.tolist()) for _, x, y in again.batches(torch.tensor([1, 0]), 2)] == [([4.0, 64.0], [UNLABELLED, 5])]


def test_other_labels_share_the_memory_of_the_inputs() -> None:
    whole = memory(10)
    other = whole.with_labels(torch.full((10,), UNLABELLED))
    assert other.inputs.data_ptr() == whole.inputs.data_ptr()


def test_the_labelled_index_finds_the_examples_that_have_a_label(ten: Examples) -> None:
    assert labelled_index(ten).tolist() == list(range(10))
    some = ten.with_labels(torch.tensor([UNLABELLED, 0, 1] * 3 + [UNLABELLED]))
    assert labelled_index(some).tolist() == [1, 2, 4, 5, 7, 8]
    assert labelled_index(some).dtype == torch.int64
    assert labelled_index(ten.with_labels(torch.full((10,), UNLABELLED))).shape == (0,)


def images(n: int) -> MemoryExamples:
    """Bytes of the value 51, which is 0.2 when scaled, without labels."""
    return MemoryExamples(torch.full((n, 2, 2), 51, dtype=torch.uint8), torch.full((n,), UNLABELLED))


@pytest.mark.parametrize("first", [memory, streamed])
@pytest.mark.parametrize("second", [memory, streamed, images])
def test_joined_examples_are_both_in_order(first: Callable[[int], Loaded], second: Callable[[int], Loaded]) -> None:
    one, two = first(4), second(3)
    both = joined(one, two, Reading())
    assert both.labels.tolist() == [*one.labels.tolist(), *two.labels.tolist()]
    x, _ = both.gather(torch.tensor([6, 1, 5, 3]))
    expected = torch.cat([two.gather(torch.tensor([2]))[0], one.gather(torch.tensor([1]))[0]])
    assert torch.equal(x[:2], expected)
    assert torch.equal(x[3], one.gather(torch.tensor([3]))[0][0])
    assert x.dtype == torch.float32
    part = both.subset(torch.tensor([5, 0]))
    ((_, inputs, labels),) = part.batches(torch.tensor([0, 1]), 2)
    assert torch.equal(inputs[0], two.gather(torch.tensor([1]))[0][0])
    assert labels.tolist() == [two.labels[1], one.labels[0]]


def test_what_is_joined_stays_in_memory_where_it_can() -> None:
    assert isinstance(joined(memory(2), memory(3), Reading()), MemoryExamples)
    bytes_alone = joined(images(2), images(3), Reading())
    assert isinstance(bytes_alone, MemoryExamples)
    assert bytes_alone.inputs.dtype == torch.uint8
    for first, second in ((memory(2), images(3)), (memory(2), streamed(3)), (streamed(2), images(3))):
        assert isinstance(joined(first, second, Reading()), StreamedExamples)


def test_loader_processes_read_joined_examples() -> None:
    alone, loaded = (joined(streamed(5), images(4), Reading(workers=workers)) for workers in (0, 1))
    order = torch.tensor([8, 0, 5, 4, 3])
    for expected, found in zip(alone.batches(order, 3), loaded.batches(order, 3), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    del loaded
    gc.collect()  # ends the loader process inside this test


def test_images_stay_uint8_in_memory_and_are_scaled_as_torchvision_does() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    examples = MemoryExamples(images, torch.zeros(256, dtype=torch.int64))
    assert examples.inputs.dtype == torch.uint8
    x, _ = examples.gather(torch.arange(256))
    assert torch.equal(x, torch.arange(256).float().div(255).view(256, 1, 1, 1))
    assert torch.equal(examples.inputs, images)


def test_gathered_floats_are_a_copy() -> None:
    examples = memory(4)
    examples.gather(torch.arange(4))[0].zero_()
    assert examples.gather(torch.tensor([3]))[0][0, 0, 0] == 9.0


def test_double_precision_becomes_single() -> None:
    examples = MemoryExamples(torch.ones(2, 3, dtype=torch.float64), labels(2))
    assert examples.gather(torch.tensor([0]))[0].dtype == torch.float32


def test_loader_processes_give_the_same_batches_and_leave_the_global_seed_alone() -> None:
    alone, loaded = StreamedExamples(Squares(12), labels(12)), StreamedExamples(Squares(12), labels(12), Reading(workers=2))
    state = torch.random.get_rng_state()
    part = torch.tensor([11, 3, 5, 0, 7])
    for order in (torch.tensor([4, 3, 0, 2, 1]), torch.tensor([2, 1])):
        expected = list(alone.subset(part).batches(order, 2))
        found = list(loaded.subset(part).batches(order, 2))
        assert [[part.tolist() for part in batch] for batch in found] == [[part.tolist() for part in batch] for batch in expected]
    assert torch.equal(torch.random.get_rng_state(), state)

    # A pass that was given up half way does not leak into the next one; one that was overtaken says so.
    overtaken = loaded.batches(torch.arange(12), 2)
    assert next(overtaken)[0].tolist() == [0, 1]
    assert [index.tolist() for index, _, _ in loaded.batches(torch.tensor([6, 5]), 1)] == [[6], [5]]
    with pytest.raises(RuntimeError, match="second pass"):
        next(overtaken)
    del loaded, overtaken
    gc.collect()  # ends the loader processes inside this test


def test_as_tensor_takes_arrays_that_are_read_only_strided_or_lists(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    array.setflags(write=False)
    assert as_tensor(array).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert as_tensor([1, 2]).dtype == torch.int64
    assert as_tensor(torch.ones(1, requires_grad=True)).requires_grad is False


@pytest.mark.parametrize("values", [[[1], [1, 2]], ["a", "b"], [object()]])
def test_as_tensor_refuses_what_is_not_numbers_of_one_shape(values: object) -> None:
    with pytest.raises(DataError, match="numbers of one shape"):
        as_tensor(values)
