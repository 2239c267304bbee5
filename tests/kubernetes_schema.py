"""Checks documents against Kubernetes' API: fields that it does not know, fields that it needs, values of another type.

The types are those of lightkube-models, which are generated from the schema of a Kubernetes version. The classes are
used without the client that they belong to, so this module stands in for the part of it that they import.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import sys
import types
import typing
from functools import cache
from typing import Any

_SCHEMA = "lightkube.core.schema"
_SCALARS = {str: str, int: int, bool: bool, float: (int, float), datetime.datetime: str}
"""What YAML has for a type of the classes. An integer is no boolean."""


def problems(document: dict[str, Any]) -> list[str]:
    """List what Kubernetes would refuse in a document with `apiVersion` and `kind`, one line each."""
    group, _, version = document["apiVersion"].rpartition("/")
    return _problems(document, _class(f"{group.split('.')[0] or 'core'}_{version}", document["kind"]), document["kind"])


def _class(module: str, name: str) -> Any:
    if _SCHEMA not in sys.modules:
        schema = types.ModuleType(_SCHEMA)
        schema.DictMixin, schema.dataclass, schema.field = object, dataclasses.dataclass, dataclasses.field  # type: ignore[attr-defined]
        sys.modules |= {"lightkube.core": types.ModuleType("lightkube.core"), _SCHEMA: schema}
    return getattr(importlib.import_module(f"lightkube.models.{module}"), name)


def _problems(value: Any, kind: Any, path: str) -> list[str]:
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Union:
        tried = [_problems(value, each, path) for each in arguments if each is not types.NoneType]
        return [] if value is None and types.NoneType in arguments else min(tried, key=len)
    if dataclasses.is_dataclass(origin):
        return _of_fields(value, origin, path)
    expected: Any = _SCALARS.get(origin, origin)
    if not isinstance(value, expected) or (isinstance(value, bool) and origin is not bool):
        return [f"{path}: {value!r} is no {origin.__name__}"]
    if origin is list and arguments:
        return [line for index, each in enumerate(value) for line in _problems(each, arguments[0], f"{path}[{index}]")]
    if origin is dict and arguments:
        return [line for key, each in value.items() for line in _problems(each, arguments[1], f"{path}.{key}")]
    return []


def _of_fields(value: Any, kind: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {kind.__name__}"]
    known = _fields(kind)
    unknown = [f"{path}: {kind.__name__} has no field {name}" for name in value.keys() - known.keys()]
    missing = [f"{path}: {kind.__name__} needs {name}" for name, (_, needed) in known.items() if needed and name not in value]
    inside = [line for name in known.keys() & value.keys() for line in _problems(value[name], known[name][0], f"{path}.{name}")]
    return sorted(unknown + missing + inside)


@cache
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Map each field, by its name in YAML, to its type and whether it is needed."""
    hints = typing.get_type_hints(kind)
    return {
        each.metadata.get("json", each.name): (hints[each.name], each.default is dataclasses.MISSING) for each in dataclasses.fields(kind)
    }
