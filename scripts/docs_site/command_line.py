"""Write the reference of the command line from the typer application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from feddkd.cli import app

MARKER = "<!-- command line -->"


def with_command_line(markdown: str) -> str:
    """Replace the marker `<!-- command line -->` by the reference of all commands."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """Return a section for each command, with its arguments and options."""
    command = typer.main.get_command(app)
    context = command.make_context("feddkd", [], resilient_parsing=True)
    return "\n".join(_sections(command, context, level=1))


def _sections(command: Any, context: Any, level: int) -> Iterator[str]:
    if level > 1:
        yield f"{'#' * level} {context.command_path}\n"
    yield f"{(command.help or '').strip()}\n"
    yield f"```text\n{_usage(command, context)}\n```\n"
    yield from _table([parameter for parameter in command.params if not getattr(parameter, "hidden", False)], context)
    for name in getattr(command, "list_commands", lambda _: [])(context):
        child = command.get_command(context, name)
        if not child.hidden:
            yield from _sections(child, type(context)(child, parent=context, info_name=name), min(level + 1, 3))


def _usage(command: Any, context: Any) -> str:
    return " ".join([context.command_path, *command.collect_usage_pieces(context)])


def _table(parameters: list[Any], context: Any) -> Iterator[str]:
    rows = [(_names(parameter, context), _default(parameter), _cell(parameter.help or "")) for parameter in parameters]
    if any(default for _, default, _ in rows):
        yield "| argument or option | default | meaning |\n|---|---|---|"
        yield from (f"| {names} | {default} | {meaning} |" for names, default, meaning in rows)
    elif rows:
        yield "| argument or option | meaning |\n|---|---|"
        yield from (f"| {names} | {meaning} |" for names, _, meaning in rows)
    yield ""


def _names(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = parameter.metavar or parameter.display_type(context)
    return names if parameter.is_flag else f"{names} `{value}`"


def _default(parameter: Any) -> str:
    value = getattr(parameter.default, "value", parameter.default)  # of an enumeration
    if parameter.required:
        return "required"
    if getattr(parameter, "is_flag", False):
        chosen = parameter.opts if value else parameter.secondary_opts
        return f"`{chosen[0]}`" if parameter.secondary_opts else ""
    return "" if value in (None, (), []) or callable(value) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
