"""Help texts: one style, examples that stay whole at 80 columns, the same options everywhere."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator

import pytest
import typer
from typer.testing import CliRunner

from feddkd import cli
from feddkd.cli import EXIT_CODES


def commands(app: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command, and its docstring."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        yield (*path, name), inspect.getdoc(command.callback) or ""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, (*path, group.name or ""))


COMMANDS = dict(commands(cli.app))


def shown(*arguments: str, width: int = 80) -> list[str]:
    done = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": str(width)})
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_leaves_examples_whole(path: tuple[str, ...]) -> None:
    lines = shown(*path, "-h")
    assert max(map(len, lines)) <= 80
    blocks = re.findall(r"```console\n(.*?)```", COMMANDS[path], re.DOTALL)
    assert len(blocks) == 1, "no examples, or not in one block"
    assert "Examples:" not in COMMANDS[path]
    for example in (line.strip() for block in blocks for line in block.splitlines()):
        assert any(example == line.strip() for line in lines)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_v_and_shows_its_arguments_without_doubled_brackets(path: tuple[str, ...]) -> None:
    text = "\n".join(shown(*path, "-h"))
    assert re.search(r"--verbose +-v", text)
    assert "[[" not in text


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_begins_with_an_imperative_sentence(path: tuple[str, ...]) -> None:
    first = COMMANDS[path].partition("\n\n")[0]
    assert re.fullmatch(r"[A-Z][a-z]+ .*\.", first, re.DOTALL)
    assert first.split()[0] not in ("Shows", "Prints", "Says")


def test_the_first_help_has_the_exit_codes_and_shell_completion() -> None:
    text = " ".join(" ".join(shown("--help")).split())
    for code in re.findall(r"\*\*(\d+)\*\*", EXIT_CODES):
        assert f" {code} " in text
    assert "75 stopped by a signal" in text
    assert "--install-completion" in text
    assert "--show-completion" in text


@pytest.mark.parametrize("arguments", [["-v", "config", "schema"], ["config", "schema", "-v"], ["config", "schema", "--verbose"]])
def test_verbose_may_stand_before_the_command_or_after_it(arguments: list[str]) -> None:
    root = logging.getLogger()
    before = root.level
    try:
        root.setLevel(logging.WARNING)
        shown(*arguments)
        assert root.level == logging.INFO
    finally:
        root.setLevel(before)


def test_version_is_a_command_and_an_option() -> None:
    assert shown("version") == shown("--version")
