"""Trains on wrong labels.

Tolpegin, Truex, Gursoy, Liu: Data Poisoning Attacks Against Federated Learning Systems. ESORICS
2020, arXiv 2007.08432.
"""

from __future__ import annotations

from torch import Tensor

from attacks.base import Attack

LARGEST_LABEL = 9
"""Of digits and MNIST."""


class LabelFlip(Attack):
    """Computes everything, teacher included, on the labels 9 - y; what it sends is what it
    computed.
    """

    title = "label flip (9 - y)"
    paper = "arXiv 2007.08432"

    def labels(self, labels: Tensor) -> Tensor:
        return LARGEST_LABEL - labels
