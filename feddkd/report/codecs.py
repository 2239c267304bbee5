"""The table of codecs: what they saved, what they cost in time, and how far they changed the tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feddkd.observability.record_lines import ExchangeLine, MeasuredLine
from feddkd.report import units
from feddkd.report.groups import Group
from feddkd.report.table import NOT_RECORDED, Data, Table, Value
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS, DIRECTIONS, Direction

WHOLE_RUN = "whole run"

CAPTION = (
    "What the codecs did, by exchange and direction, all rounds together. Time: of the server down and of the mean client up, "
    "as a share of the exchange's seconds, and for the whole run of all rounds' seconds. "
    "Error: the norm of what a codec changed over the norm of what it encoded."
)
SNAPSHOTS = " Whole models: the part of the encoded bytes that went to clients that lacked the model before it."

FIELDS = [
    *("configuration", "name", "exchange", "direction", "dense_bytes", "encoded_bytes"),
    *("whole_model_bytes", "codec_share_of_seconds", "error"),
]


@dataclass(frozen=True, slots=True)
class Effect:
    """What a codec did to one kind of exchange in one direction, in the mean run.

    Attributes:
        direction: `both` for the whole run.
        dense_bytes: what the tensors would have taken without it.
        share: of the seconds that it took; None if they were not recorded.
        error: None likewise, and for the whole run.
    """

    exchange: str
    direction: str
    dense_bytes: float
    encoded_bytes: float
    whole_model_bytes: float
    share: float | None
    error: float | None


def codec_table(groups: Sequence[Group]) -> Table | None:
    """A row for each exchange and direction that had a codec, and one for the whole run; None where there was no codec."""
    found = [(group, effect) for group in groups for effect in _effects(group)]
    if not found:
        return None
    snapshots = any(effect.whole_model_bytes for _, effect in found)
    header = [
        *("configuration", "exchange", "", "without", "encoded", "ratio"),
        *(["whole models"] if snapshots else []),
        *("time", "error"),
    ]
    rows = [[group.label, *_cells(effect, snapshots)] for group, effect in found]
    data = Data(FIELDS, [[group.label, group.code, *_values(effect)] for group, effect in found])
    colors = [group.look.color for group, _ in found]
    caption = CAPTION + (SNAPSHOTS if snapshots else "")
    return Table(header, rows, colors, caption=caption, data=data, name="codecs", title="Codecs")


def _cells(effect: Effect, snapshots: bool) -> list[str]:
    whole = units.size(effect.whole_model_bytes) if effect.whole_model_bytes else ""
    no_error = "" if effect.exchange == WHOLE_RUN else NOT_RECORDED
    return [
        effect.exchange,
        effect.direction,
        units.size(effect.dense_bytes),
        units.size(effect.encoded_bytes),
        _ratio(effect.dense_bytes, effect.encoded_bytes),
        *([whole] if snapshots else []),
        NOT_RECORDED if effect.share is None else f"{100 * effect.share:.1f}%",
        no_error if effect.error is None else f"{effect.error:.3g}",
    ]


def _values(effect: Effect) -> list[Value]:
    return [
        effect.exchange,
        effect.direction,
        effect.dense_bytes,
        effect.encoded_bytes,
        effect.whole_model_bytes,
        effect.share,
        effect.error,
    ]


def _effects(group: Group) -> list[Effect]:
    by_name: dict[str, list[ExchangeLine]] = {}
    for line in _exchanges(group):
        by_name.setdefault(line.exchange, []).append(line)
    effects = [
        _effect(name, direction, lines, len(group.runs))
        for name, lines in by_name.items()
        for direction in DIRECTIONS
        if _had_codec(lines, direction)
    ]
    return [*effects, _whole_run(group)] if effects else []


def _effect(name: str, direction: Direction, lines: Sequence[ExchangeLine], runs: int) -> Effect:
    """The mean run's bytes of one kind of exchange."""
    timed = [line for line in lines if CODEC_SECONDS[direction] in line.metrics]
    key = CODEC_ERROR[direction]
    errors = [line.metrics[key] for line in lines if key in line.metrics]
    whole = sum(line.snapshot_bytes_down for line in lines) if direction == "down" else 0
    return Effect(
        name,
        direction,
        _dense_bytes(lines, direction) / runs,
        _payload_bytes(lines, direction) / runs,
        whole / runs,
        _share(_codec_seconds(timed, direction), math.fsum(line.seconds for line in timed)),
        math.fsum(errors) / len(errors) if errors else None,
    )


def _whole_run(group: Group) -> Effect:
    """Both directions of all exchanges, and the codecs' share of the rounds' time."""
    lines, runs = _exchanges(group), len(group.runs)
    seconds = math.fsum(_codec_seconds(lines, direction) for direction in DIRECTIONS)
    known = any(CODEC_SECONDS[direction] in line.metrics for line in lines for direction in DIRECTIONS)
    rounds = math.fsum(line.seconds for run in group.runs for line in run.rounds)
    return Effect(
        WHOLE_RUN,
        "both",
        sum(_dense_bytes(lines, direction) for direction in DIRECTIONS) / runs,
        sum(_payload_bytes(lines, direction) for direction in DIRECTIONS) / runs,
        sum(line.snapshot_bytes_down for line in lines) / runs,
        _share(seconds, rounds) if known else None,
        None,
    )


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


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
