"""Sends honest tensors with false numbers beside them."""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks.base import Attack, Seen
from attacks.scaling import SignFlip, TimesMinus10
from feddkd.exchange import ExampleCounts, Reply
from feddkd.tensors import Tensors

CLAIMED_LOSS = 1e6
"""In nats: above what an untrained network has, and finite."""

PREVIOUS_LOSS = "previous_loss/value"
"""The tensor of FedDKD's update that holds the loss of the previous model."""


class LyingWeight(Attack):
    """Claims as many examples as the server admits (`scheduler.max_examples`, 10,000,000 by
    default), and sends honest tensors.
    """

    title = "claims the most examples"

    def claims(self, counts: ExampleCounts, most: int) -> ExampleCounts:
        return ExampleCounts(most)


class LyingWeightAndSign(SignFlip):
    """Claims as many examples as the server admits, and sends -1 times its contribution."""

    title = "claims the most examples, times -1"
    paper = ""

    def claims(self, counts: ExampleCounts, most: int) -> ExampleCounts:
        return ExampleCounts(most)


class LyingWeightAndMinus10(TimesMinus10):
    """Claims as many examples as the server admits, and sends -10 times its contribution."""

    title = "claims the most examples, times -10"
    paper = ""

    def claims(self, counts: ExampleCounts, most: int) -> ExampleCounts:
        return ExampleCounts(most)


class LossBefore(Attack):
    """Says that the previous model is bad, so that FedDKD (`dkd.start = "better"`) keeps every
    average.
    """

    title = "claims a high loss before"
    only_for = "feddkd"

    def reply(self, seen: Seen) -> Reply:
        contribution = seen.reply.contribution
        if contribution is None or PREVIOUS_LOSS not in contribution:
            return seen.reply
        value = torch.tensor(CLAIMED_LOSS, dtype=torch.float64)
        return replace(seen.reply, contribution=contribution.replace({PREVIOUS_LOSS: value}))


class LossAfter(Attack):
    """Says that the average is bad, so that FedDKD (`dkd.start = "better"`) throws every average
    away.
    """

    title = "claims a high loss after"
    only_for = "feddkd"

    def reply(self, seen: Seen) -> Reply:
        return replace(seen.reply, loss=CLAIMED_LOSS)


class NotUsable(Attack):
    """Sends elements of 1e38, which the server refuses: what a federation has without the
    attackers.
    """

    title = "every element 1e38"
    on_tensors = True

    def reply(self, seen: Seen) -> Reply:
        assert seen.reply.contribution is not None
        contribution = Tensors.empty(seen.reply.contribution.schema)
        for tensor in contribution.values():
            tensor.fill_(1e38)
        return replace(seen.reply, contribution=contribution)
