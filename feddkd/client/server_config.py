"""Keeps the server's configuration, and compares it at every Join."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from feddkd.config import Config
from feddkd.config.toml import parse_toml
from feddkd.errors import ConfigError
from feddkd.text import printable

KEYS_SHOWN = 3


class ServerConfig:
    """A run's configuration, as a client knows it."""

    def __init__(self, text: str, run_id: str = "") -> None:
        """Keep `text`, which is TOML; nothing is parsed yet.

        Args:
            run_id: the run that it belongs to, where that is known.
        """
        self.text = text
        self.run_id = run_id
        self._compared: tuple[str, str | None] = (text, None)

    @cached_property
    def config(self) -> Config:
        """Parsed, under limits, and validated. Raises ConfigError."""
        return _parse(self.text)

    def difference(self, text: str) -> str | None:
        """Return in what a manifest's configuration differs from this one; None if it does not.

        Settings count, not how they are written.
        """
        if text != self._compared[0]:
            # Kept, because all clients of a process ask about the same text at every Join.
            self._compared = text, self._compare(text)
        return self._compared[1]

    def _compare(self, text: str) -> str | None:
        try:
            ours, theirs = _settings(self.config), _settings(_parse(text))
        except ConfigError as error:
            return printable(str(error))
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if not keys:
            return None
        rest = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        return f"differs in {printable(', '.join(keys[:KEYS_SHOWN]))}{rest}"


def _settings(config: Config) -> dict[str, Any]:
    """All settings by their full names."""
    return dict(_flat(config.model_dump(mode="json", exclude_none=True)))


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _parse(text: str) -> Config:
    """Read what a server says, under limits. Raises ConfigError."""
    source = "the server's configuration"
    return Config.parse(parse_toml(text, source), source)
