"""The configuration of a run, in the forms in which a Python program has it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from feddkd.config import Config, read_tables
from feddkd.config.toml import check_depth
from feddkd.errors import ConfigError

Settings: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | Config | None"


def tables_of(settings: Settings) -> tuple[dict[str, Any], str]:
    """Read a configuration as a tree of tables, without defaults and not validated.

    Args:
        settings: path of a TOML file, a mapping with nested tables or dotted keys, a `Config`, or None.

    Returns:
        The tree, and what messages call the configuration.

    Raises:
        ConfigError: a file cannot be read, or keys of a mapping contradict each other.
    """
    if settings is None:
        return {}, "configuration"
    if isinstance(settings, Config):
        return _tables_of_config(settings), "configuration"
    if isinstance(settings, Mapping):
        tables = _nested(settings)
        check_depth(tables, "configuration")
        return tables, "configuration"
    if not isinstance(settings, str | os.PathLike):
        raise ConfigError(f"config: a path, a mapping or a feddkd.Config is expected, not {type(settings).__name__}")
    path = Path(settings).expanduser()
    return read_tables(path), str(path)


def _tables_of_config(config: Config) -> dict[str, Any]:
    """All keys, but of `[algorithm]` only those that were set: another algorithm may take its place."""
    tables = config.model_dump(exclude_none=True)
    chosen = tables["algorithm"]
    tables["algorithm"] = {key: value for key, value in chosen.items() if key == "name" or key in config.algorithm.model_fields_set}
    return tables


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Take dotted keys apart: {"dkd.steps": 5} is {"dkd": {"steps": 5}}. Raises ConfigError."""
    tables: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str) or not all(names := key.split(".")):
            raise ConfigError(f"configuration: {key!r} is not a key; write {{'rounds': 3, 'dkd.steps': 5}}")
        inner = _nested(value) if isinstance(value, Mapping) else value
        for name in reversed(names):
            inner = {name: inner}
        _merge(inner, tables, key)
    return tables


def _merge(new: Mapping[str, Any], tables: dict[str, Any], key: str) -> None:
    """Add a tree to another one. Raises ConfigError where both have a value."""
    for name, value in new.items():
        if name not in tables:
            tables[name] = value
        elif isinstance(value, dict) and isinstance(tables[name], dict):
            _merge(value, tables[name], key)
        else:
            raise ConfigError(f"configuration: {key!r} is set twice")
