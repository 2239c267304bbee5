"""Reads a client's join token: from a file or the environment, never from the command line, which others can list."""

from __future__ import annotations

import logging
import os
import re
import stat
from pathlib import Path

from feddkd.errors import ConfigError
from feddkd.files import open_regular

logger = logging.getLogger(__name__)

VARIABLE = "FEDDKD_JOIN_TOKEN"
_TOKEN = re.compile(r"fdk_[A-Za-z0-9_-]{43}")


def read_join_token(file: Path | None) -> str:
    """Return the token in a file, else that in the environment; empty if there is neither.

    Spaces and line ends around it do not count. Warns of a file that other users can read; containers often
    mount secrets so.

    Raises:
        ConfigError: the file cannot be read, or what was found is no token; the message does not repeat it.
    """
    if file is None:
        return _checked(os.environ.get(VARIABLE, ""), VARIABLE)
    try:
        with open_regular(file) as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = stream.read(1024).decode("ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read --join-token-file {file}: {error.strerror}") from error
    if mode & 0o077:
        logger.warning("--join-token-file %s can be read by other users (mode %03o): chmod 600", file, mode)
    if not text.strip():
        raise ConfigError(f"--join-token-file {file} is empty")
    return _checked(text, f"--join-token-file {file}")


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if token and not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where} holds no join token, as `feddkd tokens make` prints it")
    return token
