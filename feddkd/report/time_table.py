"""The table of the time that runs would take over a given network."""

from __future__ import annotations

import math
from collections.abc import Sequence

from feddkd.observability.wall_time import Link, Parts, total_parts
from feddkd.report import units
from feddkd.report.groups import Group
from feddkd.report.tables import NOT_RECORDED, Table

CAPTION = (
    "An exchange takes a round trip, the bytes of one client down and up at the given rates, and what the mean client computed; "
    "a round also what the server did between its exchanges. Every client has a line and a machine of its own. Means over seeds."
)
"""The model of time, in the words of the page; `feddkd.observability.wall_time` says what it leaves out."""


def time_table(groups: Sequence[Group], link: Link) -> Table:
    """Seconds of each configuration over a network, by what takes them, and as they were recorded."""
    header = ["configuration", "estimate", "round trips", "down", "computing", "up", "server", "as recorded"]
    rows = []
    for group in groups:
        found = [total_parts(run, link) for run in group.runs]
        recorded = math.fsum(line.seconds for run in group.runs for line in run.rounds) / len(group.runs)
        rows.append([group.label, *_cells([parts for parts in found if parts is not None], len(found)), units.duration(recorded)])
    return Table(header, rows, list(range(len(groups))), caption=f"{link}. {CAPTION}")


def _cells(found: Sequence[Parts], runs: int) -> list[str]:
    if len(found) < runs or not found:
        return [NOT_RECORDED, *[""] * 5]
    mean = sum(found, Parts())
    return [units.duration(seconds / runs) for seconds in (mean.total, mean.trips, mean.down, mean.compute, mean.up, mean.server)]
