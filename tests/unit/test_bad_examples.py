"""Examples that cannot be used are skipped, counted and told; too many of them stop the site."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feddkd.data.bad_examples import MOST_NAMED, BadExamples
from feddkd.data.examples import MemoryExamples, Reading, StreamedExamples
from feddkd.dkd import Distillation, distillation_gradient, mean_entropy, teacher_logits
from feddkd.errors import BadExamplesError, DataError
from feddkd.evaluation import evaluate

CPU = torch.device("cpu")
BAD = {3: "raises", 7: "nan", 8: "shape", 9: "infinite"}


class Damaged:
    """Rows of which some cannot be used, each for a reason of its own; picklable for loader processes."""

    def __init__(self, bad: dict[int, str], count: int = 20) -> None:
        self.bad, self.count = bad, count
        self.paths = [f"/scans/{index}.png" for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        value = torch.full((2,), index / self.count)
        match self.bad.get(index):
            case "raises":
                raise OSError("cut off")
            case "nan":
                value[1] = torch.nan
            case "infinite":
                value[0] = torch.inf
            case "shape":
                value = torch.zeros(3)
        return value, index % 2


def examples(bad: dict[int, str] = BAD, share: float = 0.5, workers: int = 0) -> StreamedExamples:
    reading = Reading("scans", workers=workers, max_bad_share=share)
    return StreamedExamples(Damaged(bad), torch.arange(20) % 2, reading)


def good_ones() -> MemoryExamples:
    kept = [index for index in range(20) if index not in BAD]
    return MemoryExamples(torch.tensor([[index / 20] * 2 for index in kept]), torch.tensor([index % 2 for index in kept]))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_leave_them_out(workers: int) -> None:
    found = examples(workers=workers)
    for _ in range(2):
        index = torch.cat([index for index, _, _ in found.batches(torch.arange(20), 4)])
        assert index.tolist() == [index for index in range(20) if index not in BAD]


def test_each_is_told_once_by_its_file(caplog: pytest.LogCaptureFixture) -> None:
    found = examples()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            list(found.batches(torch.arange(20), 5))
    told = [line.getMessage() for line in caplog.records]
    assert [line.split(" is skipped")[0] for line in told] == [f"scans: /scans/{index}.png" for index in BAD]
    assert "OSError: cut off" in told[0]
    assert "not finite" in told[1]
    assert "[3]" in told[2]
    assert told[-1].endswith("4 of 20")


def test_one_too_many_stops_with_the_file() -> None:
    with pytest.raises(
        BadExamplesError, match=r"scans: cannot use /scans/9\.png .*4 of 20 examples are bad, more than data\.max_bad_share"
    ):
        list(examples(share=0.19).batches(torch.arange(20), 5))


@pytest.mark.parametrize(("share", "total", "accepted"), [(0.0, 100, 0), (0.01, 50, 1), (0.01, 250, 2), (0.5, 9, 4)])
def test_how_many_are_accepted(share: float, total: int, accepted: int) -> None:
    bad = BadExamples("data", total, share)
    for position in range(accepted):
        bad.add(position, "x", "bad")
        bad.add(position, "x", "bad")  # counts once
    with pytest.raises(BadExamplesError):
        bad.add(accepted, "x", "bad")


def test_the_log_names_a_few(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadExamples("data", 1000, 0.5)
    for position in range(3 * MOST_NAMED):
        bad.add(position, f"file {position}", "bad")
    assert len(caplog.records) == MOST_NAMED
    assert caplog.records[-1].getMessage().endswith("further ones are only counted")


def test_what_is_asked_for_by_its_number_is_named() -> None:
    with pytest.raises(DataError, match=r"^cannot use /scans/3\.png \(OSError: cut off\)$"):
        examples().gather(torch.tensor([1, 3]))


def test_evaluation_and_soft_labels_and_gradients_are_those_of_the_good_ones(net: nn.Module) -> None:
    all_of_them, good = examples(), good_ones()
    measured, expected = evaluate(net, all_of_them, CPU, batch_size=3), evaluate(net, good, CPU, batch_size=16)
    assert dataclasses.replace(measured, loss_sum=0.0) == dataclasses.replace(expected, loss_sum=0.0)
    assert measured.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    logits = teacher_logits(net, all_of_them, CPU, batch_size=3)
    assert logits.isnan().any(1).nonzero().flatten().tolist() == list(BAD)
    assert mean_entropy(logits) == pytest.approx(mean_entropy(teacher_logits(net, good, CPU)), rel=1e-6)
    loss = Distillation(hard_label_weight=0.5)
    teacher = teacher_logits(nn.Linear(2, 2), good, CPU)
    widened = torch.full((20, 2), torch.nan)
    widened[[index for index in range(20) if index not in BAD]] = teacher
    found, found_loss = distillation_gradient(net, examples(), widened, torch.arange(20), loss, CPU, batch_size=3)
    of_good, loss_of_good = distillation_gradient(net, good, teacher, torch.arange(16), loss, CPU)
    torch.testing.assert_close(dict(found), dict(of_good), rtol=1e-5, atol=1e-7)
    assert found_loss == pytest.approx(loss_of_good, rel=1e-6)


def test_a_step_without_a_good_example_fails(net: nn.Module) -> None:
    with pytest.raises(DataError, match="none of the 2 examples of a step can be used"):
        distillation_gradient(net, examples(), None, torch.tensor([3, 7]), Distillation(hard_label_weight=1.0), CPU)


def rows(root: Path | None, train: bool) -> Damaged:
    return Damaged({5: "raises"} if train else {})


def test_a_row_whose_label_cannot_be_read_is_left_out_at_the_start() -> None:
    from feddkd.config import Config
    from feddkd.data.datasets import load_train

    train = load_train(Config.parse({"data": {"name": f"{__name__}:rows"}}).data, 0)
    assert len(train) == 19
    assert train.labels.tolist() == [index % 2 for index in range(20) if index != 5]
    assert train.gather(torch.tensor([5]))[0].tolist() == [[pytest.approx(0.3)] * 2]
