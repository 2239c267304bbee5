"""Keeps the audit log: who joined, left, was lost or refused, with which certificate, and whose contribution counted.

`audit.jsonl` has one JSON object a line, in the order of time, and is only ever added to. Each line holds the SHA-256
of the line before it, so a line that is changed or taken out later is found.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from feddkd.certs.certificate import SHOWN_NAMES, Certificate
from feddkd.errors import StateError
from feddkd.files import open_regular
from feddkd.text import printable, utc_time

logger = logging.getLogger(__name__)

AUDIT = "audit.jsonl"
FIRST = "0" * 64
"""What the first line holds in place of a hash."""

MAX_LINE_BYTES = 16 << 10
TEXT_CHARACTERS = 300


class AuditLog:
    """Writes the audit log of a server's state directory. One process at a time; the directory is locked.

    A line is handed to the system at once, so it outlives the process. Where it cannot be written, for instance
    because the disk is full, the run goes on: one warning says so, and the next line that can be written how many
    are missing.
    """

    def __init__(self, file: Path, run_id: str) -> None:
        """Go on with a file, or begin it. Raises StateError.

        Args:
            run_id: the run that the lines belong to.
        """
        self._file = file
        self._run_id = run_id
        self._missing = 0
        try:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            _cut_zeros(self._descriptor)
            last = _last_line(self._descriptor)
        except OSError as error:
            raise StateError(f"cannot write {file}: {error.strerror}") from error
        self._is_torn = bool(last) and not last.endswith(b"\n")
        self._previous = _hash(last) if last else FIRST

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def joined(self, client_id: str, address: str, certificate: Certificate | None, examples: int, unsaid: int) -> None:
        """Record that a client was admitted, and how many more events of it were since its last such line."""
        shown = _shown(certificate)
        self._write("joined", client=client_id, peer=address, examples=examples, certificate=shown, not_listed_before=unsaid)

    def left(self, client_id: str, unsaid: int) -> None:
        """Record that a client said that it takes part no more, and its stream has ended."""
        self._write("left", client=client_id, not_listed_before=unsaid)

    def ended(self, client_id: str, unsaid: int) -> None:
        """Record that a client's stream ended as both ends wanted, for instance with the run."""
        self._write("ended", client=client_id, not_listed_before=unsaid)

    def lost(self, client_id: str, reason: str, unsaid: int) -> None:
        """Record that a client's stream broke, or was ended by the server."""
        self._write("lost", client=client_id, reason=reason, not_listed_before=unsaid)

    def refused(self, client_id: str, address: str, kind: str, reason: str, certificate: Certificate | None, unsaid: int) -> None:
        """Record that a call was refused, and how many more were since the last such line."""
        shown = _shown(certificate)
        self._write("refused", client=client_id, peer=address, kind=kind, reason=reason, certificate=shown, not_listed_before=unsaid)

    def accepted(self, client_id: str, exchange: str, size_bytes: int, digest: str) -> None:
        """Record that a contribution counts."""
        self._write("accepted", client=client_id, exchange=exchange, size_bytes=size_bytes, digest=digest)

    def _write(self, event: str, **fields: Any) -> None:
        """Append a line; what is None, empty or 0 is left out."""
        found = {key: _text(value) if isinstance(value, str) else value for key, value in fields.items() if value}
        time = utc_time(datetime.datetime.now(datetime.UTC).timestamp())
        missing = {"missing_before": self._missing} if self._missing else {}
        line = {"time": time, "event": event, "run": self._run_id, **found, **missing, "previous": self._previous}
        content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(content)
        except OSError as error:
            self._missing += 1
            if self._missing == 1:
                logger.warning("cannot write %s: %s; the run goes on, and its audit log has a gap", self._file, error.strerror)
            return
        self._missing = 0
        self._previous = _hash(content)

    def _append(self, content: bytes) -> None:
        """Write a whole line. What a full disk took of one is taken back. Raises OSError."""
        if self._is_torn:
            os.write(self._descriptor, b"\n")
            self._is_torn = False
        before = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, content)
        if written < len(content):
            os.ftruncate(self._descriptor, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check of an audit log found.

    Attributes:
        lines: how many there are.
        last: SHA-256 of the last line: kept elsewhere, it shows later that no line at the end was taken away.
        torn: numbers of lines that a crash cut off; the line after each holds its hash.
    """

    lines: int
    last: str
    torn: tuple[int, ...]


def verify(file: Path) -> Verified:
    """Check that each line of an audit log holds the hash of the line before it.

    Raises:
        StateError: it does not, or the file cannot be read; the message names the line.
    """
    previous, torn, number = FIRST, list[int](), 0
    for number, line in enumerate(_lines(file), 1):
        try:
            found = json.loads(line)
            named = found["previous"]
        except (ValueError, TypeError, KeyError, RecursionError):
            torn.append(number)
        else:
            if named != previous:
                raise StateError(f"{file}, line {number}: it does not follow the line before it; a line was changed, added or removed")
        previous = _hash(line)
    return Verified(number, previous, tuple(torn))


def _lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file. Raises StateError."""
    try:
        with open_regular(file) as stream:
            while line := stream.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error


def _cut_zeros(descriptor: int) -> None:
    """Take away the zeros that a power failure can leave at the end of a file. Raises OSError."""
    size = found = os.fstat(descriptor).st_size
    while size:
        begin = max(0, size - MAX_LINE_BYTES)
        rest = os.pread(descriptor, size - begin, begin).rstrip(b"\0")
        size = begin + len(rest)
        if rest:
            break
    if size < found:
        os.ftruncate(descriptor, size)


def _last_line(descriptor: int) -> bytes:
    """Return the last line of a file, with its newline if it has one; empty for an empty file. Raises OSError."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2 * MAX_LINE_BYTES, max(0, size - 2 * MAX_LINE_BYTES))
    begin = tail.rfind(b"\n", 0, len(tail) - 1) + 1
    return tail[begin:]


def _hash(line: bytes) -> str:
    """Hash a line without its newline."""
    return hashlib.sha256(line.removesuffix(b"\n")).hexdigest()


def _shown(certificate: Certificate | None) -> dict[str, Any] | None:
    if certificate is None:
        return None
    names = certificate.names[:SHOWN_NAMES]
    return {
        "subject": certificate.subject,
        "names": [_text(name) for name in names],
        "num_names": len(certificate.names),
        "serial": certificate.shown_serial,
        "sha256": certificate.sha256.hex(),
        "not_after": certificate.ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _text(text: str) -> str:
    return printable(text, TEXT_CHARACTERS)
