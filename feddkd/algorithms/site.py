"""What the client half of an algorithm has at hand: the site's data, its model, and a place to keep tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from feddkd.config import Config
from feddkd.data.examples import Examples
from feddkd.dkd.teacher import eval_mode
from feddkd.exchange import Evaluation, ExchangeId
from feddkd.tensors import Schema, Tensors

if TYPE_CHECKING:
    from feddkd.algorithms.local_training import LocalObjective

EVALUATION_BATCH_SIZE = 512


class Store(Protocol):
    """Keeps named tensors at a site across restarts of its process."""

    def save(self, name: str, tensors: Tensors, label: str) -> None:
        """Keep `tensors` under `name`, in place of what was there; safe from a crash of the process when this returns.

        `label` says which round or run they belong to.
        """

    def label(self, name: str) -> str | None:
        """The label of what was last kept under `name`, or None if nothing was. Raises StateError if it is damaged."""

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
        new_objective: builds what local training minimises, as the configuration says.
    """

    client_id: str
    config: Config
    examples: Examples
    held_out: Examples
    module: nn.Module
    device: torch.device
    store: Store
    new_objective: Callable[[Site], LocalObjective]

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
    correct, loss_sum = torch.zeros(len(examples), dtype=torch.bool), 0.0
    with eval_mode(module):
        for index, inputs, labels in examples.batches(torch.arange(len(examples)), EVALUATION_BATCH_SIZE):
            logits = module(inputs.to(device))
            target = labels.to(device)
            correct[index] = (logits.argmax(1) == target).cpu()
            loss_sum += float(F.cross_entropy(logits, target, reduction="sum"))
    by_class = torch.bincount(examples.labels)
    correct_by_class = torch.bincount(examples.labels[correct], minlength=len(by_class))
    return Evaluation(len(examples), int(correct.sum()), loss_sum, tuple(by_class.tolist()), tuple(correct_by_class.tolist()))
