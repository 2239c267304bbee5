"""Reads TOML from any source in bounded time and memory.

Python's parser is recursive, converts numbers of any length, and takes quadratic time for a long
dotted key. So a scan looks at the text first: it knows strings, comments and brackets, and counts.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feddkd.errors import ConfigError
from feddkd.text import printable

MAX_SIZE = 1 << 20
"""Bytes of a file."""

MAX_DEPTH = 16
"""Levels of tables and arrays, and parts of a dotted key."""

MAX_BRACKETS = 2 * MAX_DEPTH
"""Brackets that are open at once: an array of inline tables needs two a level."""

MAX_NUMBER = 128
"""Characters of a number."""

MAX_KEYS = 10_000
"""Keys and table headers."""

_TOKEN = re.compile(
    r"""(?P<skip> \#[^\n]* | [^\S\n]+ )
      | (?P<quote> \"\"\" | ''' | \" | ' )
      | (?P<open> [\[{] )
      | (?P<close> [\]}] )
      | (?P<equals> = )
      | (?P<separator> [,\n] )
      | (?P<dot> \. )
      | (?P<bare> [^\s"'\#\[\]{}=,.]++ )""",
    re.VERBOSE,
)

_REST_OF_STRING = {
    '"""': re.compile(r'(?:[^"\\]++|\\.|"{1,2}(?!"))*+""""{0,2}', re.DOTALL),
    "'''": re.compile(r"(?:[^']++|'{1,2}(?!'))*+''''{0,2}"),
    '"': re.compile(r'(?:[^"\\\n]++|\\[^\n])*+"'),
    "'": re.compile(r"[^'\n]*+'"),
}

_NUMBER = re.compile(r"[+-]?[0-9]")


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or exceeds a limit; the message names it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
        text = content.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        if len(content) <= MAX_SIZE:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        text = content.decode("utf-8", errors="replace")  # too long, and cut anywhere
    return parse_toml(text, str(path), max_size=MAX_SIZE)


def parse_toml(text: str, source: str, *, max_size: int = MAX_SIZE) -> dict[str, Any]:
    """Parse TOML under limits of size, depth, keys and digits; a byte order mark is ignored.

    Args:
        source: names the text in messages: a path, or who sent it.
        max_size: bytes of the text in UTF-8.

    Raises:
        ConfigError: it is no TOML, or exceeds a limit; one line that begins with `source`.
    """
    if len(text) > max_size or len(text.encode("utf-8", errors="replace")) > max_size:
        raise ConfigError(f"{source} is larger than {max_size:,} bytes")
    text = text.removeprefix("\ufeff")
    check_limits(text, source)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {printable(str(error))}") from None
    check_depth(tree, source)
    return tree


def parse_value(text: str, source: str) -> Any:
    """Parse the value of an override: TOML, or else the text itself: a bare word is a string.

    Raises:
        ConfigError: it exceeds a limit; one line that begins with `source`.
    """
    check_limits(text, source)
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return tree["value"] if len(tree) == 1 else text.strip()


def check_limits(text: str, source: str) -> None:
    """Check what a parser would choke on, in one pass; errors of syntax are left to the parser.

    Raises:
        ConfigError: naming the line.
    """
    counts = _Counts()
    for kind, token, end in _tokens(text):
        problem = counts.add(kind, token)
        if problem is not None:
            raise ConfigError(f"{source} line {text.count(chr(10), 0, end) + 1}: {problem}")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """The kind, the text and the end of each token outside strings, up to a string without an end.

    The parser reads from the beginning as well, so it gets no further than that string.
    """
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None, "every character begins a token"
        position = token.end()
        if token.lastgroup == "quote":
            rest = _REST_OF_STRING[token.group()].match(text, position)
            if rest is None:
                return
            position = rest.end()
        elif token.lastgroup != "skip":
            yield str(token.lastgroup), token.group(), position


class _Counts:
    """Counts open brackets, the parts of the key in hand, and keys."""

    def __init__(self) -> None:
        self._brackets = 0
        self._parts = 1
        self._keys = 0

    def add(self, kind: str, token: str) -> str | None:
        """Count a token; returns which limit it exceeds, or None."""
        if kind == "bare":
            is_long = len(token) > MAX_NUMBER and _NUMBER.match(token)
            return f"a number has more than {MAX_NUMBER} characters" if is_long else None
        if kind == "dot":
            self._parts += 1
            return f"a key has more than {MAX_DEPTH} parts" if self._parts > MAX_DEPTH else None
        self._parts = 1
        if kind == "open":
            self._brackets += 1
            self._keys += self._brackets == 1  # of a table's header
        elif kind == "close":
            self._brackets = max(self._brackets - 1, 0)
        elif kind == "equals":
            self._keys += 1
        if self._brackets > MAX_BRACKETS:
            return f"more than {MAX_BRACKETS} brackets are open"
        return f"there are more than {MAX_KEYS:,} keys" if self._keys > MAX_KEYS else None


def check_depth(tree: dict[str, Any], source: str) -> None:
    """Check that tables and arrays are nested at most `MAX_DEPTH` deep. Raises ConfigError."""
    level: list[Any] = [tree]
    for _ in range(MAX_DEPTH):
        inner = [list(value.values()) if isinstance(value, dict) else value for value in level]
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise ConfigError(f"{source}: tables and arrays are nested more than {MAX_DEPTH} deep")
