"""The table of the time that runs would take over a given network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feddkd.observability.wall_time import Link, Parts, total_parts
from feddkd.report import units
from feddkd.report.groups import Group
from feddkd.report.table import NOT_RECORDED, Data, Table, Value

CAPTION = (
    "An exchange takes a round trip, the bytes of one client down and up at the given rates, and what the mean client computed; "
    "a round also what the server did between its exchanges. Every client has a line and a machine of its own. Means over seeds."
)
"""The model of time, in the words of the page; `feddkd.observability.wall_time` says what it leaves out."""


FIELDS = ["estimate", "round_trips", "down", "computing", "up", "server", "recorded"]


def time_table(groups: Sequence[Group], link: Link) -> Table:
    """Seconds of each configuration over a network, by what takes them, and as they were recorded."""
    header = [
        *("configuration", "estimate", "round trips", "down", "computing", "up", "server"),
        "as recorded",
    ]
    rows: list[list[str]] = []
    values: list[list[Value]] = []
    for group in groups:
        parts = _mean_parts(group, link)
        recorded = math.fsum(line.seconds for run in group.runs for line in run.rounds)
        seconds = [*parts, recorded / len(group.runs)]
        values.append([group.label, group.code, *seconds])
        rows.append([group.label, *("" if own is None else units.duration(own) for own in seconds)])
        if parts[0] is None:
            rows[-1][1] = NOT_RECORDED
    data = Data(["configuration", "name", *(f"{field}_seconds" for field in FIELDS)], values)
    colors = [group.look.color for group in groups]
    return Table(header, rows, colors, caption=f"{link}. {CAPTION}", data=data, name="time", title="Time over the network")


def _mean_parts(group: Group, link: Link) -> list[float | None]:
    """The mean run's seconds in the order of the columns; None of each where a run does not know."""
    found = [total_parts(run, link) for run in group.runs]
    known = [parts for parts in found if parts is not None]
    if len(known) < len(found) or not known:
        return [None] * 6
    mean = sum(known, Parts())
    parts = (mean.total, mean.trips, mean.down, mean.compute, mean.up, mean.server)
    return [seconds / len(known) for seconds in parts]
