"""The base class of configuration tables, and common bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from feddkd.imports import IMPORT_PATH

ImportPath = Annotated[str, StringConstraints(pattern=f"^{IMPORT_PATH}$")]
"""`package.module:function`, imported from the Python path of the process that needs it."""


CLIENTS_MAX = 1_000_000
"""Most clients of a federation, simulated ones included."""

COUNT_MAX = 2**31 - 1
"""Largest value of a key that only counts: libraries below hold such numbers in 32 bits."""

SECONDS_MAX = 1e9
"""Longest time, about 32 years: timers of the standard library refuse much longer ones."""

PROCESSES_MAX = 1024
"""Most threads or processes of one machine."""


class Table(BaseModel):
    """One TOML table: immutable, and closed to unknown keys and to values of another type.

    A whole number is accepted where a float is wanted, and nothing else is converted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


def writable_path(path: Path) -> Path:
    """Return a path that TOML can hold. Raises ValueError."""
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in str(path)):
        raise ValueError("a path must be valid UTF-8 without null characters")
    return path


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested tables: {"dkd": {"steps": 5}} becomes {"dkd.steps": 5}."""
    return dict(_leaves(tree))


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
