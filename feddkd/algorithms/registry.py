"""Find algorithms and local objectives by their name in the configuration, or by an import path."""

from __future__ import annotations

from typing import TypeVar

from feddkd.algorithms.base import Algorithm
from feddkd.algorithms.site import LocalObjective
from feddkd.errors import ConfigError
from feddkd.imports import load_object
from feddkd.registry import ALGORITHMS, OBJECTIVES, Registry

Base = TypeVar("Base")


def find(name: str) -> type[Algorithm]:
    """Find an algorithm class by its built-in name or by an import path `package.module:Class`.

    Raises:
        ConfigError: there is none.
    """
    return _find(ALGORITHMS, name, "algorithm.name", Algorithm)  # type: ignore[type-abstract]


def find_objective(name: str) -> type[LocalObjective]:
    """Find a local objective by its built-in name or by an import path.

    Raises:
        ConfigError: there is none.
    """
    return _find(OBJECTIVES, name, "algorithm.local_objective.name", LocalObjective)


def _find(registry: Registry, name: str, key: str, base: type[Base]) -> type[Base]:
    """Find the subclass of `base` that the configuration names under `key`. Raises ConfigError."""
    found = load_object(name, key) if ":" in name else registry.get(name)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{key} = {name!r}: not a subclass of {base.__module__}.{base.__qualname__}")
    return found
