"""What a CUDA device does for a training loop, on a stand-in for `torch.cuda`: order of copies, graphs, and when there is none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_cuda import FakeRuntime
from torch import Tensor, nn

from feddkd.data.examples import MemoryExamples
from feddkd.devices import Cpu, device_for
from feddkd.devices import blocks as blocks_module
from feddkd.devices.cuda import Cuda
from feddkd.devices.graphs import FEWEST_STEPS, WARM_UP, RepeatedStep, say_once
from feddkd.structures import Structure

CPU = torch.device("cpu")
INPUTS = torch.arange(40.0).reshape(10, 4)
EXAMPLES = MemoryExamples(INPUTS, torch.arange(10) % 3)


@pytest.fixture(autouse=True)
def _nothing_was_said() -> Iterator[None]:
    say_once.cache_clear()
    yield
    say_once.cache_clear()


def as_lists(batches: Iterator[Any]) -> list[Any]:
    return [(index.tolist(), inputs.tolist(), targets.tolist()) for index, inputs, targets in batches]


def test_the_cpu_reads_batches_as_they_are() -> None:
    order = torch.tensor([3, 1, 2])
    assert isinstance(device_for(CPU), Cpu)
    assert as_lists(device_for(CPU).batches(EXAMPLES, order, 2)) == as_lists(EXAMPLES.batches(order, 2))


@pytest.mark.parametrize("free", [1 << 20, 0])
@pytest.mark.parametrize("order", [[], [4], [4, 2, 0, 1, 3]])
def test_batches_are_the_same_on_the_device_whether_the_data_fit_or_not(free: int, order: list[int]) -> None:
    part, drawn = EXAMPLES.subset(torch.tensor([9, 0, 3, 2, 7])), torch.tensor(order, dtype=torch.int64)
    found = as_lists(Cuda(CPU, FakeRuntime(free=free)).batches(part, drawn, 2))
    assert found == as_lists(part.batches(drawn, 2))


def test_data_that_fit_are_moved_once_for_all_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    runtime = FakeRuntime()
    device = Cuda(CPU, runtime)
    place = device._residents._place

    def counted(tensor: Tensor) -> Tensor:
        moved.append(tensor.data_ptr())
        return place(tensor)

    monkeypatch.setattr(device._residents, "_place", counted)
    placed = [device._residents.of(EXAMPLES.subset(torch.tensor(rows))) for rows in ([1, 2], [3])]
    assert None not in placed
    assert moved.count(INPUTS.data_ptr()) == 2
    assert len({id(each._placed._inputs) for each in placed}) == 1  # type: ignore[union-attr]
    assert "pin" not in " ".join(runtime.calls)


def test_data_beyond_their_share_of_the_free_memory_come_batch_by_batch() -> None:
    limit = 4 * INPUTS.nbytes
    for free, fits in ((limit, True), (limit - 4, False)):
        device = Cuda(CPU, FakeRuntime(free=free))
        assert (device._residents.of(EXAMPLES) is not None) == fits


def test_the_next_batch_is_copied_before_the_one_at_hand_is_computed_on() -> None:
    runtime = FakeRuntime(free=0)
    for index, _, _ in Cuda(CPU, runtime).batches(EXAMPLES, torch.arange(5), 2):
        runtime.calls.append(f"compute {index.tolist()}")
    copies = "stream 1"
    two, one = ("[2, 4]", "[2]"), ("[1, 4]", "[1]")

    def begin(shapes: tuple[str, str], event: str) -> list[str]:
        return [*(f"pin {shape} on {copies}" for shape in shapes), f"{event} on {copies}"]

    def compute(shapes: tuple[str, str], event: str, index: str) -> list[str]:
        return [f"main waits for {event}", *(f"keep {shape} for main" for shape in shapes), f"compute {index}"]

    assert runtime.calls == [
        *begin(two, "event 2"),
        *begin(two, "event 3"),
        *compute(two, "event 2", "[0, 1]"),
        *begin(one, "event 4"),
        *compute(two, "event 3", "[2, 3]"),
        *compute(one, "event 4", "[4]"),
    ]


def test_the_work_of_a_network_is_ordered_between_that_before_and_that_after() -> None:
    runtime = FakeRuntime()
    device = Cuda(CPU, runtime)
    with device.using(device.new_stream()):
        runtime.calls.append(f"work on {runtime.current().name}")
    assert runtime.calls == ["stream 1 waits for stream main", "work on stream 1", "main waits for stream stream 1"]
    assert runtime.current().name == "main"


@pytest.mark.parametrize("limit", [1 << 20, 16, 1])
def test_a_model_crosses_in_blocks_of_pinned_memory(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "MOST_BYTES", limit)
    runtime = FakeRuntime()
    sources = [torch.arange(3.0), torch.tensor([True]), torch.tensor(7), torch.zeros(0), torch.ones(2, 2, dtype=torch.float64).t()]
    pairs = [(torch.full_like(source, 9), source) for source in sources]
    Cuda(CPU, runtime).transfer(pairs)
    assert all(destination.equal(source) for destination, source in pairs)
    assert sum("host waits" in call for call in runtime.calls) == {1 << 20: 1, 16: 3, 1: 5}[limit]


def test_pinned_memory_is_allocated_again_only_to_grow() -> None:
    runtime = FakeRuntime()
    device = Cuda(CPU, runtime)
    for size in (4, 2, 4, 6):
        device.transfer([(torch.empty(size), torch.ones(size))])
    assert [call for call in runtime.calls if "pinned" in call] == ["pinned 16", "pinned 24"]


class Training:
    """A small network, its optimizer, and one step of it that counts how often Python runs it."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), *options.pop("layers", []), nn.Linear(5, 3))
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.1, **options)
        self.sizes: list[int] = []

    def step(self, index: Tensor, inputs: Structure, targets: Structure) -> Tensor:
        self.sizes.append(len(index))
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.module(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def train(self, step: Any, sizes: list[int]) -> list[float]:
        generator = torch.Generator().manual_seed(1)
        losses = []
        for size in sizes:
            index = torch.arange(size)
            losses.append(float(step(index, torch.randn(size, 4, generator=generator), torch.arange(size) % 3)))
        return losses


SIZES = [8, 8, 8, 8, 8, 3, 8, 8, 3]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}])
def test_a_recorded_step_trains_as_the_step_does_and_a_short_batch_runs_as_it_is(options: dict[str, Any]) -> None:
    eager, repeated, runtime = Training(**options), Training(**options), FakeRuntime()
    expected = eager.train(eager.step, SIZES)
    step = Cuda(CPU, runtime).repeated(repeated.step, FEWEST_STEPS, lambda: None, nullcontext)
    assert repeated.train(step, SIZES) == expected
    found = repeated.module.state_dict()
    assert {name: value.equal(found[name]) for name, value in eager.module.state_dict().items()} == dict.fromkeys(found, True)
    # The fourth step of 8 is recorded; Python runs it then, and none of the later ones.
    assert repeated.sizes == [8] * WARM_UP + [8] + [3, 3]
    assert runtime.calls == ["record"] + ["replay"] * 4


def repeated_on(runtime: FakeRuntime, training: Training) -> RepeatedStep:
    step = Cuda(CPU, runtime).repeated(training.step, FEWEST_STEPS, lambda: None, nullcontext)
    assert isinstance(step, RepeatedStep)
    return step


def test_a_network_that_draws_random_numbers_is_never_recorded(caplog: pytest.LogCaptureFixture) -> None:
    eager, repeated, runtime = (*(Training(layers=[nn.Dropout(0.5)]) for _ in range(2)), FakeRuntime())
    torch.manual_seed(3)
    expected = eager.train(eager.step, SIZES)
    torch.manual_seed(3)
    with caplog.at_level(logging.WARNING, logger="feddkd"):
        assert repeated.train(repeated_on(runtime, repeated), SIZES) == expected
    assert runtime.calls == []
    assert [record.message for record in caplog.records] == [
        "runtime.device: steps of local training run one by one, not as a CUDA graph: "
        "the network draws random numbers in training, as dropout does"
    ]


class ReadsOnTheCpu(nn.Module):
    """Reads a number on the CPU, as a BatchNorm without momentum does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().mean() > -1e9)


@pytest.mark.parametrize("cause", ["read", "cuda"])
def test_what_cannot_be_recorded_runs_as_it_is_and_is_said_once(cause: str, caplog: pytest.LogCaptureFixture) -> None:
    layers = [ReadsOnTheCpu()] if cause == "read" else []
    eager = Training(layers=layers)
    expected = eager.train(eager.step, SIZES)
    with caplog.at_level(logging.WARNING, logger="feddkd"):
        for _ in range(2):
            repeated, runtime = Training(layers=layers), FakeRuntime()
            runtime.fails = None if cause == "read" else RuntimeError("CUDA error: operation failed\nCompile with TORCH_USE_CUDA_DSA")
            assert repeated.train(repeated_on(runtime, repeated), SIZES) == expected
            assert runtime.calls == ["record"]
    (record,) = caplog.records
    why = {"read": "RuntimeError: operation not permitted when stream is capturing", "cuda": "RuntimeError: CUDA error: operation failed"}
    assert record.message.endswith(f"recording one failed with {why[cause]}")


def test_few_steps_and_refused_ones_are_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    training, device = Training(), Cuda(CPU, FakeRuntime())
    assert device.repeated(training.step, FEWEST_STEPS - 1, lambda: "clip_norm", nullcontext) == training.step
    with caplog.at_level(logging.WARNING, logger="feddkd"):
        assert device.repeated(training.step, FEWEST_STEPS, lambda: "clip_norm", nullcontext) == training.step
        assert device.repeated(training.step, FEWEST_STEPS, lambda: "clip_norm", nullcontext) == training.step
    assert len(caplog.records) == 1
