"""Names that a registry knows, and tables that are chosen by such a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Union

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from feddkd.config.table import Table
from feddkd.imports import IMPORT_PATH
from feddkd.registry import Registry

CUSTOM = "custom"
"""Stands for all import paths where the tables of a field are listed by name."""


class RegisteredName:
    """Annotates a string that is one of a registry's names; errors are those of a `Literal`.

    Args:
        besides: other names that are accepted; the registry is not asked for these.
    """

    def __init__(self, registry: Registry, besides: tuple[str, ...] = ()) -> None:
        self._registry = registry
        self._besides = besides

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [*self._besides, *self._registry], "type": "string"}

    def _validate(self, name: Any) -> Any:
        if not isinstance(name, str) or (name not in self._besides and name not in self._registry):
            *others, last = map(repr, (*self._besides, *self._registry))
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
        return name


class NamedTable(Table):
    """A table whose `name` says which other keys there are; a subclass allows one, its default."""

    name: str


class ChosenByName:
    """Annotates a field that holds a `NamedTable`, of the class that its name chooses.

    A value is validated by a tagged union that has only the table of its name, so only the module
    that registers this name is imported. For an unknown name it is the union of all tables.

    Args:
        registry: of classes that have their settings' class in the attribute `table`.
        custom: the class of tables whose name is an import path, `package.module:Class`.
        default: the name of a table that says none; None if it has to say one.
    """

    def __init__(self, registry: Registry, custom: type[NamedTable], default: str | None = None) -> None:
        self._registry = registry
        self._custom = custom
        self._default = default

    @property
    def tables(self) -> dict[str, type[NamedTable]]:
        """All table classes by name, that of import paths last; imports all of the package."""
        known = {name: found.table for name, found in self._registry.items()}
        return {**known, CUSTOM: self._custom}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(self._union(self.tables).core_schema)

    def _validate(self, value: Any) -> Any:
        name = self._name_of(value)
        if name == CUSTOM:
            return self._union({CUSTOM: self._custom}).validate_python(value)
        known = self._registry.get(name) if isinstance(name, str) else None
        tables = self.tables if known is None else {name: known.table, CUSTOM: self._custom}
        return self._union(tables).validate_python(value)

    def _name_of(self, value: Any) -> Any:
        """Tell which of `tables` a value is to be read with; it may say one that is not there."""
        given = isinstance(value, dict)
        name = value.get("name", self._default) if given else getattr(value, "name", None)
        if not isinstance(name, str):
            return name
        # What stands for all import paths is not one itself.
        return CUSTOM if re.fullmatch(IMPORT_PATH, name) else None if name == CUSTOM else name

    def _union(self, tables: Mapping[str, type[NamedTable]]) -> TypeAdapter[Any]:
        return _tagged_union(tuple(tables.items()), self._name_of)


@cache
def _tagged_union(tables: tuple[tuple[str, type[NamedTable]], ...], name_of: Callable[[Any], Any]) -> TypeAdapter[Any]:
    """Build the validator of a union whose members are told apart by `name_of`."""
    members = tuple(Annotated[table, Tag(name)] for name, table in tables)
    union: Any = Annotated[Union[members], Discriminator(name_of)]  # noqa: UP007  # the members are a tuple
    return TypeAdapter(union)


def tables_by_name(field: FieldInfo | None) -> dict[str, type[NamedTable]]:
    """List the table classes that a field chooses from, by name; none for any other field."""
    markers = field.metadata if field is not None else []
    return next((marker.tables for marker in markers if isinstance(marker, ChosenByName)), {})
