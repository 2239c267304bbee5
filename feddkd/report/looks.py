"""Colour, dashes and marker of each algorithm, the same in every picture, table and report.

FedDKD is blue and solid, FedAvg grey, the control orange and dashed, because it often lies on FedDKD.
Other algorithms get their colour from their name, not from their position. The colours are those of
Okabe and Ito and of Paul Tol, which any colour vision can tell apart; dashes and markers tell them
apart in print without colour.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from feddkd.report.names import CONTROL

BLUE, GREY, ORANGE = "#0072B2", "#7A7A7A", "#E69F00"

OTHERS = ("#009E73", "#D55E00", "#CC79A7", "#882255", "#999933")

NUM_DASHES, NUM_MARKERS = 4, 8

FEDDKD, FEDAVG = "feddkd", "fedavg"

INK, PAPER = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Look:
    """How one group of runs is drawn.

    Attributes:
        color: as `#rrggbb`.
        dashes: number of its dashes; 0 is a solid line.
        marker: number of its marker.
        front: lines with a larger number lie on top.
    """

    color: str
    dashes: int = 0
    marker: int = 0
    front: int = 0


FIXED = {
    FEDDKD: Look(BLUE, 0, 0, front=2),
    FEDAVG: Look(GREY, 0, 1, front=0),
    CONTROL: Look(ORANGE, 1, 2, front=3),
}


def looks_of(algorithms: Sequence[str]) -> list[Look]:
    """Return a look for each group of runs, given the code name of its algorithm.

    Groups of one algorithm share its hue and differ in shade, dashes and marker.
    """
    bases = FIXED | _others({name for name in algorithms if name not in FIXED})
    so_far: Counter[str] = Counter()
    looks = []
    for name in algorithms:
        looks.append(_variant(bases[name], so_far[name]))
        so_far[name] += 1
    return looks


def _others(names: set[str]) -> dict[str, Look]:
    """Each takes the hue that its name points at, or the next free one."""
    found: dict[str, Look] = {}
    taken: list[int] = []
    for name in sorted(names):
        number = zlib.crc32(name.encode())
        order = [(number + step) % len(OTHERS) for step in range(len(OTHERS))]
        hue = min(order, key=lambda place: (taken.count(place), order.index(place)))
        dashes = taken.count(hue) % NUM_DASHES
        found[name] = Look(OTHERS[hue], dashes, 3 + len(taken) % (NUM_MARKERS - 3), front=1)
        taken.append(hue)
    return found


def _variant(base: Look, number: int) -> Look:
    """The look of the group with this number among those of one algorithm."""
    color = (base.color, mixed(base.color, INK, 0.4), mixed(base.color, PAPER, 0.4))[number % 3]
    dashes = (base.dashes + number) % NUM_DASHES
    return Look(color, dashes, (base.marker + number) % NUM_MARKERS, base.front)


def mixed(color: str, other: tuple[int, int, int], share: float) -> str:
    """A colour mixed with a share of another one, as `#rrggbb`."""
    parts = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round((1 - share) * own + share * its):02X}" for own, its in zip(parts, other, strict=True))
