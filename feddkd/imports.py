"""Imports objects that a configuration names as `package.module:name`."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from feddkd.errors import ConfigError, FedDKDError

IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""All of an import path. A site is asked for its consent to what has this form, so nothing else is imported."""

MAIN = "__main__"
"""The module of a script, or of a notebook's cells; each process has its own."""

GIVEN = "__given__"
"""Stands in place of a module for an object that has no import path, such as a lambda."""

WAY_OUT = "put it at the top level of a module that can be imported"

_given: ContextVar[Mapping[tuple[str, str], Any]] = ContextVar("given", default=MappingProxyType({}))


@contextlib.contextmanager
def given_objects(objects: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    """Let `load_object` return these objects in place of an import, in this thread.

    Args:
        objects: by the arguments of `load_object`: configuration key and path.
    """
    token = _given.set(objects)
    try:
        yield
    finally:
        _given.reset(token)


def load_object(path: str, key: str) -> Any:
    """Return the object that `path`, the value of configuration key `key`, names: a given one, or import it.

    The current working directory is importable, as it is for a script that starts there; it stays
    so, because worker processes find the object again by its name.

    Raises:
        ConfigError: there is no such module or attribute, or the module fails while it is imported.
    """
    module_name, _, name = path.partition(":")
    if not re.fullmatch(IMPORT_PATH, path):
        raise ConfigError(f"{key} = {path!r}: not of the form package.module:name")
    given = _given.get()
    if (key, path) in given:
        return given[key, path]
    if module_name == GIVEN:
        raise ConfigError(f"{key} = {path!r}: it was an object without an import path; to find it again, {WAY_OUT}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{key} = {path!r}: {_reason(error, module_name)}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        if module_name == MAIN:
            raise ConfigError(
                f"{key} = {path!r}: it was defined in a script or a notebook, and not in the one that runs now; {WAY_OUT}"
            ) from None
        raise ConfigError(f"{key} = {path!r}: module {module_name} ({_origin(module)}) has no {name!r}") from None


def named(key: str, path: str) -> str:
    """Say in a message what a configuration key names: its value, or that an object was given in its place."""
    table = key.partition(".")[0]
    what = "class" if table == "algorithm" else "function"
    return f"the {what} given as {table}" if path.startswith(f"{GIVEN}:") else f"{key} = {path!r}"


def one_line(error: BaseException) -> str:
    """Return the first line of an exception, for a one-line message; with its type, unless it is an error of ours."""
    lines = str(error).strip().splitlines()
    if isinstance(error, FedDKDError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _reason(error: Exception, module_name: str) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module_name}.".startswith(f"{missing}."):
        return f"there is no module {missing!r} in {Path.cwd()} or on the Python path"
    return f"importing {module_name} failed with {one_line(error)}"


def _origin(module: Any) -> str:
    return getattr(module, "__file__", None) or "no file"
