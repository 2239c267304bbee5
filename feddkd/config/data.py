"""Defines the tables `[data]` and `[partition]`: the data set, and how a simulation splits it among clients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from feddkd.config.data_keys import Scale, ToldNames
from feddkd.config.home import expanded
from feddkd.config.table import CLIENTS_MAX, COUNT_MAX, PROCESSES_MAX, ImportPath, Table, writable_path

CLASSES_MAX = 1_000_000

ELEMENTS_MAX = 1 << 28
"""Elements of one example: a volume of 512 x 512 x 512 has half as many."""


class DataConfig(Table):
    """The data set and its labels."""

    name: (
        Literal[
            "digits",
            "mnist",
            "fashion_mnist",
            "emnist",
            "cifar10",
            "cifar100",
            "svhn",
            "image_folder",
        ]
        | ImportPath
    ) = Field("digits", description="a built-in data set, or package.module:function for your own")
    root: Path | None = Field(None, strict=False, description="folder of the data set's files (not needed for digits)")
    subset: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="number of training examples to use, from a seeded shuffle; default: all",
    )
    holdout: float = Field(0.1, ge=0, lt=1, description="share of its examples that each client holds out for evaluation")
    test_set: bool = Field(True, description="whether the server evaluates every round on the data set's test split")
    input_shape: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=COUNT_MAX, strict=True)], ...],
            Field(max_length=8, fail_fast=True, strict=False),
        ]
        | None
    ) = Field(None, description="shape of one example; needed for image_folder and your own data")
    num_classes: int | None = Field(
        None,
        ge=1,
        le=CLASSES_MAX,
        description="number of classes, or of labels of multilabel; needed for image_folder and your own data",
    )
    target_shape: (
        Annotated[
            tuple[Annotated[int, Field(ge=1, le=COUNT_MAX, strict=True)], ...],
            Field(max_length=8, fail_fast=True, strict=False),
        ]
        | None
    ) = Field(
        None,
        description="shape of one target of your own data: [64, 64] for a class of each pixel; default: one label or number, "
        "of multilabel one for each class",
    )
    input_key: str | None = Field(
        None,
        min_length=1,
        description="key of the input, where the rows of your own data set are dicts",
    )
    label_key: str | None = Field(
        None,
        min_length=1,
        description="key of the label or target, where the rows of your own data set are dicts",
    )
    scale: Scale = Field(
        "auto",
        description="inputs that are divided by 255: auto is uint8 with two or more dimensions an example (images), uint8 is all uint8, "
        "none is nothing; other integers stay integers (int64)",
    )
    white_level: float | None = Field(
        None,
        gt=0,
        description="value of white in image files with more than 8 bits a channel; default: 65535 for 16 bits, needed for more",
    )
    max_bad_share: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="share of examples that cannot be read or are not finite, and are skipped; "
        "above it the site stops; one is always skipped, unless it is 0",
    )
    memory_limit_mib: int = Field(
        4096,
        ge=1,
        le=COUNT_MAX,
        description="memory for the inputs of an iterable data set, which is read once; in MiB",
    )
    class_names: ToldNames = Field(
        "clear",
        description="how a site tells the names of its classes, which the server compares: clear, hash (SHA-256 of each) or none",
    )
    workers: int = Field(
        0,
        ge=0,
        le=PROCESSES_MAX,
        description="loader processes for map-style data sets (image_folder and your own)",
    )
    unlabelled: Literal["none", "minus_one"] | ImportPath = Field(
        "none",
        description="how unlabelled examples are marked: minus_one means that label -1 in your own data is no label; "
        "package.module:function returns more inputs without labels",
    )
    labelled_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="for benchmarks: share of its labels that each client keeps, in proportion to its classes; the others are hidden",
    )
    labels_per_class: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="for benchmarks: number of labels per class that each client keeps; the others are hidden",
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="for benchmarks, never for real data: probability that a label is replaced by a wrong one",
    )
    label_noise_kind: Literal["symmetric", "pairwise", "own_classes"] = Field(
        "symmetric",
        description="the wrong label: symmetric is any other class, pairwise the next class, "
        "own_classes another class that the client has labels of",
    )

    def label_lines(self) -> list[str]:
        """Say in a line each what is done to the labels for a benchmark; nothing for real data."""
        hidden = f"{self.labelled_share:.4g} of the labels" if self.labelled_share is not None else ""
        hidden = f"{self.labels_per_class} labels of a class" if self.labels_per_class is not None else hidden
        kinds = {"symmetric": "any other class", "pairwise": "the next class", "own_classes": "another class of the client"}
        lines = [f"labels: each client keeps {hidden}, the others are hidden"] if hidden else []
        wrong = f"labels: {self.label_noise:.4g} of them are replaced by {kinds[self.label_noise_kind]}"
        return lines + ([wrong] if self.label_noise > 0 else [])

    @field_validator("root")
    @classmethod
    def _path_can_be_written_down(cls, path: Path | None) -> Path | None:
        return path if path is None else expanded(writable_path(path))

    @field_validator("input_shape")
    @classmethod
    def _one_example_is_small_enough(cls, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if math.prod(shape or ()) > ELEMENTS_MAX:
            raise ValueError(f"one example would have {math.prod(shape or ()):,} elements; at most {ELEMENTS_MAX:,} are allowed")
        return shape

    @model_validator(mode="after")
    def _labels_are_hidden_by_one_rule(self) -> Self:
        if self.labelled_share is not None and self.labels_per_class is not None:
            raise ValueError(
                f"labels_per_class = {self.labels_per_class}: data.labelled_share = {self.labelled_share:g} "
                "is set too; use only one of them"
            )
        return self

    @model_validator(mode="after")
    def _only_own_data_have_minus_ones(self) -> Self:
        if self.unlabelled == "minus_one" and ":" not in self.name:
            found = "; images without a label are found in the folder unlabelled/" if self.name == "image_folder" else ""
            raise ValueError(
                "unlabelled = 'minus_one': only for your own data (data.name = 'package.module:function'), "
                f"not for {self.name}: delete the line{found}"
            )
        return self


class PartitionConfig(Table):
    """How a simulation splits one data set among the clients."""

    name: Literal["iid", "labels_per_client", "dirichlet", "quantity_dirichlet", "shards"] = Field(
        "labels_per_client", description="rule that assigns the training examples to clients"
    )
    clients: int = Field(10, ge=1, le=CLIENTS_MAX, description="number of simulated clients")
    labels: int = Field(
        1,
        ge=1,
        le=COUNT_MAX,
        description="labels_per_client: classes per client; shards: shards per client",
    )
    alpha: float = Field(0.5, gt=0, description="concentration of the two Dirichlet rules; smaller is more skewed")
    min_size: int = Field(
        10,
        ge=1,
        le=COUNT_MAX,
        description="the Dirichlet rules draw again until every client has at least this many examples",
    )
