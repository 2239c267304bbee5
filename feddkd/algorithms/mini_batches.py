"""Draw the mini-batches of local training, and draw on where bad examples leave none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from feddkd.algorithms.one_example import takes_one_example
from feddkd.algorithms.site import Site
from feddkd.devices import Batch, device_for

MOST_EMPTY_PASSES = 10
"""Passes over all labelled examples, one after the other, that bad examples may leave without a batch to train on."""


class MiniBatches:
    """The mini-batches of one round, in passes over the labelled examples in random order.

    A batch that bad examples leave empty, or with a single example that the network refuses, is lost, and another
    one is drawn in its place. A last batch of one example that the network refuses is left out, and counts.

    Attributes:
        left: how many are still to be drawn.
        lost: how many bad examples have cost.
        refused: how many were left out because they had a single example.
    """

    def __init__(self, site: Site, generator: torch.Generator, count: int) -> None:
        """Prepare to draw `count` mini-batches of `training.batch_size` examples; the order is `generator`'s."""
        self.left = count
        self.lost = 0
        self.refused = 0
        self._site = site
        self._generator = generator
        self._size = site.config.training.batch_size
        self._empty_passes = 0
        self._accepts_one: bool | None = None

    def next_pass(self) -> Iterator[Batch]:
        """Yield the batches of one pass, inputs and targets on the site's device; there may be none."""
        order = torch.randperm(len(self._site.labelled), generator=self._generator)
        yielded = 0
        while self.left > 0 and len(order):
            drawn, order = order[: self.left * self._size], order[self.left * self._size :]
            self.left -= math.ceil(len(drawn) / self._size)
            lost_before, expected, found = self.lost, math.ceil(len(drawn) / self._size), 0
            for batch in device_for(self._site.device).batches(self._site.labelled, drawn, self._size):
                found += 1
                if self._accepts(batch, drawn):
                    yielded += 1
                    yield batch
            self.lost += expected - found
            self.left += self.lost - lost_before
        self._empty_passes = 0 if yielded else self._empty_passes + 1
        if self._empty_passes == MOST_EMPTY_PASSES:
            self.left = 0

    def _accepts(self, batch: Batch, drawn: Tensor) -> bool:
        """Tell whether the network trains on a batch; of one that it refuses, count whether bad examples left it so small."""
        index, inputs, _ = batch
        if len(index) > 1:
            return True
        if self._accepts_one is None:
            self._accepts_one = takes_one_example(self._site.module, inputs, self._site.learning_task)
        if self._accepts_one:
            return True
        self.refused += 1
        was_drawn_alone = self._size == 1 or (len(drawn) % self._size == 1 and torch.equal(index, drawn[-1:]))
        self.lost += not was_drawn_alone
        return False
