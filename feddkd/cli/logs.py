"""Sends the log to standard error: above the live progress bar on a terminal, with a time on each line elsewhere."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.logging import RichHandler

from feddkd.cli.log_format import TEXT_FORMAT, JsonLines, LogFormat
from feddkd.cli.log_stream import LogStream
from feddkd.cli.output import error_console, say_in_log
from feddkd.errors import StateError
from feddkd.log_events import EVENT, about
from feddkd.standard_error import PatientStream
from feddkd.text import PrintableFilter

logger = logging.getLogger(__name__)

LOG = "client.log"
"""The log file of a client in its state directory."""

LOG_BYTES = 1 << 20
LOG_FILES = 4


SHOWN_BY_A_SERVER = frozenset({"client_joined", "client_left", "client_lost", "client_refused"})
"""Events that a server tells a person, who did not ask for more."""


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
        handler.setFormatter(logging.Formatter(TEXT_FORMAT))
    handler.addFilter(PrintableFilter())
    handler.addFilter(_loudness)
    return handler


class _Loudness:
    """Passes what a person wants to see: what goes wrong or, with `--verbose`, all; and some events.

    Attributes:
        events: that are shown in any case.
    """

    def __init__(self) -> None:
        self.events: frozenset[str] = frozenset()

    def __call__(self, record: logging.LogRecord) -> bool:
        """What a person was told already is not shown again."""
        is_loud = record.levelno >= logging.getLogger().level or getattr(record, EVENT, "") in self.events
        return is_loud and not getattr(record, "is_told", False)


_loudness = _Loudness()


def start_log(log_format: LogFormat, file: Path | None, shown: frozenset[str] = frozenset()) -> None:
    """Let the log of this process go where it is wanted, from now on.

    Args:
        log_format: with JSON, all that a person would be told on standard error is in the log instead.
        file: holds it, too. It is rotated: at most `LOG_FILES` of `LOG_BYTES` each.
        shown: events that standard error shows in any case.

    Raises:
        StateError: the file cannot be opened.
    """
    _loudness.events = shown
    root = logging.getLogger()
    if file is not None:
        root.addHandler(_file_handler(file, log_format))
    if log_format is LogFormat.JSON:
        root.handlers = [handler for handler in root.handlers if _loudness not in handler.filters]
        handler = logging.StreamHandler()
        handler.setFormatter(JsonLines())
        root.addHandler(handler)
        say_in_log(True)
        before = sys.stderr
        if isinstance(before, PatientStream):
            before.notice = _notice_in_json
        sys.stderr = LogStream(before)
        if sys.stdout is before:  # what a command's results do not need
            sys.stdout = sys.stderr
    if file is not None or log_format is LogFormat.JSON:
        logging.captureWarnings(True)
    if file is not None or log_format is LogFormat.JSON or shown:
        logging.getLogger("feddkd").setLevel(logging.INFO)


def _notice_in_json(lost: int) -> str:
    """Write how many lines were lost, because standard error was not read."""
    text = f"{lost} lines were lost, because standard error was not read"
    record = logger.makeRecord(logger.name, logging.WARNING, __file__, 0, text, (), None, extra=about("lines_lost", lines=lost))
    return f"{JsonLines().format(record)}\n"


def _file_handler(file: Path, log_format: LogFormat) -> logging.Handler:
    """Open a log file. Raises StateError."""
    try:
        handler = _QuietFile(file, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}") from error
    if log_format is LogFormat.JSON:
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter(TEXT_FORMAT))
        handler.addFilter(PrintableFilter())
    return handler


@contextlib.contextmanager
def log_file(file: Path, log_format: LogFormat = LogFormat.TEXT) -> Iterator[None]:
    """Log what happens to a file, too, for a while. It is rotated: at most `LOG_FILES` of `LOG_BYTES` each.

    Standard error goes on to show what goes wrong, and all of it with `--verbose`.

    Raises:
        StateError: it cannot be opened.
    """
    handler = _file_handler(file, log_format)
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
