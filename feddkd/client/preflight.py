"""Tries, before a site joins, what each round will ask of it: a step of training, and a write to its folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feddkd.algorithms.own_teacher import KEY, build_teacher, check_outputs
from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.data.datasets import DataInfo
from feddkd.data.examples import Examples
from feddkd.data.seeding import generators_kept, reads_for
from feddkd.errors import ConfigError, DataError, ProtocolError, StateError
from feddkd.evaluation import eval_mode
from feddkd.imports import named
from feddkd.models.check import check_model
from feddkd.models.device import find_device
from feddkd.structures import to_device
from feddkd.tasks.base import UNLABELLED, LearningTask
from feddkd.tasks.metrics import TaskMetrics
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
    task = site.learning_task
    _check_step(site.config, site.module, site.device, site.labelled, _where(site.config), task)
    _check_metrics(site.config, site.module, site.device, site.labelled, site.metrics)
    if site.own_teacher is not None:
        _check_teacher(site.config, site.module, site.teacher.module, site.device, site.labelled, task)
    check_schema(site.model_schema, _where(site.config))


def check_simulation(config: Config, module: nn.Module, examples: Examples, info: DataInfo, metrics: TaskMetrics) -> None:
    """Try a batch of the examples that simulated clients share, as `check_site` does; moves the network. Raises ConfigError."""
    task, device = metrics.task, find_device(config.runtime.device)
    module.to(device)
    labelled = (examples.labels != UNLABELLED).nonzero().flatten()
    if len(labelled):
        _check_step(config, module, device, examples.subset(labelled), _where(config), task)
        _check_metrics(config, module, device, examples.subset(labelled), metrics)
    for name in config.teacher.own:
        own = config.model_copy(update={"teacher": config.teacher.model_copy(update={"model": name})})
        teacher = build_teacher(own, name, "", info).module.to(device)
        if len(labelled):
            _check_teacher(own, module, teacher, device, examples.subset(labelled), task)
    check_schema(Schema.of_module(module), _where(config))


def _check_metrics(config: Config, module: nn.Module, device: torch.device, examples: Examples, metrics: TaskMetrics) -> None:
    """Compute the metrics of a batch. Raises ConfigError for one that cannot be computed."""
    if not metrics.names:
        return
    order = torch.arange(min(FEW, len(examples)))
    with reads_for(f"{config.seed}/check"), generators_kept(), eval_mode(module), torch.no_grad():
        for _, inputs, targets in examples.batches(order, FEW):
            metrics.check(metrics.task.outputs(module, to_device(inputs, device)), to_device(targets, device))


def _check_teacher(
    config: Config, student: nn.Module, teacher: nn.Module, device: torch.device, examples: Examples, task: LearningTask[Any]
) -> None:
    """Try a step of a site's own network, and compare its outputs with the student's. Raises ConfigError."""
    name = config.teacher.names[0]
    _check_step(config, teacher, device, examples, named(KEY, name), task)
    with reads_for(f"{config.seed}/check"), generators_kept():
        inputs, _ = examples.gather(_usable(examples, 2))
        check_outputs(config, name, student, teacher, to_device(inputs, device), task)


def _check_step(config: Config, module: nn.Module, device: torch.device, examples: Examples, where: str, task: LearningTask[Any]) -> None:
    """Run one train-mode and one eval-mode batch with a backward pass. Raises ConfigError."""
    size = min(FEW, max(2, config.training.batch_size))
    with reads_for(f"{config.seed}/check"), generators_kept():
        inputs, targets = examples.gather(_usable(examples, size))
        check_model(module, to_device(inputs, device), to_device(targets, device), where, task)


def _usable(examples: Examples, size: int) -> Tensor:
    """Find the first examples that can be used: int64 [size]; where they are fewer, some more than once. Raises DataError if none can."""
    found = torch.empty(0, dtype=torch.int64)
    for piece in torch.split(torch.arange(len(examples)), size):
        for index, _, _ in examples.batches(piece, size):
            found = torch.cat([found, index])
        if len(found) >= size:
            break
    if len(found) == 0:
        raise DataError(f"none of the {len(examples)} labelled examples can be used")
    return found[torch.arange(size) % len(found)]  # a site of one example sees it twice


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
