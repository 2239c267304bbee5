"""Find and build algorithms: one file for each paper holds its server side and its client side.

An algorithm whose whole idea is a local loss is FedAvg with a `LocalObjective`, and any algorithm that leaves the
local loss alone can train with it: `algorithm.local_objective`.
"""

from __future__ import annotations

from collections.abc import Callable

from feddkd.algorithms.base import Algorithm, own_settings
from feddkd.algorithms.chosen_teacher import ChosenTeacher
from feddkd.algorithms.feddkd import DKD_STEP, FedDKD
from feddkd.algorithms.learning_rate import LearningRate
from feddkd.algorithms.local_optimizer import check_fits as check_optimizer_fits
from feddkd.algorithms.local_optimizer import check_optimizer
from feddkd.algorithms.local_training import local_steps
from feddkd.algorithms.one_example import check_batch_size
from feddkd.algorithms.own_teacher import check_own_teachers
from feddkd.algorithms.piggyback import Piggyback, check_piggyback
from feddkd.algorithms.registry import find, find_objective
from feddkd.algorithms.site import CrossEntropyConfig, LocalObjective, Site
from feddkd.config import Config, Table
from feddkd.errors import ConfigError
from feddkd.registry import ALGORITHMS, OBJECTIVES
from feddkd.tensors import Schema

__all__ = ["ALGORITHMS", "OBJECTIVES", "build", "check_fits", "chosen", "find", "needs_labels", "objective_factory"]


def chosen(config: Config) -> type[Algorithm]:
    """Choose the algorithm class of a configuration: what it names, or a form of it that `[dkd]` asks for.

    Raises:
        ConfigError: there is none of this name, or `[dkd]` or `[teacher]` asks for what does not go with it.
    """
    found = _asked_for(config)
    check_own_teachers(config, found)
    return found


def _asked_for(config: Config) -> type[Algorithm]:
    """Choose as `[algorithm]` and `[dkd]` say. Raises ConfigError."""
    found = find(config.algorithm.name)
    if config.dkd.piggyback:
        check_piggyback(config)
        return Piggyback
    # Like other keys of the teacher, this one says nothing to algorithms that have none.
    if config.dkd.teacher != "auto" or getattr(found, "step_exchange", None) != DKD_STEP:
        return found
    if found is not FedDKD:
        raise ConfigError(f'dkd.teacher = "auto": only feddkd itself chooses a teacher, not {config.algorithm.name}')
    return ChosenTeacher


def check_fits(algorithm: Algorithm, model: Schema) -> None:
    """Check that what travels in the exchanges can be derived from the model.

    Raises:
        ConfigError: a setting names a parameter that the model does not have.
    """
    for kind in algorithm.exchanges(algorithm.config).values():
        kind.broadcast(model)
        if kind.reply is not None:
            kind.reply(model)


def build(config: Config) -> Algorithm:
    """Build the server side of the configured algorithm.

    Raises:
        ConfigError: something that it names is not there, or a setting is wrong, also one that only
            clients read.
    """
    objective_factory(config)
    return chosen(config)(config)


def objective_factory(config: Config) -> Callable[[Site], LocalObjective]:
    """Choose what sites minimise in local training: the algorithm's or the configured objective.

    Returns:
        Builds the objective of a site; raises ConfigError if the site's network cannot train with
        these settings.

    Raises:
        ConfigError: `algorithm.local_objective` names something that is not there, or the algorithm
            has an objective that does not go with these settings; or local training cannot be done
            as `[training]` says.
    """
    _check_training(config)
    settings = getattr(config.algorithm, "local_objective", CrossEntropyConfig())
    fixed = find(config.algorithm.name).local_objective
    if fixed is not None:
        if settings != CrossEntropyConfig():
            name = config.algorithm.name
            raise ConfigError(f"algorithm.local_objective: {name} has an objective of its own")
        return _builder(fixed, own_settings(config, fixed.table))
    return _builder(find_objective(settings.name), settings)


def needs_labels(config: Config) -> str:
    """Name the key that asks for logits and one class of each example: of the algorithm, or of the local objective.

    Returns:
        The key with its value; empty if neither does.

    Raises:
        ConfigError: one of them is not known.
    """
    found = find(config.algorithm.name)
    settings = getattr(config.algorithm, "local_objective", CrossEntropyConfig())
    if found.needs_labels or (found.local_objective is not None and found.local_objective.needs_labels):
        return f"algorithm.name = {config.algorithm.name!r}"
    is_asked_for = found.local_objective is None and find_objective(settings.name).needs_labels
    return f"algorithm.local_objective.name = {settings.name!r}" if is_asked_for else ""


def _check_training(config: Config) -> None:
    """Check the optimizer, its learning rates, and whether the algorithm allows them. Raises ConfigError."""
    check_optimizer(config.training)
    find(config.algorithm.name).check_training(config.training)
    LearningRate(config).check(local_steps(config.training, config.training.batch_size))


def _builder(objective: type[LocalObjective], settings: Table) -> Callable[[Site], LocalObjective]:
    def build_objective(site: Site) -> LocalObjective:
        check_batch_size(site)
        check_optimizer_fits(site)
        LearningRate(site.config).check(local_steps(site.config.training, len(site.examples)))
        return objective(site, settings)

    return build_objective
