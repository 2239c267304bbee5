"""Keeps the buffers that a client does not share: the statistics of BatchNorm, with `model.local_buffers`."""

from __future__ import annotations

import dataclasses

from torch import nn

from feddkd.algorithms.memory import RoundMemory
from feddkd.algorithms.site import Store
from feddkd.exchange import DELIVER, ExchangeId
from feddkd.tensors import Schema, Tensors

LOCAL_BUFFERS = "local_buffers"
"""The name under which a client stores them."""


class LocalBuffers:
    """One client's own buffers, from round to round, over restarts of its process.

    A round's first exchange begins with the buffers after the round before, however often it is
    repeated; later exchanges of the round begin with those that the last one left.
    """

    def __init__(self, store: Store, schema: Schema, first_exchange: str) -> None:
        """Begin without any.

        Args:
            schema: of the buffers; may be empty.
            first_exchange: the name of the exchange that a round begins with.
        """
        self._schema = schema
        self._first = first_exchange
        self._memory = RoundMemory(store, LOCAL_BUFFERS)

    def recall(self, exchange: ExchangeId) -> Tensors | None:
        """Return the buffers that an exchange begins with; None where the first values are meant. Raises StateError."""
        if not len(self._schema):
            return None
        is_first = exchange.name == self._first
        after = exchange if is_first else dataclasses.replace(exchange, round=exchange.round + 1)
        return self._memory.recall(after, self._schema)

    def keep(self, exchange: ExchangeId, module: nn.Module, before: Tensors | None) -> None:
        """Store the buffers that an exchange left in the network, if it changed them. Raises StateError.

        Args:
            before: those that it began with.
        """
        if not len(self._schema) or exchange.name == DELIVER:
            return
        left = Tensors.copy_of(self._schema, module.state_dict())
        if before is None or not left.block.equal(before.block):
            self._memory.keep(exchange, left)
