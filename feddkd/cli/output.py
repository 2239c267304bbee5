"""Prints results on standard output, and everything else on standard error.

A pipe that is closed, or a full disk behind a redirection, must not end a run that goes on, nor a
command with a traceback.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from feddkd.errors import RunError

if TYPE_CHECKING:
    from feddkd.report.table import Table as ReportTable

LINE_LETTERS = 2000
"""Letters of a line that holds what a client said."""

MOST_LISTED = 10
"""Clients that a line names."""

LABEL_LETTERS = 24
"""Where a row has a longer label, labels are folded if there is too little room."""

WIDTH = 80
"""Columns of tables where no terminal says how wide it is."""


class SafeConsole(Console):
    """A console that raises BrokenPipeError for a closed pipe; rich ends the whole program."""

    def on_broken_pipe(self) -> None:
        """Called where the error is handled: raises it again."""
        raise


def error_console() -> Console:
    """The console for what a person wants to see while a command works."""
    return SafeConsole(stderr=True)


def note(console: Console, text: str) -> None:
    """Print a line for a person, or give up: a terminal that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def say(text: str, *, newline: bool = True) -> None:
    """Print a result.

    Raises:
        typer.Exit: nobody reads standard output any more.
        RunError: it cannot be written.
    """
    with _standard_output():
        typer.echo(text, nl=newline)


def present(*renderables: RenderableType, width: int | None = None) -> None:
    """Print tables and the like as a result. Raises as `say` does."""
    console = SafeConsole(width=None if sys.stdout.isatty() else width)
    with _standard_output():
        for renderable in renderables:
            console.print(renderable, highlight=False)


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # What is left in the buffer would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from None
        raise RunError(f"cannot write to standard output: {error.strerror}") from error


def as_terminal_table(table: ReportTable, title: str) -> Table:
    """A table of the report, for the terminal; the cells that stand out are bold."""
    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=table.caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    first, *others = table.header
    longest = max((len(row[0]) for row in table.rows), default=0)
    shown.add_column(first, no_wrap=longest <= LABEL_LETTERS, overflow="fold")
    for name in others:
        shown.add_column(name, justify="right")
    for number, row in enumerate(table.rows):
        shown.add_row(*(Text(cell, style="bold" if (number, column) in table.strong else "") for column, cell in enumerate(row)))
    return shown


def megabytes(size_bytes: int) -> str:
    """Millions of bytes."""
    return f"{size_bytes / 1e6:.2f} MB"


def size(size_bytes: int) -> str:
    """A number of bytes with the unit that fits it."""
    return f"{size_bytes / 1e3:.2f} kB" if size_bytes < 1e6 else megabytes(size_bytes)


def counted_examples(labelled: int, unlabelled: int) -> str:
    """How many examples have a label, and how many have none."""
    return f"{labelled:,} labelled, {unlabelled:,} unlabelled"


def listed(items: Sequence[str]) -> str:
    """The first items, and how many more there are."""
    shown = ", ".join(items[:MOST_LISTED])
    return shown if len(items) <= MOST_LISTED else f"{shown} and {len(items) - MOST_LISTED} more"
