"""Tries, before a site joins, what each round will ask of it: a step of training, and a write to its folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.data.examples import Examples
from feddkd.data.seeding import generators_kept, reads_for
from feddkd.errors import ConfigError, ProtocolError, StateError
from feddkd.imports import named
from feddkd.models.check import check_model
from feddkd.models.device import find_device
from feddkd.structures import to_device
from feddkd.tasks.base import UNLABELLED, LearningTask
from feddkd.tensors import Schema
from feddkd.transport.payload import schema_from_message, schema_to_message

FEW = 8
"""Examples of the batch that is tried; never more than `training.batch_size`."""

PROBE_BYTES = 1 << 16


def check_site(site: Site) -> None:
    """Try a batch of the site's own examples, and send the model's schema there and back.

    Raises:
        ConfigError: the examples or the model cannot be used in training, or the model cannot travel.
    """
    _check_step(site.config, site.module, site.device, site.labelled, site.learning_task)
    check_schema(site.model_schema, _where(site.config))


def check_simulation(config: Config, module: nn.Module, examples: Examples, task: LearningTask[Any]) -> None:
    """Try a batch of the examples that simulated clients share, as `check_site` does; moves the network. Raises ConfigError."""
    device = find_device(config.runtime.device)
    module.to(device)
    labelled = (examples.labels != UNLABELLED).nonzero().flatten()
    if len(labelled):
        _check_step(config, module, device, examples.subset(labelled), task)
    check_schema(Schema.of_module(module), _where(config))


def _check_step(config: Config, module: nn.Module, device: torch.device, examples: Examples, task: LearningTask[Any]) -> None:
    """Run one train-mode and one eval-mode batch with a backward pass. Raises ConfigError."""
    size = min(FEW, max(2, config.training.batch_size))
    order = torch.arange(size) % len(examples)  # a site of one example sees it twice
    with reads_for(f"{config.seed}/check"), generators_kept():
        for _, inputs, targets in examples.batches(order, size):
            check_model(module, to_device(inputs, device), to_device(targets, device), _where(config), task)


def _where(config: Config) -> str:
    return named("model.name", config.model.name)


def check_schema(schema: Schema, where: str) -> None:
    """Write a model's schema as a message and read it again. Raises ConfigError if it is not the same."""
    try:
        schema_from_message(schema_to_message(schema)).check_same(schema)
    except (ProtocolError, KeyError, ValueError) as error:
        raise ConfigError(f"{where} cannot travel: {error}") from error


def check_writable(folder: Path) -> None:
    """Write a file to the disk and remove it. Raises StateError."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise StateError(f"cannot write to {folder}: {error.strerror}") from error
