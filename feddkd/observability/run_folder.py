"""Reads the record of a run (`--out DIR`), for the report and for comparisons."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json

from feddkd.config import Config, MainMetric
from feddkd.config.toml import load_toml
from feddkd.errors import ConfigError, StateError
from feddkd.files import open_regular
from feddkd.observability.record_lines import ExchangeLine, Line, RoundLine, Summary, problem_of
from feddkd.text import printable

CONFIG = "config.toml"
EXCHANGES = "exchanges.jsonl"
ROUNDS = "rounds.jsonl"
PARTITION = "partition.json"
CLASSES = "classes.json"
SUMMARY = "summary.json"
MODEL = "model.safetensors"

BEGUN = (PARTITION, "journal.jsonl", "status.json")
"""Files that a run writes before its first exchange; the modules that write the last two import torch."""

RUN_COMMENT = "# run "
"""`config.toml` begins with it in the record of a server's run; the run's id follows."""

MAX_FILE = 1 << 31
"""Bytes of a file of lines."""

MAX_LINE = 16 << 20
"""Bytes of one line."""

MAX_OBJECT = 64 << 20
"""Bytes of a file that is one object."""

MAX_LINES = 1_000_000

MOST_EXAMPLES = 2**53
"""Of one class at one client."""

AnyLine = TypeVar("AnyLine", bound=Line)


def has_record(folder: Path) -> bool:
    """Return whether a run has written to its record in a folder."""
    file = folder / EXCHANGES
    return file.is_file() and file.stat().st_size > 0


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Reads the record of one run, finished or not.

    Attributes:
        rounds: the lines of `rounds.jsonl`.
        exchanges: the lines of `exchanges.jsonl`.
        summary: the object of `summary.json`, or None while the run is not complete.
        partition: examples of each class at each simulated client, or None without a simulation.
        model_bytes: of the global model's tensors, without a codec; None without `model.safetensors`.
    """

    path: Path
    config: Config
    rounds: list[RoundLine]
    exchanges: list[ExchangeLine]
    summary: Summary | None
    partition: dict[str, list[int]] | None
    model_bytes: int | None = None

    @classmethod
    def load(cls, path: Path) -> RunFolder:
        """Read a folder that `feddkd run` or `feddkd server` wrote.

        Raises:
            StateError: it holds no run, or a file in it is damaged; the message names file and line.
        """
        config, is_empty = _config(path / CONFIG), _is_without_lines(path)
        return cls(
            path=path,
            config=config,
            rounds=[] if is_empty else _lines(path / ROUNDS, RoundLine),
            exchanges=[] if is_empty else _lines(path / EXCHANGES, ExchangeLine),
            summary=_summary(path / SUMMARY),
            partition=_partition(path / PARTITION),
            model_bytes=_tensor_bytes(path / MODEL),
        )

    @property
    def metric(self) -> MainMetric:
        """What decides which of its rounds is the best."""
        return MainMetric.of(self.config)

    @property
    def scores(self) -> list[float]:
        """That metric of the global model after each evaluated round: on the test set, or on what the clients hold out."""
        found = [line.score(self.metric.name) for line in self.rounds]
        if all(score is None for score in found):
            found = [line.client_score(self.metric.name) for line in self.rounds]
        return [score for score in found if score is not None]


def _config(file: Path) -> Config:
    if not file.exists():
        raise _no_record(file, os.strerror(errno.ENOENT))
    try:
        return Config.parse(load_toml(file), source=str(file))
    except ConfigError as error:
        raise StateError(str(error)) from None


def _is_without_lines(folder: Path) -> bool:
    """Whether a run began there and ended before its first exchange: it leaves no files of lines."""
    if (folder / ROUNDS).exists() or (folder / EXCHANGES).exists():
        return False
    if any((folder / name).exists() for name in BEGUN):
        return True
    with open_regular(folder / CONFIG) as stream:
        return stream.readline(MAX_LINE).startswith(RUN_COMMENT.encode())


def _no_record(file: Path, reason: str | None) -> StateError:
    return StateError(f"{file.parent} does not hold the record of a run: cannot read {file.name}: {reason}")


def _lines(file: Path, kind: type[AnyLine]) -> list[AnyLine]:
    """One JSON object a line; a last line that a crash cut short is left out."""
    found: list[AnyLine] = []
    for number, line in enumerate(_complete_lines(file), start=1):
        if number > MAX_LINES:
            raise StateError(f"{file} has more than {MAX_LINES:,} lines")
        try:
            found.append(kind.model_validate_json(line))
        except ValidationError as error:
            raise StateError(f"{file} line {number} {problem_of(error)}") from None
    return found


def _complete_lines(file: Path) -> Iterator[bytes]:
    try:
        if file.stat().st_size > MAX_FILE:
            raise StateError(f"{file} is larger than {MAX_FILE:,} bytes")
        with open_regular(file) as stream:
            for number in range(1, MAX_LINES + 2):
                line = stream.readline(MAX_LINE)
                if not line.endswith(b"\n"):
                    if len(line) == MAX_LINE:
                        raise StateError(f"{file} line {number} is longer than {MAX_LINE:,} bytes")
                    return
                yield line
    except OSError as error:
        raise _no_record(file, error.strerror) from error


def _summary(file: Path) -> Summary | None:
    content = _content(file)
    if content is None:
        return None
    try:
        return Summary.model_validate_json(content)
    except ValidationError as error:
        raise StateError(f"{file} {problem_of(error)}") from None


def _partition(file: Path) -> dict[str, list[int]] | None:
    """Checked by hand: of a million wrong clients, pydantic would list a million problems."""
    content = _content(file)
    if content is None:
        return None
    try:
        clients = from_json(content)
    except ValueError as error:
        raise StateError(f"{file} is not JSON: {printable(str(error))}") from None
    if not isinstance(clients, dict):
        raise StateError(f"{file} is not a JSON object")
    for client, counts in clients.items():
        if not isinstance(counts, list) or not all(map(_is_count, counts)):
            name = printable(client, 80)
            raise StateError(f"{file}: {name} does not have a list of example counts")
    return clients


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_EXAMPLES


def _tensor_bytes(file: Path) -> int | None:
    """Bytes of the tensors in a safetensors file: what follows its header, whose length its first 8 bytes say."""
    try:
        with open_regular(file) as stream:
            header_bytes = int.from_bytes(stream.read(8), "little")
            tensor_bytes = os.fstat(stream.fileno()).st_size - 8 - header_bytes
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    return tensor_bytes if tensor_bytes > 0 else None


def _content(file: Path) -> bytes | None:
    """The bytes of a small file, or None if there is none."""
    try:
        with open_regular(file) as stream:
            content = stream.read(MAX_OBJECT + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {file}: {error.strerror}") from error
    if len(content) > MAX_OBJECT:
        raise StateError(f"{file} is larger than {MAX_OBJECT:,} bytes")
    return content
