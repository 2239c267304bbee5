"""The table of codecs: what they saved, what they cost in time, and how far they changed the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from feddkd.observability.record_lines import ExchangeLine, MeasuredLine
from feddkd.report import units
from feddkd.report.groups import Group
from feddkd.report.tables import NOT_RECORDED, Table
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS, DIRECTIONS, Direction

WHOLE_RUN = "whole run"

CAPTION = (
    "What the codecs did, by exchange and direction, all rounds together. Time: of the server down and of the mean client up, "
    "as a share of the exchange's seconds, and for the whole run of all rounds' seconds. "
    "Error: the norm of what a codec changed over the norm of what it encoded."
)
SNAPSHOTS = " Whole models: the part of the encoded bytes that went to clients that lacked the model before it."


def codec_table(groups: Sequence[Group]) -> Table | None:
    """A row for each exchange and direction that had a codec, and one for the whole run; None where there was no codec."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    snapshots = any(line.snapshot_bytes_down for group in groups for line in _exchanges(group))
    for number, group in enumerate(groups):
        own = _rows(group, snapshots)
        rows += [[group.label, *row] for row in own]
        numbers += [number] * len(own)
    if not rows:
        return None
    header = ["configuration", "exchange", "", "without", "encoded", "ratio", *(["whole models"] if snapshots else []), "time", "error"]
    return Table(header, rows, numbers, caption=CAPTION + (SNAPSHOTS if snapshots else ""))


def _rows(group: Group, snapshots: bool) -> list[list[str]]:
    by_name: dict[str, list[ExchangeLine]] = {}
    for line in _exchanges(group):
        by_name.setdefault(line.exchange, []).append(line)
    rows = [
        _row(name, direction, lines, len(group.runs), snapshots)
        for name, lines in by_name.items()
        for direction in DIRECTIONS
        if _had_codec(lines, direction)
    ]
    return [*rows, _whole_run(group, snapshots)] if rows else []


def _row(name: str, direction: Direction, lines: Sequence[ExchangeLine], runs: int, snapshots: bool) -> list[str]:
    """The mean run's bytes of one kind of exchange."""
    encoded, dense = _payload_bytes(lines, direction) / runs, _dense_bytes(lines, direction) / runs
    whole_models = sum(line.snapshot_bytes_down for line in lines) / runs if direction == "down" else 0
    timed = [line for line in lines if CODEC_SECONDS[direction] in line.metrics]
    errors = [line.metrics[CODEC_ERROR[direction]] for line in lines if CODEC_ERROR[direction] in line.metrics]
    return [
        name,
        direction,
        units.size(dense),
        units.size(encoded),
        _ratio(dense, encoded),
        *([units.size(whole_models) if whole_models else ""] if snapshots else []),
        _share(_codec_seconds(timed, direction), math.fsum(line.seconds for line in timed)),
        f"{math.fsum(errors) / len(errors):.3g}" if errors else NOT_RECORDED,
    ]


def _whole_run(group: Group, snapshots: bool) -> list[str]:
    """Both directions of all exchanges, and the codecs' share of the rounds' time."""
    lines, runs = _exchanges(group), len(group.runs)
    encoded = sum(_payload_bytes(lines, direction) for direction in DIRECTIONS) / runs
    dense = sum(_dense_bytes(lines, direction) for direction in DIRECTIONS) / runs
    whole_models = sum(line.snapshot_bytes_down for line in lines) / runs
    seconds = math.fsum(_codec_seconds(lines, direction) for direction in DIRECTIONS)
    known = any(CODEC_SECONDS[direction] in line.metrics for line in lines for direction in DIRECTIONS)
    rounds = math.fsum(line.seconds for run in group.runs for line in run.rounds)
    return [
        WHOLE_RUN,
        "both",
        units.size(dense),
        units.size(encoded),
        _ratio(dense, encoded),
        *([units.size(whole_models) if whole_models else ""] if snapshots else []),
        _share(seconds, rounds) if known else NOT_RECORDED,
        "",
    ]


def _exchanges(group: Group) -> list[ExchangeLine]:
    return [line for run in group.runs for line in run.exchanges]


def _had_codec(lines: Iterable[ExchangeLine], direction: Direction) -> bool:
    lines = list(lines)
    return CODEC_SECONDS[direction] in {name for line in lines for name in line.metrics} or _payload_bytes(
        lines, direction
    ) != _dense_bytes(lines, direction)


def _payload_bytes(lines: Iterable[MeasuredLine], direction: Direction) -> int:
    return sum(line.payload_bytes_down if direction == "down" else line.payload_bytes_up for line in lines)


def _dense_bytes(lines: Iterable[MeasuredLine], direction: Direction) -> int:
    return sum(line.dense_bytes_down if direction == "down" else line.dense_bytes_up for line in lines)


def _codec_seconds(lines: Iterable[ExchangeLine], direction: Direction) -> float:
    """No less than nothing: a client's clock is its own."""
    return math.fsum(max(0.0, line.metrics.get(CODEC_SECONDS[direction], 0.0)) for line in lines)


def _ratio(dense: float, encoded: float) -> str:
    return f"{dense / encoded:.1f}" if encoded else ""


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f}%" if whole else NOT_RECORDED
