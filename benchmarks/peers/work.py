"""Draws the FedAvg work of the simulations, so that all systems do the same in the same order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from feddkd.algorithms.site import exchange_key
from feddkd.config import Config
from feddkd.data.partitions import client_ids, partition
from feddkd.exchange import ExchangeId
from feddkd.scheduler.selection import select_cohort
from peers.drivers.simulation_work import build

CLASSES = 10
IMAGE = (3, 32, 32)


@dataclass(frozen=True, slots=True)
class Shape:
    """How much work there is: `samples` images at each of `clients` clients, of which `cohort` train in each round."""

    clients: int
    cohort: int
    samples: int
    rounds: int

    def settings(self) -> list[str]:
        """Return feddkd's configuration of the work."""
        return [
            *("seed=0", "algorithm.name=fedavg", "partition.name=iid", "data.holdout=0", "data.test_set=false"),
            *("training.epochs=1", "training.batch_size=10", "training.lr=0.1", "training.momentum=0", "training.weight_decay=0"),
            *("data.name=feddkd_work:load", f"data.input_shape={list(IMAGE)}", f"data.num_classes={CLASSES}"),
            *("model.name=feddkd_work:build", "scheduler.durability=none"),
            *(f"partition.clients={self.clients}", f"scheduler.cohort={self.cohort}", f"rounds={self.rounds}"),
        ]


def write_work(path: Path, shape: Shape, data_root: Path | None) -> None:
    """Write the examples, the labels, the initial weights, and the order of every client's examples in every round."""
    examples, labels = _random(shape) if data_root is None else _cifar10(shape, data_root)
    torch.manual_seed(0)
    weights = {f"weight.{name}": tensor.numpy() for name, tensor in build().state_dict().items()}
    np.savez(path, examples=examples.numpy(), labels=labels.numpy(), orders=orders(shape, labels).numpy(), **weights)


def orders(shape: Shape, labels: torch.Tensor) -> torch.Tensor:
    """Return the examples that each client of each round trains on: int64 [rounds, cohort, samples].

    It draws as feddkd's clients do. If they drew otherwise, the check of equal weights would fail.
    """
    config = Config.load(overrides=shape.settings())
    names = client_ids(shape.clients)
    parts = dict(zip(names, partition(config.partition, labels, CLASSES, config.seed), strict=True))
    drawn = []
    for number in range(1, shape.rounds + 1):
        exchange = ExchangeId("", number, 0, "local_train", 0)
        for name in select_cohort(config.scheduler, names, config.seed, number, 0):
            digest = hashlib.sha256(exchange_key(config.seed, exchange, name).encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            torch.randint(2**62, (), generator=generator)  # the seed of dropout and the like
            drawn.append(parts[name][torch.randperm(shape.samples, generator=generator)])
    return torch.stack(drawn).reshape(shape.rounds, shape.cohort, shape.samples)


def _random(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = shape.clients * shape.samples
    return torch.rand(count, *IMAGE, generator=generator) * 2 - 1, torch.randint(CLASSES, (count,), generator=generator)


def _cifar10(shape: Shape, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of CIFAR-10's training split, in [-1, 1]."""
    from torchvision.datasets import CIFAR10

    images = CIFAR10(root, train=True, download=False)
    count = shape.clients * shape.samples
    examples = torch.from_numpy(images.data[:count]).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    return examples.contiguous(), torch.tensor(images.targets[:count])
