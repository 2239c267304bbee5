"""Says what a client id is: one rule for command lines, files and the wire."""

from __future__ import annotations

import re

from feddkd.errors import ConfigError

PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
RULE = "1 to 64 of a-z 0-9 . _ - that begin with a letter or digit"

CLIENT_ID = re.compile(PATTERN)
"""What a client may be called; ids become parts of paths, so nothing else is let in."""


def check_client_id(text: str, what: str = "client id") -> None:
    """Check that a text is a client id.

    Args:
        what: names it in the message.

    Raises:
        ConfigError: it is none.
    """
    if not CLIENT_ID.fullmatch(text):
        raise ConfigError(f"{what} {text!r} is not {RULE}")
