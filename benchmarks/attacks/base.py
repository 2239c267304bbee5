"""Defines what an attack is: what a hostile client sends in place of what it computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.tensors import Segment, Tensors


@dataclass(frozen=True, slots=True)
class Seen:
    """What an attacker knows when it replies.

    Attributes:
        task: what the server asked for.
        reply: what an honest client computes on the attacker's own data.
        honest: contributions of all honest clients to this exchange. Only an attack that says so
            (`sees_others`) gets them: no client of a real federation receives them, so it is the
            worst case.
        clients: how many take part, attackers included.
        attackers: how many of them send the same.
        rounds: how many the run has.
        seed: of the attacker's random numbers in this exchange.
    """

    task: Task
    reply: Reply
    honest: Sequence[Tensors] = field(default=())
    clients: int = 1
    attackers: int = 1
    rounds: int = 1
    seed: int = 0


class Attack:
    """What a hostile client does; this one is honest, subclasses change a part of it.

    Attributes:
        title: says it in a table.
        paper: that it is from; empty where it is our own.
        sees_others: whether it needs to see the contributions of the honest clients.
        on_tensors: whether it changes contributions, so that it may be limited to some exchanges.
        only_for: the algorithm that it has a meaning for; all where it is None.
    """

    title: ClassVar[str] = "none"
    paper: ClassVar[str] = ""
    sees_others: ClassVar[bool] = False
    on_tensors: ClassVar[bool] = False
    only_for: ClassVar[str | None] = None

    def labels(self, labels: Tensor) -> Tensor:
        """Return the labels that the attacker computes with, int64 [n], in place of the true ones."""
        return labels

    def claims(self, counts: ExampleCounts, most: int) -> ExampleCounts:
        """Return how many examples it says that it has, where the server admits `most`."""
        return counts

    def reply(self, seen: Seen) -> Reply:
        """Return what is sent; called only where there is a contribution."""
        return seen.reply


def each_segment(contribution: Tensors, change: Callable[[Segment, Tensor], Tensor]) -> Tensors:
    """Make a contribution of another one, the elements of one floating-point dtype at a time.

    Args:
        change: gets a segment and its elements in float64, flat; returns as many. Integers and
            bools stay.
    """
    out = Tensors(contribution.schema, contribution.block.clone())
    for segment in contribution.schema.segments:
        if segment.dtype.is_floating_point:
            out.elements(segment).copy_(change(segment, contribution.elements(segment).double()))
    return out


def stacked(contributions: Sequence[Tensors], segment: Segment) -> Tensor:
    """Return the elements of a segment of each contribution, float64 [contributions, elements]."""
    return torch.stack([each.elements(segment).double() for each in contributions])
