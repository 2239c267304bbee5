"""Prints results on standard output, and everything else on standard error.

A pipe that is closed, or a full disk behind a redirection, must not end a run that goes on, nor a
command with a traceback.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ParamSpec, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from feddkd.errors import RunError
from feddkd.log_events import about
from feddkd.text import printable

if TYPE_CHECKING:
    from feddkd.report.table import Table as ReportTable

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2

LINE_LETTERS = 2000
"""Letters of a line that holds what a client said."""

LABEL_LETTERS = 24
"""Where a row has a longer label, labels are folded if there is too little room."""

WIDTH = 80
"""Columns of tables where no terminal says how wide it is."""

NAME_WIDTH = 18
"""Characters for the name of a field."""


class _Told:
    """Where lines for people go.

    Attributes:
        in_log: they are entries of the log.
    """

    def __init__(self) -> None:
        self.in_log = False


_told = _Told()


class SafeConsole(Console):
    """A console that raises BrokenPipeError for a closed pipe; rich ends the whole program."""

    def on_broken_pipe(self) -> None:
        """Called where the error is handled: raises it again."""
        raise


@functools.cache
def error_console() -> Console:
    """Return the console for what a person wants to see while a command works.

    It is one object: a line of the log or of a command then appears above the live progress bar, never inside it.
    """
    return SafeConsole(stderr=True)


def say_in_log(wanted: bool) -> None:
    """Let what people are told be entries of the log, or lines for people again."""
    _told.in_log = wanted


def is_said_in_log() -> bool:
    """Whether standard error is for programs."""
    return _told.in_log


def note(console: Console, text: str) -> None:
    """Tell a person a line, folded between words on a terminal. Raises nothing where the terminal is gone."""
    if _told.in_log:
        logger.info("%s", text, extra=about("notice"))
        return
    with contextlib.suppress(OSError):
        console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def announce(command: str, what: str, overrides: Sequence[str]) -> None:
    """Say what a command is about to do, before it imports torch, which takes seconds."""
    changed = f" with {len(overrides)} override{'s' if len(overrides) > 1 else ''}" if overrides else ""
    note(error_console(), printable(f"feddkd {command}: {what}{changed}", LINE_LETTERS))


def say(text: str, *, newline: bool = True) -> None:
    """Print a result.

    Raises:
        typer.Exit: nobody reads standard output any more.
        RunError: it cannot be written.
    """
    with _standard_output():
        typer.echo(text, file=_results.stream, nl=newline)


def output_is_terminal() -> bool:
    """Whether results go to a terminal."""
    return _results.stream.isatty()


def check_output() -> None:
    """Write what is left of standard output. Raises as `say` does."""
    with _standard_output():
        _results.stream.flush()


def output_width() -> int:
    """Return the columns of standard output, or `WIDTH` where it is no terminal."""
    return SafeConsole(file=_results.stream).width if output_is_terminal() else WIDTH


def say_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print results as names and values, one a line; on a terminal a long value is folded below itself. Raises as `say` does."""
    width = output_width() if output_is_terminal() else None
    for name, value in fields:
        say("\n".join(_field_lines(name, printable(value, LINE_LETTERS), width)))


def _field_lines(name: str, value: str, width: int | None) -> list[str]:
    """Fold a value between words. One with a word that does not fit gets the whole width, on lines of its own.

    Args:
        width: of the terminal; None for lines of any length.
    """
    head = f"  {name:<{NAME_WIDTH}} "
    if width is None or len(head) + len(value) <= width:
        return [head + value]
    room = max(width - len(head), 1)
    lines = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
    if all(len(line) <= room for line in lines):
        return [head + lines[0], *(" " * len(head) + line for line in lines[1:])]
    lines = textwrap.wrap(value, max(width - 4, 1), break_long_words=False, break_on_hyphens=False)
    return [head.rstrip(), *(f"    {line}" for line in lines)]


def present(*renderables: RenderableType, width: int | None = None) -> None:
    """Print tables and the like as a result. Raises as `say` does."""
    console = SafeConsole(file=_results.stream, width=None if output_is_terminal() else width)
    with _standard_output():
        for renderable in renderables:
            console.print(renderable, highlight=False)


def prints_results(command: Callable[_P, None]) -> Callable[_P, None]:
    """Keep standard output for the results of a command: all else that is written there goes to standard error."""

    @functools.wraps(command)
    def on_its_own(*args: _P.args, **kwargs: _P.kwargs) -> None:
        with _results.alone():
            command(*args, **kwargs)

    return on_its_own


class _Results:
    """Where results are printed: standard output, or what that was before everything else was sent elsewhere."""

    def __init__(self) -> None:
        self._kept: TextIO | None = None

    @property
    def stream(self) -> TextIO:
        return self._kept or sys.stdout

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Send what a user's own code, its libraries and its processes print to standard error for a while."""
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_kept", self._kept)
            self._kept = stack.enter_context(_descriptor_moved()) or sys.stdout
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield


@contextlib.contextmanager
def _descriptor_moved() -> Iterator[TextIO | None]:
    """Put standard error in the place of standard output below Python, for code in C and for other processes.

    Yields what standard output was; None where Python does not print there, or there is no standard error.
    """
    try:
        if sys.stdout.fileno() != STANDARD_OUTPUT:
            raise OSError
        sys.stdout.flush()
        kept = os.dup(STANDARD_OUTPUT)
        os.dup2(STANDARD_ERROR, STANDARD_OUTPUT)
    except (OSError, ValueError, AttributeError):
        yield None
        return
    with os.fdopen(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors) as stream:
        try:
            yield stream
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os.dup2(kept, STANDARD_OUTPUT)


_results = _Results()


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
        _results.stream.flush()
    except OSError as error:
        # What is left in the buffer would fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _results.stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(1) from None
        raise RunError(f"cannot write to standard output: {error.strerror}") from error


def as_terminal_table(table: ReportTable) -> Table:
    """A table of the report, for the terminal; the cells that stand out are bold."""
    shown = Table(
        title=table.title,
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


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say on standard error what takes a moment: on a terminal for as long as it does, elsewhere in a line."""
    console = error_console()
    if is_said_in_log() or not console.is_terminal:
        note(console, what)
        yield
        return
    with console.status(what):
        yield
