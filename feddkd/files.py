"""Open files that another process may have replaced."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(file: Path) -> BufferedReader:
    """Open a file to read it, but nothing that would make the reader wait for ever: no pipe and no device.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number) if number == errno.EISDIR else "Not a regular file", str(file))
    return os.fdopen(descriptor, "rb")


def read_regular(file: Path, most_bytes: int) -> bytes:
    """Read all of a file. Raises OSError, also if it is larger than `most_bytes`."""
    with open_regular(file) as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"Larger than {most_bytes:,} bytes", str(file))
    return content
