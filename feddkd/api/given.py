"""Objects of the user's own, given to `feddkd.run` in place of names in the configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from feddkd.algorithms import ALGORITHMS
from feddkd.algorithms.base import Algorithm
from feddkd.config import Config
from feddkd.config.table import flatten
from feddkd.errors import ConfigError
from feddkd.imports import GIVEN, MAIN, WAY_OUT

Data: TypeAlias = "Callable[..., Any] | str"
Model: TypeAlias = "Callable[..., nn.Module] | str"
AlgorithmClass: TypeAlias = "type[Algorithm] | str"

CALLED_AS = {"data": "a function of (root, train)", "model": "a function of (input_shape, num_classes)"}


@dataclass(frozen=True, slots=True)
class Given:
    """What was given.

    Attributes:
        names: what the configuration says of each object, by its key.
        objects: those that have no name of a built-in, by key and name, for `feddkd.imports.given_objects`.
    """

    names: dict[str, str] = field(default_factory=dict)
    objects: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, *, data: Data | None = None, model: Model | None = None, algorithm: AlgorithmClass | None = None) -> Given:
        """Name what is given; None stands for nothing given. Raises ConfigError for what cannot be used."""
        given = cls()
        _check_function("data", data)
        _check_function("model", model)
        if algorithm is not None and not isinstance(algorithm, type | str):
            raise ConfigError(f"algorithm: a subclass of feddkd.Algorithm is expected, or its name, not {_shown(algorithm)}")
        for table, found in (("data", data), ("model", model), ("algorithm", algorithm)):
            if found is not None:
                given._take(f"{table}.name", found)
        return given

    def _take(self, key: str, found: Any) -> None:
        built_in = next((name for name, known in ALGORITHMS.items() if known is found), None)
        name = found if isinstance(found, str) else built_in or _recorded_name(found)
        self.names[key] = name
        if found is not name and built_in is None:
            self.objects[key, name] = found

    def write_into(self, tables: dict[str, Any]) -> None:
        """Set the names in a tree of tables. Raises ConfigError if there is a value in place of a table."""
        for key, name in self.names.items():
            table, _, leaf = key.partition(".")
            settings = tables.setdefault(table, {})
            if not isinstance(settings, dict):
                raise ConfigError(f"{table} = {settings!r}: a table is expected")
            settings[leaf] = name


def import_path(found: Any) -> str | None:
    """Return the path `package.module:name` under which another process finds an object; None if there is none."""
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", "")
    if module is None or module == MAIN or not re.fullmatch(r"[A-Za-z_]\w*", name):
        return None
    return f"{module}:{name}" if getattr(sys.modules.get(module), name, None) is found else None


def check_importable(config: Config, given: Mapping[tuple[str, str], Any], engine: str = "grpc") -> None:
    """Check that client processes can import what a configuration names.

    Raises:
        ConfigError: a key names an object of this process alone.
    """
    for key, value in only_here(config):
        what = _shown(given[key, value]) if (key, value) in given else value
        raise ConfigError(
            f'{key}: with engine="{engine}" clients run in processes of their own, which cannot import {what}; '
            f'{WAY_OUT}, or use engine="in-process"'
        )


def only_here(config: Config) -> Iterator[tuple[str, str]]:
    """List the keys, with their values, that name what no other process can import."""
    for key, value in flatten(config.model_dump(mode="json")).items():
        if isinstance(value, str) and value.startswith((f"{MAIN}:", f"{GIVEN}:")):
            yield key, value


def _check_function(argument: str, found: Any) -> None:
    """Check what `data` or `model` is. Raises ConfigError."""
    if found is None or isinstance(found, str) or (callable(found) and not isinstance(found, nn.Module)):
        return
    hint = ""
    if isinstance(found, nn.Module):
        hint = "; for a network that exists already, give lambda input_shape, num_classes: copy.deepcopy(network)"
    raise ConfigError(f"{argument}: {CALLED_AS[argument]} is expected, or its import path, not {_shown(found)}{hint}")


def _recorded_name(found: Any) -> str:
    """Return what the record says of an object: its import path, or a path that says why there is none."""
    if (path := import_path(found)) is not None:
        return path
    name = re.sub(r"\W+", "_", getattr(found, "__name__", type(found).__name__), flags=re.ASCII).strip("_") or "object"
    is_global = getattr(found, "__module__", None) == MAIN and getattr(sys.modules[MAIN], name, None) is found
    return f"{MAIN if is_global else GIVEN}:{name}"


def _shown(found: Any) -> str:
    """Name an object and where it comes from, for a message."""
    name = getattr(found, "__qualname__", None)
    if name is None or not isinstance(getattr(found, "__module__", None), str):
        return f"an object of type {type(found).__name__}"
    return f"{name} of {'this script or notebook' if found.__module__ == MAIN else found.__module__}"
