"""Expands `~` where a shell does not: in quotes, and after the equals sign of an option."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import expanduser


def expanded(arguments: Iterable[str]) -> list[str]:
    """Expand `~/...` and `--option=~/...` among command line arguments."""
    return [_expanded(argument) for argument in arguments]


def _expanded(argument: str) -> str:
    option, equals, path = argument.partition("=")
    if option.startswith("--") and equals and path.startswith("~"):
        return f"{option}={expanduser(path)}"  # noqa: PTH111  # a text that begins with ~ need not be a path
    return expanduser(argument)  # noqa: PTH111
