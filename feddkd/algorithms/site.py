"""What the client side of an algorithm works with: the site's data and model, a place to keep tensors, a local objective."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddkd.config import Config, CrossEntropyConfig, Table
from feddkd.data.examples import Examples
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Schema, Tensors


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


class LocalObjective:
    """What a client minimises in local training: the cross-entropy of the true labels.

    Subclasses add to the loss, or to its gradient where that is all the addition amounts to.

    Attributes:
        table: what its settings are read with; without meaning for an objective that the configuration names by its import path.
    """

    table: ClassVar[type[Table]] = CrossEntropyConfig

    def __init__(self, site: Site, settings: Table) -> None:
        """`settings` is the objective's own table in the configuration."""
        self.site = site

    def begin(self, task: Task) -> None:
        """Local training is about to start; the module holds the broadcast model."""

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of one mini-batch at the module's weights.

        Args:
            index: int64 [B] on the CPU, which of the site's examples these are.
            inputs: float32 [B, ...] on the site's device.
            labels: int64 [B] on the site's device.
        """
        return F.cross_entropy(self.site.module(inputs), labels)

    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change `.grad` in place, of the parameters that have one, after the loss's gradient and before the step."""

    def end(self, task: Task, steps: int) -> None:
        """Local training took `steps` steps, at least one; the module holds the local model."""
