"""Stays within the spread of the honest clients.

Baruch, Baruch, Goldberg: A Little Is Enough: Circumventing Defenses For Distributed Learning.
NeurIPS 2019, arXiv 1902.06156.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks.base import Attack, Seen, each_segment, stacked
from feddkd.exchange import Reply
from feddkd.tensors import Segment

LEAST_Z = 1.5
"""The paper's z for 2 attackers of 10 is 0, which sends the mean itself. This one does harm, and is
still within the spread."""


class ALittleIsEnough(Attack):
    """Sends mean - z std of the honest contributions, element by element.

    z is what the paper derives from the numbers of clients and attackers, and at least `LEAST_Z`.
    The paper's attackers estimate mean and std from their own data; these see the contributions of
    the others.
    """

    title = "ALIE (mean - 1.5 std)"
    paper = "arXiv 1902.06156"
    sees_others = True
    on_tensors = True

    def reply(self, seen: Seen) -> Reply:
        assert seen.reply.contribution is not None
        z = max(LEAST_Z, paper_z(seen.clients, seen.attackers))

        def little(segment: Segment, _: torch.Tensor) -> torch.Tensor:
            honest = stacked(seen.honest, segment)
            return honest.mean(0) - z * honest.std(0, correction=0)

        return replace(seen.reply, contribution=each_segment(seen.reply.contribution, little))


def paper_z(clients: int, attackers: int) -> float:
    """Return the largest z with which enough honest clients are farther from the mean to win a
    majority.

    The attackers need s = floor(n / 2 + 1) - m honest ones beyond them. So
    z = Phi^-1((n - m - s) / (n - m)).
    """
    needed = clients // 2 + 1 - attackers
    share = (clients - attackers - needed) / (clients - attackers)
    return float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64)))
