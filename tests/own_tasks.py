"""Data, networks and a task of users' own, of every kind that is not one class of an image, as `data.name = "own_tasks:NAME"`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from feddkd.structures import Structure
from feddkd.tasks.base import LearningTask, Shapes

LENGTH, WORDS, SIZE = 6, 11, 8


def generator(train: bool) -> torch.Generator:
    return torch.Generator().manual_seed(int(train))


def count(train: bool) -> int:
    return 90 if train else 30


def tokens(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    """The next token is this one plus the first one."""
    first, steps = torch.randint(WORDS, (count(train), 1), generator=generator(train)), torch.arange(1, LENGTH + 2)
    sequence = first * steps % WORDS
    return sequence[:, :-1], sequence[:, 1:]


class Transformer(nn.Module):
    def __init__(self, length: int, words: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, 16), nn.Parameter(0.1 * torch.randn(length, 16))
        self.layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, dropout=0.1, batch_first=True, norm_first=True)
        self.out = nn.Linear(16, words)

    def forward(self, x: Tensor) -> Tensor:
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        logits: Tensor = self.out(self.layer(self.words(x) + self.places, src_mask=later))
        return logits.movedim(-1, 1)


def transformer(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Transformer(shape[0], classes)


class Images(Dataset[dict[str, Any]]):
    """Bright pixels are of class 1; the first row is void, and some training images have no mask."""

    def __init__(self, train: bool) -> None:
        self.train = train
        self.images = torch.rand(count(train), 1, SIZE, SIZE, generator=generator(train))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = (self.images[index, 0] > 0.6).long()
        mask[0] = 255
        return {"image": self.images[index], "mask": None if self.train and index % 5 == 0 else mask}


def images(root: Path | None, train: bool) -> Images:
    return Images(train)


def pixels(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(shape[0], 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))


def table(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count(train), 5, generator=generator(train))
    return inputs, inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])


class Stream(IterableDataset[tuple[Tensor, float]]):
    """The rows of `table` in a random order."""

    def __init__(self, train: bool) -> None:
        self.train = train

    def __iter__(self) -> Iterator[tuple[Tensor, float]]:
        inputs, targets = table(None, self.train)
        for place in torch.randperm(len(inputs)).tolist():
            yield inputs[place], float(targets[place])


def stream(root: Path | None, train: bool) -> Stream:
    return Stream(train)


class Augmented(Images):
    """Flips an image together with its mask, at random."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        if not self.train or torch.rand(()) < 0.5:
            return row
        return {key: None if value is None else value.flip(-1) for key, value in row.items()}


def augmented(root: Path | None, train: bool) -> Augmented:
    return Augmented(train)


def numbers(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Linear(8, outputs))


def labels(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(count(train), 5, generator=generator(train))
    return inputs, (inputs[:, :3] > 0).long().masked_fill(inputs[:, 3:4] > 1, -1 if train else 0)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two things that are compared."""

    left: Tensor
    right: Tensor


class Pairs(Dataset[dict[str, Any]]):
    """Whether two points lie on the same side, and how far they are from each other."""

    def __init__(self, train: bool) -> None:
        self.points = torch.randn(count(train), 2, 3, generator=generator(train))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        left, right = self.points[index]
        return {"left": left, "right": right, "same": int(left[0] * right[0] > 0), "distance": float((left - right).norm())}


def pairs(root: Path | None, train: bool) -> Pairs:
    return Pairs(train)


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.same, self.distance = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, pair: Pair) -> dict[str, Tensor]:
        between = torch.relu(self.tower(pair.left)) * torch.relu(self.tower(pair.right))
        return {"same": self.same(between), "distance": self.distance(between).squeeze(1)}


def two_towers(shape: tuple[int, ...], outputs: int) -> nn.Module:
    return TwoTowers()


class Comparison(LearningTask[Any]):
    """Inputs are a dataclass, outputs and targets dicts."""

    def split(self, row: Any) -> tuple[Pair, Structure]:
        return Pair(row["left"], row["right"]), {"same": row["same"], "distance": row["distance"]}

    def target(self, raw: Any) -> dict[str, Tensor]:
        return {"same": torch.tensor(raw["same"]), "distance": torch.tensor(raw["distance"])}

    def trial_batch(self, shapes: Shapes, dtype: torch.dtype, size: int) -> tuple[Pair, dict[str, Tensor]]:
        points = torch.rand(size, 3, generator=torch.Generator().manual_seed(0))
        return Pair(points, 1 - points), {"same": torch.arange(size) % 2, "distance": torch.ones(size)}

    def loss(self, outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(outputs["same"], targets["same"]) + F.mse_loss(outputs["distance"], targets["distance"])

    def divergence(self, teacher: dict[str, Tensor], student: dict[str, Tensor]) -> Tensor:
        followed = F.kl_div(student["same"].log_softmax(1), teacher["same"].log_softmax(1), reduction="batchmean", log_target=True)
        return followed + F.mse_loss(student["distance"], teacher["distance"])


def own_distance(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """A divergence of numbers of one's own."""
    return (teacher - student).abs().mean() / temperature
