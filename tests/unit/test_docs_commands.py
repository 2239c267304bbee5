"""Every `feddkd` command in every page is one that the program knows, with options and keys that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from doc_pages import ALL_PAGES, ROOT, commands_of, mentions_of, name_of

from feddkd.cli import app
from feddkd.config import Config

PROGRAM: Any = typer.main.get_command(app)


def context_of(arguments: list[str]) -> Any:
    """Parse a command without running it, and return the context of the innermost one."""
    command, context = PROGRAM, PROGRAM.make_context("feddkd", list(arguments))
    while hasattr(command, "list_commands") and (rest := [*context._protected_args, *context.args]):
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def unknown_words(arguments: list[str]) -> list[str]:
    """List the commands and options that do not exist, whatever else is missing."""
    command, context, words = PROGRAM, PROGRAM.make_context("feddkd", ["status"]), list(arguments)
    while hasattr(command, "list_commands") and words and not words[0].startswith("-"):
        command = command.get_command(context, words[0])
        if command is None:
            return words[:1]
        words.pop(0)
    known = {"--help"}.union(*(set(parameter.opts) | set(parameter.secondary_opts) for parameter in command.params))
    return [word for word in words if word.startswith("-") and word not in known]


def configuration_of(context: Any) -> Path | None:
    """Find the configuration that a command names among those of the repository; None for a reader's own."""
    named = context.params.get("config")
    found = [file for folder in ("examples", "benchmarks") for file in (ROOT / folder).rglob(Path(named).name)] if named else []
    return found[0] if found else None


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if commands_of(page)], ids=name_of)
def test_commands_parse_and_their_keys_exist(page: Path) -> None:
    for arguments in commands_of(page):
        context = context_of(arguments)
        Config.load(configuration_of(context), context.params.get("override") or [])


@pytest.mark.parametrize("page", [page for page in ALL_PAGES if mentions_of(page)], ids=name_of)
def test_commands_and_options_that_are_mentioned_exist(page: Path) -> None:
    for arguments in mentions_of(page):
        assert unknown_words(arguments) == [], arguments


@pytest.mark.parametrize("arguments", [["rnu"], ["run", "--ouput", "x"], ["data", "shwo"]], ids=" ".join)
def test_what_does_not_exist_is_found(arguments: list[str]) -> None:
    with pytest.raises(Exception, match="No such"):
        context_of(arguments)
    assert unknown_words(arguments) == [next(word for word in arguments if word not in ("run", "data", "x"))]


def test_a_value_of_another_type_is_found() -> None:
    with pytest.raises(Exception, match=r"(?i)int"):
        context_of(["run", "--rounds", "many"])
