"""Sends the opposite of what the honest clients send.

Xie, Koyejo, Gupta: Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation.
UAI 2019, arXiv 1903.03936.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from attacks.base import Attack, Seen, each_segment, stacked
from feddkd.exchange import Reply
from feddkd.tensors import Segment


class InnerProduct(Attack):
    """Sends -epsilon times the mean of the honest contributions."""

    paper: ClassVar[str] = "arXiv 1903.03936"
    sees_others: ClassVar[bool] = True
    on_tensors: ClassVar[bool] = True
    epsilon: ClassVar[float]

    def reply(self, seen: Seen) -> Reply:
        assert seen.reply.contribution is not None

        def opposite(segment: Segment, _: torch.Tensor) -> torch.Tensor:
            return -self.epsilon * stacked(seen.honest, segment).mean(0)

        return replace(seen.reply, contribution=each_segment(seen.reply.contribution, opposite))


class SmallInnerProduct(InnerProduct):
    title = "IPM (-0.5 mean)"
    epsilon = 0.5


class LargeInnerProduct(InnerProduct):
    title = "IPM (-5 mean)"
    epsilon = 5.0
