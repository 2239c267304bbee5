"""Multiplies contributions by a number.

A factor of -1 is the sign flip of Li, Xu, Chen, Giannakis, Ling: RSA: Byzantine-Robust Stochastic
Aggregation Methods for Distributed Learning from Heterogeneous Datasets. AAAI 2019, arXiv
1811.03761. A large factor is the model replacement of Bagdasaryan, Veit, Hua, Estrin, Shmatikov:
How To Backdoor Federated Learning. AISTATS 2020, arXiv 1807.00459.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from attacks.base import Attack, Seen, each_segment
from feddkd.exchange import Reply


class Scaling(Attack):
    """Sends `factor` times the honest contribution."""

    paper: ClassVar[str] = "arXiv 1807.00459"
    on_tensors: ClassVar[bool] = True
    factor: ClassVar[float]

    def reply(self, seen: Seen) -> Reply:
        assert seen.reply.contribution is not None
        scaled = each_segment(seen.reply.contribution, lambda _, elements: self.factor * elements)
        return replace(seen.reply, contribution=scaled)


class SignFlip(Scaling):
    title = "sign flip (times -1)"
    paper = "arXiv 1811.03761"
    factor = -1.0


class Times10(Scaling):
    title = "times 10"
    factor = 10.0


class TimesMinus10(Scaling):
    title = "times -10"
    factor = -10.0


class TimesMillion(Scaling):
    title = "times 1,000,000"
    factor = 1e6
