"""Reads back what a run leaves behind (`--out DIR`), for the report and for comparisons."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feddkd.config import Config
from feddkd.errors import StateError

CONFIG = "config.toml"
EXCHANGES = "exchanges.jsonl"
ROUNDS = "rounds.jsonl"
PARTITION = "partition.json"
SUMMARY = "summary.json"
MODEL = "model.safetensors"

ROUND_KEYS = ("round", "cumulative_wire_bytes", "seconds")
EXCHANGE_KEYS = ("round", "exchange", "wire_bytes_down", "wire_bytes_up", "seconds")
"""What every record has; readers take the other keys as they come, for older records lack some of them."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The record of one run, finished or not.

    Attributes:
        rounds: the objects of `rounds.jsonl`.
        exchanges: the objects of `exchanges.jsonl`.
        summary: the object of `summary.json`, or None while the run is not complete.
        partition: examples of each class at each simulated client, or None where the server does not know.
    """

    path: Path
    config: Config
    rounds: list[dict[str, Any]]
    exchanges: list[dict[str, Any]]
    summary: dict[str, Any] | None
    partition: dict[str, list[int]] | None

    @classmethod
    def load(cls, path: Path) -> RunFolder:
        """Read a folder that `feddkd run` or `feddkd server` wrote.

        Raises:
            StateError: it holds no run, or a file in it is damaged; the message names the file and the line.
        """
        return cls(
            path=path,
            config=_config(path / CONFIG),
            rounds=_lines(path / ROUNDS, ROUND_KEYS),
            exchanges=_lines(path / EXCHANGES, EXCHANGE_KEYS),
            summary=_object(path / SUMMARY),
            partition=_object(path / PARTITION),
        )

    @property
    def accuracy(self) -> list[float]:
        """Accuracy of the global model after each evaluated round."""
        return [line["accuracy"] for line in self.rounds if line.get("accuracy") is not None]


def _config(file: Path) -> Config:
    try:
        return Config.parse(tomllib.loads(file.read_text(encoding="utf-8")), source=str(file))
    except OSError as error:
        raise StateError(f"{file.parent} does not hold the record of a run: cannot read {file.name}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StateError(f"{file} is not valid TOML: {error}") from error


def _lines(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """One JSON object a line; a last line that a crash cut short is left out."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise StateError(f"{file.parent} does not hold the record of a run: cannot read {file.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StateError(f"{file} is not text: {error}") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise StateError(f"{file} line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise StateError(f"{file} line {number} is not a JSON object")
        if missing := [key for key in keys if key not in value]:
            raise StateError(f"{file} line {number} has no {missing[0]!r}")
        found.append(value)
    return found


def _object(file: Path) -> Any:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StateError(f"{file} is unreadable: {error}") from error
    if not isinstance(value, dict):
        raise StateError(f"{file} is not a JSON object")
    return value
