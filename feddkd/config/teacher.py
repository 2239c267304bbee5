"""The table `[teacher]`: a network that a site trains for itself and distils into the shared student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from feddkd.config.home import expanded
from feddkd.config.named import RegisteredName
from feddkd.config.table import CLIENTS_MAX, COUNT_MAX, ImportPath, Table, writable_path
from feddkd.config.training import TrainingConfig
from feddkd.registry import MODELS

STUDENT = "student"
"""Stands for no network of a site's own: it trains a copy of the broadcast model."""


TeacherName = Annotated[str, RegisteredName(MODELS, besides=(STUDENT,))] | ImportPath
TeacherNames = Annotated[tuple[TeacherName, ...], Field(min_length=1, max_length=CLIENTS_MAX, fail_fast=True, strict=False)]
OneOrSeveral = Annotated[
    Annotated[TeacherName, Tag("one")] | Annotated[TeacherNames, Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class TeacherConfig(Table):
    """A network of a site's own, which teaches the shared one; a site says it in its own file, never the server."""

    model: OneOrSeveral = Field(
        STUDENT,
        description="the network that local training trains: student is a copy of the shared model, a built-in model or "
        "package.module:function is the site's own; simulations take a list and deal it to the clients in turn",
    )
    init: Path | None = Field(
        None,
        strict=False,
        description="safetensors file with the weights that the site's own network starts from; default: drawn with the seed",
    )
    epochs: int | None = Field(
        None, ge=1, le=COUNT_MAX, description="passes over the data per round for the site's own network; default: `training.epochs`"
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="local steps per round for the site's own network, instead of `epochs`; default: `training.steps`",
    )
    lr: float | None = Field(None, gt=0, description="learning rate of the site's own network; default: `training.lr`")

    @field_validator("init")
    @classmethod
    def _path_can_be_written_down(cls, path: Path | None) -> Path | None:
        return path if path is None else expanded(writable_path(path))

    @model_validator(mode="after")
    def _keys_have_a_network(self) -> Self:
        if self.init is not None and isinstance(self.model, tuple):
            raise ValueError(f"init = '{self.init}': it needs one network in teacher.model, not a list")
        unused = [key for key in ("init", "epochs", "steps", "lr") if getattr(self, key) is not None]
        if unused and not self.own:
            raise ValueError(f"{unused[0]} = {getattr(self, unused[0])}: it has no effect without a network in teacher.model")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The networks in the order in which clients are dealt them, `STUDENT` included."""
        return self.model if isinstance(self.model, tuple) else (self.model,)

    @property
    def own(self) -> tuple[str, ...]:
        """The names of networks that are some site's own, each once."""
        return tuple(dict.fromkeys(name for name in self.names if name != STUDENT))

    def of_client(self, index: int) -> Self:
        """Return the table of one client of a simulation, with one network."""
        return self.model_copy(update={"model": self.names[index % len(self.names)]})

    def training(self, training: TrainingConfig) -> TrainingConfig:
        """Return how the site's own network is trained: as `[training]` says, but for what is set here."""
        steps = self.steps if self.steps is not None or self.epochs is not None else training.steps
        epochs, lr = self.epochs or training.epochs, self.lr or training.lr
        return training.model_copy(update={"epochs": epochs, "steps": steps, "lr": lr})
