"""Keep a network that only one site has: it learns from the site's data, and teaches the shared student.

The networks of a federation can then be unlike each other: a student learns from outputs, whatever computed them
(Li and Wang, FedMD, arXiv 1910.03581, with a public data set; here every site distils on its own examples).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.registry import find_objective
from feddkd.algorithms.site import Site
from feddkd.config import STUDENT, Config, ModelConfig
from feddkd.data.datasets import DataInfo
from feddkd.errors import ConfigError
from feddkd.evaluation import eval_mode
from feddkd.exchange import Task
from feddkd.imports import named, one_line
from feddkd.models.initial import load_weights
from feddkd.models.registry import Built, build
from feddkd.structures import Structure, leaves, map_leaves
from feddkd.tasks.base import LearningTask
from feddkd.tasks.chosen import task_of

OWN_TEACHER = "own_teacher"
"""The name under which a site keeps its own network."""

KEY = "teacher.model"
"""The configuration key that names it."""


class OwnTeacher:
    """The network of one site's own, from round to round, over restarts of its process.

    A round begins with the weights that the round before left, not with the broadcast student; a round that is
    repeated begins with the same ones. Before its first round in a run, a site has the weights that the network was
    built with, or those of `teacher.init`.

    Attributes:
        site: the site with this network in place of the student, and with the settings that train it.
    """

    def __init__(self, site: Site, built: Built) -> None:
        """Take in the network, on the CPU; it is moved to the site's device."""
        config = site.config
        settings = {"training": config.teacher.training(config.training), "model": ModelConfig(name=config.teacher.names[0])}
        module = built.module.to(site.device)
        self._parts = built.parts
        self.site = dataclasses.replace(site, config=config.model_copy(update=settings), module=module, given_schema=built.parts.travelling)
        self._start = self.site.model()
        self._memory = RoundMemory(site.store, OWN_TEACHER)

    @property
    def name(self) -> str:
        """The network's name in the configuration."""
        return self.site.config.model.name

    def begin(self, task: Task) -> Task:
        """Return local training's task with this network's own weights as the payload. Raises StateError."""
        kept = self._memory.recall(task.id, self._start.schema)
        return dataclasses.replace(task, payload=self._start if kept is None else kept)

    def keep(self, task: Task) -> None:
        """Store the network as it is now, just trained; it survives a crash once this returns. Raises StateError."""
        self._memory.keep(task.id, self.site.model())

    def take_home(self, task: Task, about: Mapping[str, str]) -> None:
        """Store the whole `state_dict` as it was after the latest round, for the site to use. Raises StateError.

        Args:
            task: the delivery of the final model, after the last round.
            about: metadata of the file; the network's name is added.
        """
        latest = self._memory.recall(dataclasses.replace(task.id, round=task.id.round + 1), self._start.schema)
        if latest is not None:
            whole = self._parts.whole(latest, self._parts.constants_of(self.site.module))
            described = {**about, "model.name": self.name}
            self.site.store.save(OWN_TEACHER, whole, label=task.id.run_id, about=described)


def own_teacher_of(site: Site, info: DataInfo) -> OwnTeacher | None:
    """Build the network that `[teacher]` says; None where the site trains the shared one.

    Raises:
        ConfigError: it cannot be built, does not fit the data, or `teacher.init` does not fit it.
    """
    name = site.config.teacher.names[0]
    return None if name == STUDENT else OwnTeacher(site, build_teacher(site.config, name, site.client_id, info))


def build_teacher(config: Config, name: str, client_id: str, info: DataInfo) -> Built:
    """Build one client's own network, with the same first weights on every engine. Raises ConfigError."""
    digest = hashlib.sha256(f"{config.seed}/teacher/{client_id}".encode()).digest()
    built = build(ModelConfig(name=name), info, int.from_bytes(digest[:8], "little") >> 1, task_of(config), key=KEY)
    if config.teacher.init is not None:
        load_weights(built.module, config.teacher.init, key="teacher.init")
    return built


def check_own_teachers(config: Config, algorithm: type[Algorithm]) -> None:
    """Check that the run goes on without the local models of sites that train another network.

    Raises:
        ConfigError: naming the key to change.
    """
    if not config.teacher.own:
        return
    has = f"{named(KEY, config.teacher.own[0])}: a site with a network of its own"
    if not algorithm.distils_own_teachers:
        raise ConfigError(f"{has} takes part in feddkd only; algorithm.name is {config.algorithm.name!r}")
    if config.dkd.start != "previous":
        raise ConfigError(f'{has} uploads no local model, so the run needs dkd.start = "previous"; it has {config.dkd.start!r}')
    if config.dkd.hard_label_weight == 1:
        raise ConfigError(f"{has} teaches by its outputs, and dkd.hard_label_weight = 1 uses none; set it below 1")
    objective = getattr(config.algorithm, "local_objective", None)
    if objective is not None and find_objective(objective.name).compares_with_broadcast:
        raise ConfigError(
            f"{has} cannot minimise algorithm.local_objective = {objective.name!r}, which compares it with the broadcast model"
        )


def check_outputs(
    config: Config,
    name: str,
    student: nn.Module,
    teacher: nn.Module,
    inputs: Structure,
    task: LearningTask[Any],
) -> None:
    """Compare the outputs of both networks for one batch, in eval mode.

    Args:
        name: of the teacher.
        inputs: [B, ...], on the device of both.
        task: says what outputs are.

    Raises:
        ConfigError: their shapes differ; the message names both networks.
    """
    taught, teaching = named("model.name", config.model.name), named(KEY, name)
    learns, says = _output_shape(student, inputs, task, taught), _output_shape(teacher, inputs, task, teaching)
    if learns != says:
        raise ConfigError(f"{teaching} returns {says} where the student {taught} returns {learns}; they must return the same shape")


@torch.no_grad()
def _output_shape(module: nn.Module, inputs: Structure, task: LearningTask[Any], where: str) -> Structure:
    """Compute one batch, and return the shape of each tensor of the outputs."""
    with eval_mode(module):
        try:
            return map_leaves(lambda leaf: list(leaf.shape), task.outputs(module, inputs))
        except Exception as error:  # a user's model may raise anything
            shape = tuple(next(leaves(inputs)).shape[1:])
            raise ConfigError(f"{where} does not take inputs of shape {shape}: {one_line(error)}") from error
