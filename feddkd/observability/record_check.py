"""Compares the record of a run with what its events say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from feddkd.config import Config
from feddkd.errors import SchemaError
from feddkd.files import read_regular
from feddkd.observability.ledger import exchange_line, round_line, summarize
from feddkd.observability.run_folder import EXCHANGES, MAX_FILE, MODEL, ROUNDS, SUMMARY
from feddkd.scheduler.journal import Entry
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord
from feddkd.scheduler.state import RunState
from feddkd.tensors import Tensors
from feddkd.text import printable

OF_A_MACHINE = ("versions", "cpu_capability")
"""Keys of the summary that events do not hold."""

MOST_SAID = 3
"""Differences in one file that are named."""


@dataclass(slots=True)
class RecordCheck:
    """The result of a comparison.

    Attributes:
        compared: lines or values that are equal, by file; files that are not there are left out.
        problems: what differs, a line each.
        notes: what a run that has not ended may still lack.
    """

    compared: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


LATER = frozenset({"scores", "client_scores", "metric", "final_score", "best_score", "outliers"})
"""Fields that records of earlier versions lack."""


class _Lines(Observer):
    """Collects the lines that the ledger would write."""

    def __init__(self) -> None:
        self.exchanges: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.exchanges.append(exchange_line(record))

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(round_line(record))


def check_record(folder: Path, run_id: str, entries: Iterable[Entry], config: Config, model: Tensors | None) -> RecordCheck:
    """Compare the files of a record with a run's events.

    Args:
        folder: of the record; files that are not there are not compared.
        model: that the run has come to; None if it cannot be read.
    """
    state, lines, check = RunState(run_id, config.scheduler.quorum), _Lines(), RecordCheck()
    for entry in entries:
        for told in state.apply(entry):
            told(lines)
    is_finished = state.ended is not None
    for told in state.close():  # what a process that stops in order writes at last
        told(lines)
    for name, expected in ((EXCHANGES, lines.exchanges), (ROUNDS, lines.rounds)):
        _check_lines(folder / name, expected, check, is_finished=is_finished)
    if is_finished and model is not None:
        _check_summary(folder / SUMMARY, summarize(state.record(model), config), check)
        _check_model(folder / MODEL, model, check)
    return check


def _check_lines(file: Path, expected: list[dict[str, Any]], check: RecordCheck, *, is_finished: bool) -> None:
    try:
        content = read_regular(file, MAX_FILE)
    except FileNotFoundError:
        return
    except OSError as error:
        check.problems.append(f"cannot read {file}: {error.strerror}")
        return
    found = content.splitlines(keepends=True)
    if found and not found[-1].endswith(b"\n"):
        check.notes.append(f"{file} ends with a line that was not written to its end")
        del found[-1]
    differences = []
    for number, (line, there) in enumerate(zip(found, expected, strict=False), start=1):
        keys = _differing(line, there)
        if keys:
            differences.append(f"{file} line {number} is not what the journal says: {', '.join(keys[:MOST_SAID])}")
    check.compared[file.name] = min(len(found), len(expected)) - len(differences)
    if len(found) > len(expected):
        differences.append(f"{file} has {len(found)} lines, the journal {len(expected)}")
    elif len(found) < len(expected):
        short = f"{file} has {len(found)} lines, the journal {len(expected)}"
        (differences if is_finished else check.notes).append(short)
    check.problems += differences[:MOST_SAID]
    if len(differences) > MOST_SAID:
        check.problems.append(f"{file}: {len(differences) - MOST_SAID} more differences")


def _differing(line: bytes, expected: Mapping[str, Any]) -> list[str]:
    """The keys whose values are not the expected ones."""
    try:
        found = json.loads(line)
    except ValueError:
        return ["it is not JSON"]
    if not isinstance(found, dict):
        return ["it is not an object"]
    wanted = json.loads(json.dumps(expected))
    keys = sorted((wanted.keys() | found.keys()) - (LATER - found.keys()))
    return [printable(key) for key in keys if wanted.get(key, _differing) != found.get(key, _differing)]


def _check_summary(file: Path, expected: Mapping[str, Any], check: RecordCheck) -> None:
    try:
        content = read_regular(file, MAX_FILE)
    except FileNotFoundError:
        return
    except OSError as error:
        check.problems.append(f"cannot read {file}: {error.strerror}")
        return
    keys = [key for key in _differing(content, expected) if key not in OF_A_MACHINE]
    if keys:
        check.problems.append(f"{file} is not what the journal says: {', '.join(keys[:MOST_SAID])}")
    check.compared[file.name] = len(expected) - len(keys) - len(OF_A_MACHINE)


def _check_model(file: Path, model: Tensors, check: RecordCheck) -> None:
    if not file.exists():
        return
    try:
        found = Tensors.copy_of(model.schema, load_file(file))
    except (OSError, SafetensorError, SchemaError) as error:
        check.problems.append(f"{file} cannot be read: {printable(str(error))}")
        return
    if found.sha256() != model.sha256():
        check.problems.append(f"{file} is not the model of the last round")
    else:
        check.compared[file.name] = len(found)
