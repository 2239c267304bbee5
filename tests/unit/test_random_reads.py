"""Data sets that augment at random: a run can be repeated, and teacher and student see the same view."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from feddkd.config import Config
from feddkd.data.examples import Reading, StreamedExamples
from feddkd.data.seeding import generator_states, reads_for
from feddkd.engines.simulation import prepare, run_federation

OWN = np.random.default_rng(0)

NOISE: dict[str, Any] = {
    "torch": lambda: torch.randn(8),
    "numpy": lambda: torch.from_numpy(np.random.standard_normal(8)),
    "random": lambda: torch.tensor([random.gauss() for _ in range(8)]),
}


class Noisy:
    """Two classes; training examples get noise from one generator, of one class only where that is said."""

    def __init__(self, source: str, train: bool, only: int | None = None, count: int = 120) -> None:
        self.source, self.train, self.only, self.count = source, train, only, count
        self.x = torch.randn(count, 8, generator=torch.Generator().manual_seed(int(train)))
        self.x[1::2] += 1
        self.targets = [index % 2 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not self.train or self.only not in (None, index % 2):
            return self.x[index], index % 2
        return self.x[index] + NOISE[self.source]().float(), index % 2


def torch_noise(root: Path | None, train: bool) -> Noisy:
    return Noisy("torch", train)


def numpy_noise(root: Path | None, train: bool) -> Noisy:
    return Noisy("numpy", train)


def random_noise(root: Path | None, train: bool) -> Noisy:
    return Noisy("random", train, only=1)


def config(source: str, **tables: Any) -> Config:
    return Config.parse(
        {
            "rounds": 2,
            "data": {"name": f"{__name__}:{source}_noise", "input_shape": [8], "num_classes": 2, **tables.get("data", {})},
            "partition": {"name": "iid", "clients": 2},
            "training": {"epochs": 2},
            "dkd": {"steps": 2, **tables.get("dkd", {})},
            **{name: table for name, table in tables.items() if name not in ("data", "dkd")},
        }
    )


@pytest.mark.parametrize(
    ("source", "tables"),
    [
        ("torch", {}),
        ("numpy", {"dkd": {"start": "previous"}}),
        ("random", {"algorithm": {"name": "fedntd"}}),
        ("torch", {"algorithm": {"name": "moon"}}),
        ("numpy", {"data": {"labelled_share": 0.5}, "algorithm": {"name": "semifl"}}),
        ("random", {"algorithm": {"name": "fedavg"}, "dkd": {"piggyback": True, "steps": 20}}),
    ],
    ids=["feddkd", "previous", "fedntd", "moon", "semifl", "piggyback"],
)
def test_equal_configurations_give_equal_models(source: str, tables: dict[str, Any], tmp_path: Path) -> None:
    hashes = set()
    for attempt in range(2):
        torch.manual_seed(attempt)  # what else draws does not count
        np.random.seed(attempt)
        random.seed(attempt)
        record = run_federation(config(source, **tables), "in-process", tmp_path / str(attempt))
        hashes.add(record.model.sha256())
    assert len(hashes) == 1


def test_both_engines_read_the_same_views(tmp_path: Path) -> None:
    settings = config("numpy", runtime={"client_processes": 1})
    hashes = {run_federation(settings, engine, tmp_path / engine).model.sha256() for engine in ("in-process", "grpc")}
    assert len(hashes) == 1


@pytest.mark.parametrize("keys", [{"start": "average"}, {"start": "average", "batch_size": 0}])
def test_teacher_and_student_of_a_step_see_the_same_view(keys: dict[str, Any], tmp_path: Path) -> None:
    settings = config("torch", dkd={"hard_label_weight": 0, "steps": 1, **keys}, rounds=1, partition={"name": "iid", "clients": 1})
    losses: list[float] = []
    from feddkd.scheduler.records import ExchangeRecord, Observer

    class Losses(Observer):
        def exchange_done(self, record: ExchangeRecord) -> None:
            if record.id.name == "dkd_step" and record.loss is not None:
                losses.append(record.loss)

    run_federation(settings, "in-process", tmp_path, [Losses()])
    assert losses == [pytest.approx(0, abs=1e-6)]


def examples(source: str, workers: int = 0, **keys: Any) -> StreamedExamples:
    noisy = Noisy(source, True, **keys)
    found = StreamedExamples(noisy, torch.tensor(noisy.targets), Reading(workers=workers))
    found.reader.probe([0, 1])
    return found


def views(of: StreamedExamples, key: str) -> Tensor:
    with reads_for(key):
        return torch.cat([inputs for _, inputs, _ in of.batches(torch.arange(6), 4)])


@pytest.mark.parametrize("source", NOISE)
def test_views_depend_on_the_key_the_pass_and_the_example_alone(source: str) -> None:
    found = examples(source)
    assert found.is_random
    first = views(found, "a")
    torch.manual_seed(99)
    assert torch.equal(views(found, "a"), first)
    assert not torch.equal(views(found, "b"), first)
    with reads_for("a"):
        passes = [torch.cat([x for _, x, _ in found.batches(torch.arange(6), 2)]) for _ in range(2)]
    assert torch.equal(passes[0], first)
    assert not torch.equal(passes[0], passes[1])
    with reads_for("a"):
        (_, reversed_order, _), *_ = found.batches(torch.arange(5, -1, -1), 6)
    assert torch.equal(reversed_order.flip(0), first)


def test_loader_processes_read_the_same_views() -> None:
    assert torch.equal(views(examples("numpy", workers=1), "a"), views(examples("numpy"), "a"))


@pytest.mark.parametrize("source", NOISE)
def test_a_read_leaves_the_generators_as_they_were(source: str) -> None:
    found = examples(source)
    before = generator_states()
    views(found, "a")
    found.gather(torch.tensor([1]))
    assert generator_states() == before


def test_the_noise_of_one_class_alone_is_found() -> None:
    assert prepare(config("random")).class_counts  # loads
    from feddkd.data.datasets import load_test, load_train

    assert load_train(config("random").data, 0).is_random
    assert not load_test(config("random").data).is_random
    assert not load_train(Config.parse({}).data, 0).is_random


class OwnGenerator(Noisy):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index] + float(OWN.standard_normal()), index % 2


def own_noise(root: Path | None, train: bool) -> OwnGenerator:
    return OwnGenerator("torch", train)


def test_noise_that_no_seed_reaches_is_told(caplog: pytest.LogCaptureFixture) -> None:
    from feddkd.data.datasets import load_train

    load_train(config("own").data, 0)
    assert any("no run can be repeated" in line.getMessage() and line.levelname == "WARNING" for line in caplog.records)
