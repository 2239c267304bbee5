"""Writes and reads journal lines: JSON objects, the first about the run, each other an event with a checksum."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json as parse_json

from feddkd.errors import StateError
from feddkd.files import read_regular
from feddkd.scheduler.events import from_json, to_json
from feddkd.scheduler.journal import Entry
from feddkd.text import printable

MAX_BYTES = 1 << 31
"""Of a journal that is read."""

FORMAT = 1
"""Version of what a journal holds."""

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a journal.

    Attributes:
        config: of the run, as TOML.
    """

    run_id: str
    config: str


def read_journal(folder: Path) -> tuple[Header, list[tuple[Entry, int]]]:
    """Read a journal up to the first line that is not whole, without changing it.

    Returns:
        The first line, and the events, each with the byte after it.

    Raises:
        StateError: it cannot be read, is not a journal, or is of another version.
    """
    file = folder / JOURNAL
    try:
        content = read_regular(file, MAX_BYTES)
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    return parse_journal(file, content)


def parse_journal(file: Path, content: bytes) -> tuple[Header, list[tuple[Entry, int]]]:
    """Read the bytes of a journal up to the first line that is not whole, as `read_journal` does.

    Args:
        file: for messages.
    """
    first, newline, rest = content.partition(b"\n")
    if not newline:
        raise StateError(f"{file} is not the journal of a run: its first line is damaged")
    header = _header(file, first)
    entries: list[tuple[Entry, int]] = []
    end = len(first) + 1
    for line in rest.splitlines(keepends=True):
        entry = _entry(len(entries), line)
        if entry is None:
            break
        end += len(line)
        entries.append((entry, end))
    return header, entries


def has_journal(folder: Path) -> bool:
    """Return whether a folder holds the journal of a run."""
    return (folder / JOURNAL).exists()


def first_line(header: Header) -> bytes:
    """Write the line that a journal begins with."""
    return (json.dumps({"format": FORMAT, "run_id": header.run_id, "config": header.config}) + "\n").encode()


def line_of(number: int, entry: Entry) -> bytes:
    """Write the line of an event, which is the journal's `number`-th from 0."""
    start = json.dumps({"seq": number, "at_s": entry.at_s, "time": entry.time})[:-1].encode()
    event = to_json(entry.event)
    return start + b', "crc32": %d, "event": ' % _checksum(start, event) + event + b"}\n"


def _checksum(start: bytes, event: bytes) -> int:
    """Of all that a line says: what stands before the checksum, and the event."""
    return zlib.crc32(event, zlib.crc32(start))


def _entry(number: int, line: bytes) -> Entry | None:
    """Read a line; None if it is not the one that was written."""
    outer, _, event = line.partition(b', "event": ')
    start, _, checksum = outer.partition(b', "crc32": ')
    if not line.endswith(b"}\n"):
        return None
    event = event[:-2]
    try:
        found = parse_json(start + b"}")
        if found["seq"] != number or int(checksum) != _checksum(start, event):
            return None
        at_s, time_s = float(found["at_s"]), float(found["time"])
        return Entry(from_json(event), at_s, time_s) if math.isfinite(at_s) and math.isfinite(time_s) else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, ValidationError):
        return None


def _header(file: Path, line: bytes) -> Header:
    try:
        found = parse_json(line)
        version, run_id, config = found["format"], found["run_id"], found["config"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StateError(f"{file} is not the journal of a run: its first line is damaged") from None
    if version != FORMAT:
        raise StateError(f"{file} is of format {printable(str(version))}; this version of feddkd reads format {FORMAT}")
    if not isinstance(run_id, str) or not isinstance(config, str):
        raise StateError(f"{file} is not the journal of a run: its first line is damaged")
    return Header(run_id, config)
