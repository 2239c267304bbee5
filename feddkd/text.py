"""Makes text from outside safe to show.

A terminal obeys escape sequences, and a newline in a log entry looks like the end of the entry.
"""

from __future__ import annotations

import datetime
import logging
import traceback

SHARES = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "precision",
        "recall",
        "f1",
        "auroc",
        "average_precision",
        "iou",
        "exact_match",
    }
)
"""Metrics that are a share of 1."""

LIMIT = 500
"""Characters of one message that are shown."""


def printable(text: str, limit: int = LIMIT) -> str:
    """Escape every character that is not visible, and cut the text to `limit` characters.

    Escapes control characters, line separators, marks that reverse the direction of text,
    surrogates, and spaces other than the plain one, each as in a Python string. The work is
    bounded by `limit`, however long the text is.
    """
    shown = "".join(map(_visible, text[: limit + 1]))
    return shown if len(shown) <= limit else f"{shown[: max(limit - 3, 0)]}..."


def clock_time(in_s: float = 0.0) -> str:
    """Say which time this machine's clock will show in so many seconds, with the date if that is another day."""
    now = datetime.datetime.now().astimezone()
    then = now + datetime.timedelta(seconds=in_s)
    return then.strftime("%H:%M:%S" if then.date() == now.date() else "%Y-%m-%d %H:%M")


def utc_time(at_s: float) -> str | None:
    """Write a moment in ISO 8601, in UTC with milliseconds; None where it is not known.

    Args:
        at_s: seconds since 1970; 0 for not known.
    """
    if at_s <= 0:
        return None
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown_score(metric: str, value: float) -> str:
    """Write a metric for people: shares of 1 in per cent, other numbers with four digits."""
    return f"{value:.2%}" if metric in SHARES else f"{value:.4g}"


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


class PrintableFilter(logging.Filter):
    """Makes every log entry printable, a traceback's lines one by one. Add it to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the entry in place; it always passes."""
        record.msg, record.args = printable(record.getMessage(), 4 * LIMIT), None
        if record.exc_info and record.exc_info[1] is not None:
            lines = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
            record.exc_text = "\n".join(printable(line) for line in lines)
        return True
