"""Keeps models in the record of a run: the newest, the best, and those of the last evaluated rounds."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from feddkd.models.file import write_model
from feddkd.observability.run_folder import MODEL
from feddkd.tensors import Tensors

BEST = "best.safetensors"
LAST = "last.safetensors"
"""The model of the last round, where clients got another one."""

CHECKPOINTS = "checkpoints"
"""The folder of the models of evaluated rounds."""


class ModelFiles:
    """Writes each round's model once; the others are links to what was written.

    A round is evaluated after its model was written, and before the next one is. Every method raises
    OSError or SafetensorError.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        """Prepare; nothing is written.

        Args:
            keep: so many of the last evaluated rounds stay.
        """
        self._folder = folder
        self._keep = keep
        self._written = 0
        self._best = (-math.inf, 0)
        self._evaluated: list[int] = []

    def write(self, round_number: int, whole: Tensors, about: Mapping[str, str]) -> None:
        """Write a round's model in the place of the one before.

        Args:
            whole: all entries of the network's `state_dict`.
            about: the file's metadata.
        """
        _save(self._folder / MODEL, whole, about)
        self._written = round_number
        self._link(round_number)

    def evaluated(self, round_number: int, worth: float) -> None:
        """Learn how good a round's model is; told of all rounds in order, those of earlier processes included."""
        if worth > self._best[0]:
            self._best = worth, round_number
        self._evaluated = [*self._evaluated, round_number][-self._keep :] if self._keep else []
        self._link(round_number)

    def deliver(self, whole: Tensors, about: Mapping[str, str]) -> None:
        """Make the model that clients got, of an earlier round, the one of the record; the last round's stays beside it."""
        _link(self._folder / MODEL, self._folder / LAST)
        _save(self._folder / MODEL, whole, about)

    def _link(self, round_number: int) -> None:
        """Keep a model that was both written and evaluated, and remove what need not stay."""
        if round_number != self._written:
            return
        model = self._folder / MODEL
        if round_number == self._best[1]:
            _link(model, self._folder / BEST)
        if round_number in self._evaluated:
            (self._folder / CHECKPOINTS).mkdir(exist_ok=True)
            _link(model, self._folder / CHECKPOINTS / f"round-{round_number:05}.safetensors")
            for file in sorted((self._folder / CHECKPOINTS).glob("round-*.safetensors"))[: -self._keep]:
                file.unlink()


def _save(file: Path, whole: Tensors, about: Mapping[str, str]) -> None:
    """Write a model in one step; a crash leaves the old file or the new one."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        write_model(partial, whole, about)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)  # half a model is of no use, and fills the disk
        raise


def _link(file: Path, other: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links. The first is only ever replaced."""
    partial = other.with_name(f"{other.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(other)
