"""The bars of a report: where a whole run's bytes and seconds went, or None where nothing was recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from feddkd.observability.run_folder import RunFolder
from feddkd.report import series, units
from feddkd.report.groups import Group
from feddkd.report.series import Split
from feddkd.report.style import GREY, WIDTH_INCHES, legend_below, new_figure, pale

MAX_BARS = 40
"""With more bars than this, a group gets one bar for all its exchanges."""

LETTER_INCHES = 0.066
"""Width of a letter beside a bar; one of a group's bold name takes a fifth more."""

NAME_LETTERS = 24

ALL_EXCHANGES = "all together"

BAR_PITCH = 0.95
"""From one bar to the next."""


def bytes_by_exchange(groups: Sequence[Group]) -> Figure | None:
    """Wire bytes of a whole run by exchange, down and up."""
    rows = _rows(groups, series.bytes_by_exchange)
    if not any(rows):
        return None
    divisor, unit = units.byte_unit(_largest(rows))
    figure = _split_bars(groups, rows, divisor, lambda split: units.size(split.total))
    figure.axes[0].set_xlabel(f"bytes on the wire in the whole run ({unit})")
    legend_below(figure, [Patch(color=GREY), Patch(color=pale(GREY))], ["down, to clients", "up, to the server"])
    return figure


def time_by_phase(groups: Sequence[Group]) -> Figure | None:
    """Seconds of a whole run by exchange, with the mean client's computing in them, and what was left of the rounds."""
    rows = _rows(groups, series.seconds_by_phase)
    if not any(rows):
        return None
    divisor, unit = units.time_unit(_largest(rows))
    figure = _split_bars(groups, rows, divisor, _write_time)
    figure.axes[0].set_xlabel(f"time in the whole run ({unit})")
    if any(split.first for row in rows for split in row.values()):
        handles = [Patch(color=GREY), Patch(color=pale(GREY))]
        legend_below(figure, handles, ["mean client computing", "transfer, waiting, other"])
    return figure


def _rows(groups: Sequence[Group], splits_of: Callable[[RunFolder], dict[str, Split]]) -> list[dict[str, Split]]:
    """The mean amounts of each group by what they are of; one sum a group where there would be too many bars."""
    rows = [series.mean_splits([splits_of(run) for run in group.runs]) for group in groups]
    if sum(map(len, rows)) > MAX_BARS:
        rows = [{ALL_EXCHANGES: _together(row)} if row else {} for row in rows]
    return rows


def _largest(rows: Sequence[Mapping[str, Split]]) -> float:
    return max(split.total for row in rows for split in row.values())


def _split_bars(groups: Sequence[Group], rows: Sequence[Mapping[str, Split]], divisor: float, write: Callable[[Split], str]) -> Figure:
    """Horizontal bars under their group's name; the first part of each is dark, the rest pale."""
    several = len(groups) > 1
    split_known = any(split.first is not None for row in rows for split in row.values())
    figure, axes = new_figure(0.75 + 0.23 * sum(len(row) + several for row in rows))
    longest_name = max(len(units.shortened(name, NAME_LETTERS)) for row in rows for name in row)
    width_inches = WIDTH_INCHES - 0.25 - LETTER_INCHES * longest_name  # of the axes, more or less
    largest = _largest(rows) / divisor
    position, names = 0.0, {}
    for group, row in zip(groups, rows, strict=True):
        if several:
            label = units.shortened(group.label, int(width_inches / (1.2 * LETTER_INCHES)))
            axes.text(0, position, label, color="#222222", weight="bold", va="center", fontsize=8.5)
            position += BAR_PITCH
        for name, split in row.items():
            known = split.first if split.first is not None else 0.0 if split_known else split.total
            _draw_bar(axes, position, known / divisor, split.total / divisor, group.look.color)
            axes.text(split.total / divisor + 0.015 * largest, position, write(split), va="center", fontsize=8, color="#333333")
            names[position] = units.shortened(name, NAME_LETTERS)
            position += BAR_PITCH
        position += 0.25
    # Room to the right of the longest bar for what is written there.
    written_inches = LETTER_INCHES * max(len(write(split)) for row in rows for split in row.values())
    axes.set(xlim=(0, (largest or 1.0) * width_inches / (width_inches - written_inches)), ylim=(position - 0.6, -0.6))
    _name_bars(axes, names)
    return figure


def _draw_bar(axes: Axes, position: float, first: float, total: float, color: str) -> None:
    axes.barh(position, first, color=color, height=0.7)
    axes.barh(position, total - first, left=first, color=pale(color), height=0.7)


def _name_bars(axes: Axes, names: Mapping[float, str]) -> None:
    """Each bar's name beside it, and a grid for their lengths alone."""
    axes.set_yticks(list(names), list(names.values()))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="x")


def _write_time(split: Split) -> str:
    share = f", {split.first / split.total:.0%} computing" if split.first and split.total else ""
    return units.duration(split.total) + share


def _together(row: Mapping[str, Split]) -> Split:
    firsts = [split.first for split in row.values() if split.first is not None]
    return Split(math.fsum(split.total for split in row.values()), math.fsum(firsts) if firsts else None)
