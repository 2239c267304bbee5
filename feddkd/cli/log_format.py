"""Formats the log as JSON, one line an entry."""

from __future__ import annotations

import datetime
import json
import logging
import math
import traceback
from enum import StrEnum

from feddkd.log_events import EVENT, FIELDS, OTHER

MESSAGE_LETTERS = 4_000
TRACEBACK_LETTERS = 20_000

TEXT_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class LogFormat(StrEnum):
    """What a line of the log looks like."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """Writes an entry as one JSON object on one line, in ASCII: what a terminal would obey is escaped.

    It has `time` (UTC, RFC 3339), `level`, `event`, `logger` and `message`; what the event is about, as fields beside
    these; and the `traceback` of an error.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        entry: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": getattr(record, EVENT, "native_warning" if record.name == "py.warnings" else OTHER),
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_LETTERS].rstrip("\n"),
        }
        fields: dict[str, object] = getattr(record, FIELDS, {})
        entry |= {name: _as_json(value) for name, value in fields.items()}
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))[-TRACEBACK_LETTERS:]
        return json.dumps(entry)


def _as_json(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
