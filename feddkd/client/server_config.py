"""Keeps the server's configuration, and compares it at every Join."""

from __future__ import annotations

from functools import cached_property

from feddkd.config import Config
from feddkd.config.resuming import settings_that_stay
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
        self._latest: Config | None = None
        self._compared: tuple[str, str | None] = (text, None)

    @cached_property
    def config(self) -> Config:
        """Parsed, under limits, and validated. Raises ConfigError."""
        return _parse(self.text)

    @property
    def latest(self) -> Config:
        """What the server said last: settings that may differ when the run goes on may be new. Raises ConfigError as `config`."""
        return self._latest or self.config

    def difference(self, text: str) -> str | None:
        """Return in what a manifest's configuration differs from this one; None if it does not, and then it is the latest.

        Settings count, not how they are written, and only those that have to stay while a run goes on.
        """
        if text != self._compared[0]:
            # Kept, because all clients of a process ask about the same text at every Join.
            self._compared = text, self._compare(text)
        return self._compared[1]

    def _compare(self, text: str) -> str | None:
        try:
            latest = _parse(text)
            ours, theirs = settings_that_stay(self.config), settings_that_stay(latest)
        except ConfigError as error:
            return printable(str(error))
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if not keys:
            self._latest = latest
            return None
        rest = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
        return f"differs in {printable(', '.join(keys[:KEYS_SHOWN]))}{rest}"


def _parse(text: str) -> Config:
    """Read what a server says, under limits. Raises ConfigError."""
    source = "the server's configuration"
    return Config.parse(parse_toml(text, source), source)
