"""Sends the log to standard error: above the live progress bar on a terminal, with a time on each line elsewhere."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.logging import RichHandler

from feddkd.cli.output import error_console
from feddkd.errors import StateError
from feddkd.text import PrintableFilter

LOG = "client.log"
"""The log file of a client in its state directory."""

LOG_BYTES = 1 << 20
LOG_FILES = 4


def set_up_logging() -> None:
    """Log warnings. Does nothing where the log goes somewhere already."""
    logging.basicConfig(level=logging.WARNING, handlers=[handler_of_stderr()])


def handler_of_stderr() -> logging.Handler:
    """Make the handler that suits standard error."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=error_console(), show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(PrintableFilter())
    return handler


@contextlib.contextmanager
def log_file(file: Path) -> Iterator[None]:
    """Log what happens to a file, too, for a while. It is rotated: at most `LOG_FILES` of `LOG_BYTES` each.

    Standard error goes on to show what goes wrong, and all of it with `--verbose`.

    Raises:
        StateError: it cannot be opened.
    """
    try:
        handler = _QuietFile(file, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(PrintableFilter())
    root, package = logging.getLogger(), logging.getLogger("feddkd")
    level = package.level
    loudness, others = _as_loud_as(root.level), list(root.handlers)
    for other in others:
        other.addFilter(loudness)
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        for other in others:
            other.removeFilter(loudness)
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


class _QuietFile(logging.handlers.RotatingFileHandler):
    """A file whose disk may be full: a run does not end for its log."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Drop the entry."""


def _as_loud_as(level: int) -> Callable[[logging.LogRecord], bool]:
    """Pass what a handler would have shown without a log file; what a person was told already is not shown again."""
    return lambda record: record.levelno >= level and not getattr(record, "is_told", False)


def be_verbose(wanted: bool) -> None:
    """Log what happens, too, if `wanted`."""
    if wanted:
        logging.getLogger().setLevel(logging.INFO)
