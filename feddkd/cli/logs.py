"""Sends the log to standard error: above the live progress bar on a terminal, with a time on each line elsewhere."""

from __future__ import annotations

import logging
import sys

from rich.logging import RichHandler

from feddkd.cli.output import error_console
from feddkd.text import PrintableFilter


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


def be_verbose(wanted: bool) -> None:
    """Log what happens, too, if `wanted`."""
    if wanted:
        logging.getLogger().setLevel(logging.INFO)
