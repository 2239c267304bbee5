"""One line for what is wrong with a configuration: the key, the value, and what it should have been."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from feddkd.client_ids import RULE
from feddkd.config.named import CUSTOM, NamedTable, tables_by_name

LONGEST_VALUE = 200
"""Characters of a key or value that a message shows."""

MOST_KEYS = 10
"""Other wrong keys that a message names."""

_PATTERNS = {
    "^[A-Za-z_]": "package.module:function",
    "^[a-z0-9]": RULE,
}
"""What a string should look like, by the beginning of the pattern that it does not match."""


_CONTAINERS = {"model_type": "a table", "dict_type": "a table", "tuple_type": "a list", "list_type": "a list"}
"""What TOML calls a value that another type was given for, by pydantic's name of the problem."""


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """The first wrong key with its value, and how many others there are; `root` is the model that was validated."""
    problems = error.errors(include_url=False)
    # A union lists one problem for each of its members; the key is what the user needs to see once.
    paths = list(dict.fromkeys(_key_of(problem["loc"], root)[0] for problem in problems))
    mine = [problem for problem in problems if _key_of(problem["loc"], root)[0] == paths[0]]
    first = mine[0]
    key, table = _key_of(first["loc"], root)
    if first["type"] == "extra_forbidden":
        message = f"unknown key {key!r}{_suggestion(key.rpartition('.')[2], table)}"
    elif first["type"] == "model_type" and hasattr(holder := _key_of(first["loc"][:-1], root)[1], "extra_table"):
        # Any other key of such a table is the name of an inner table: a value there is a key that was mistyped.
        message = f"unknown key {key!r}{_suggestion(key.rpartition('.')[2], holder)}"
    elif first["type"].startswith("union_tag"):
        names = tables_by_name(table.model_fields[key.rpartition(".")[2]])
        message = _unknown_name(key, first["input"], [name for name in names if name != CUSTOM])
    elif first["type"] == "value_error" and key.rpartition(".")[2] not in table.model_fields:
        message = f"{key}.{_expectation(first)}".lstrip(".")  # of a whole table: what is wrong begins with the key
    else:
        message = f"{key} = {shortened(first['input'])}: {'; or '.join(dict.fromkeys(map(_expectation, mine)))}"
        message += _meant(first["input"], mine)
    others = paths[1 : MOST_KEYS + 1] + ["..."] * (len(paths) > MOST_KEYS + 1)
    return message + (f" (and {len(paths) - 1} more: {', '.join(others)})" if others else "")


def _key_of(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The dotted key of a pydantic location, without the union members that pydantic adds to it, and the table it is in."""
    names: list[str] = []
    table = root
    parts = iter(location)
    for part in parts:
        names.append(_shortened_key(str(part)))
        field = table.model_fields.get(str(part))
        annotation = field.annotation if field else getattr(table, "extra_table", None)
        named = tables_by_name(field)
        inner = named.get(str(next(parts, ""))) if named else annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            # The keys of a table of numbers are the user's own; of an array, its key alone is named.
            if typing.get_origin(inner) is dict:
                names += [_shortened_key(str(key)) for key in parts]
            break
        table = inner
    return ".".join(names), table


def _expectation(problem: Any) -> str:
    if problem["type"] == "string_pattern_mismatch":
        for pattern, wish in _PATTERNS.items():
            if problem["ctx"]["pattern"].startswith(pattern):
                return wish
    if problem["type"] in _CONTAINERS:
        return f"{_CONTAINERS[problem['type']]} is expected"
    message = problem["msg"].removeprefix("Value error, ")
    return str(message[0].lower() + message[1:])


def _meant(value: Any, problems: Iterable[Any]) -> str:
    """Propose the name most like a value, where it should be one of some names."""
    names = [name for problem in problems for name in re.findall("'([^']*)'", problem.get("ctx", {}).get("expected", ""))]
    return did_you_mean(value, names) if isinstance(value, str) else ""


def shortened(value: Any) -> str:
    """The value as Python writes it, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _shortened_key(name: str) -> str:
    return name if len(name) <= LONGEST_VALUE else f"{name[:LONGEST_VALUE]}..."


def _unknown_name(key: str, value: Any, known: list[str]) -> str:
    """For a table that is chosen by its name, which is missing or unknown."""
    wish = f"one of {', '.join(known)}; or package.module:Class"
    if not isinstance(value, dict):
        return f"{key} = {shortened(value)}: a table is expected, whose name is {wish}"
    if "name" not in value:
        return f"{key}.name is missing: {wish}"
    return f"{key}.name = {shortened(value['name'])}: {wish}{did_you_mean(str(value['name']), known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the known name most like this one, or nothing if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _suggestion(name: str, table: type[BaseModel]) -> str:
    if meant := did_you_mean(name, table.model_fields):
        return meant
    # A table that is chosen by its name has that name for a default: say whose keys these are.
    whose = table.model_fields["name"].default if issubclass(table, NamedTable) else None
    if not isinstance(whose, str):
        return f"; known keys: {', '.join(table.model_fields)}"
    return f"; known keys of {whose}: {', '.join(table.model_fields)}; another name has others"
