"""Build the task that a configuration names."""

from __future__ import annotations

from typing import Any

from feddkd.config import Config, CustomTaskConfig, TaskTable
from feddkd.errors import ConfigError
from feddkd.imports import load_object
from feddkd.registry import TASKS
from feddkd.tasks.base import LearningTask


def task_of(config: Config) -> LearningTask[Any]:
    """Build the task of a configuration.

    Raises:
        ConfigError: an import path leads to no subclass of `LearningTask`, or it refuses its settings.
    """
    settings = config.task
    assert isinstance(settings, TaskTable)
    if not isinstance(settings, CustomTaskConfig):
        known: LearningTask[Any] = TASKS[settings.name](settings)
        return known
    found = load_object(settings.name, "task.name")
    if not (isinstance(found, type) and issubclass(found, LearningTask)):
        raise ConfigError(f"task.name = {settings.name!r}: a subclass of feddkd.tasks.base.LearningTask is expected")
    return found(settings)
