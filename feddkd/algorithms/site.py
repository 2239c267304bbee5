"""What the client half of an algorithm has at hand: the site's data, its model, and a place to keep tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from feddkd.config import Config
from feddkd.data.examples import Examples
from feddkd.dkd.teacher import eval_mode
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.tensors import Schema, Tensors

EVALUATION_BATCH_SIZE = 512


class Store(Protocol):
    """Keeps named tensors at a site across restarts of its process."""

    def save(self, name: str, tensors: Tensors, label: str) -> None:
        """Keep `tensors` under `name`, in place of what was there; safe from a crash of the process when this returns.

        `label` says which round or run they belong to.
        """

    def load(self, name: str, schema: Schema, label: str) -> Tensors | None:
        """What was last kept under `name`, or None if nothing was or if it bears another label.

        Raises:
            StateError: it is damaged or has another schema.
        """


@dataclass(slots=True)
class Site:
    """One client's surroundings.

    Attributes:
        examples: what it trains on.
        held_out: what it evaluates on; may be empty.
        module: the network, on `device`; its weights are whatever was loaded last.
    """

    client_id: str
    config: Config
    examples: Examples
    held_out: Examples
    module: nn.Module
    device: torch.device
    store: Store

    @property
    def model_schema(self) -> Schema:
        return Schema.of_module(self.module)

    def generator(self, exchange: ExchangeId) -> torch.Generator:
        """Randomness of this client in this exchange: the same on every engine, in any process, at any retry."""
        key = f"{self.config.seed}/{exchange.round}/{exchange.name}/{exchange.step}/{self.client_id}"
        digest = hashlib.sha256(key.encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def evaluate(module: nn.Module, examples: Examples, device: torch.device) -> Evaluation:
    """Accuracy and cross-entropy of a model as it stands, in eval mode, over all of `examples`."""
    correct, loss_sum = 0, 0.0
    with eval_mode(module):
        for _, inputs, labels in examples.batches(torch.arange(len(examples)), EVALUATION_BATCH_SIZE):
            logits = module(inputs.to(device))
            target = labels.to(device)
            correct += int((logits.argmax(1) == target).sum())
            loss_sum += float(F.cross_entropy(logits, target, reduction="sum"))
    return Evaluation(len(examples), correct, loss_sum)
