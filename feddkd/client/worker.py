"""The worker: one client's data, model and algorithm, ready to carry out tasks in whatever process it lives."""

from __future__ import annotations

import dataclasses
import time

import torch

from feddkd import algorithms
from feddkd.algorithms.base import answer
from feddkd.algorithms.site import Site, Store
from feddkd.config import Config
from feddkd.data.datasets import DataInfo, describe
from feddkd.data.examples import Examples
from feddkd.data.partitions import hold_out
from feddkd.errors import ClientError
from feddkd.evaluation import evaluate
from feddkd.exchange import DELIVER, DELIVER_KIND, ExchangeKind, Reply, Task
from feddkd.models.registry import build_model
from feddkd.tensors import Schema

FINAL_MODEL = "model"


class Worker:
    """Carries out one client's part of any exchange of its algorithm. The same on every engine."""

    def __init__(self, config: Config, client_id: str, examples: Examples, store: Store, info: DataInfo | None = None) -> None:
        """Split off what is held out and build the network.

        Args:
            examples: all of the client's own examples.
            info: shapes of the data; by default what the configuration says of them.

        Raises:
            ConfigError: the model, the algorithm or the data do not fit together.
        """
        torch.set_num_threads(config.runtime.threads)
        train, held_out = hold_out(torch.arange(len(examples)), examples.labels, config.data.holdout, config.seed)
        device = torch.device(config.runtime.device)
        module = build_model(config.model, info or describe(config.data), config.seed).to(device)
        algorithm = algorithms.find(config.algorithm.name)
        objective = algorithms.objective_factory(config)
        self.site = Site(client_id, config, examples.subset(train), examples.subset(held_out), module, device, store, objective)
        self._client_side = algorithm.client_side(self.site)
        self._kinds: dict[str, ExchangeKind] = {**algorithm.exchanges(config), DELIVER: DELIVER_KIND}
        self._model_schema = self.site.model_schema

    @property
    def num_examples(self) -> int:
        """Examples the client trains on: the weight of its contributions."""
        return len(self.site.examples)

    @property
    def model_schema(self) -> Schema:
        return self._model_schema

    def broadcast_schema(self, exchange: str) -> Schema:
        """What the server may send in an exchange. Raises ClientError for one that the algorithm does not have."""
        kind = self._kinds.get(exchange)
        if kind is None:
            raise ClientError(f"algorithm {self.site.config.algorithm.name!r} has no exchange {exchange[:40]!r}")
        return kind.broadcast(self._model_schema)

    def carry_out(self, task: Task) -> Reply:
        """Compute this client's part of an exchange.

        Raises:
            ClientError: it cannot be done; the message says why.
        """
        started = time.perf_counter()
        task.check_cancelled()
        evaluation = None
        if task.evaluate and len(self.site.held_out):
            task.payload.load_into(self.site.module)
            found = evaluate(self.site.module, self.site.held_out, self.site.device, task.check_cancelled)
            # Which classes a client holds is its own business.
            evaluation = dataclasses.replace(found, examples_by_class=(), correct_by_class=())
        if task.id.name == DELIVER:
            self.site.store.save(FINAL_MODEL, task.payload, label=task.id.run_id)
            reply = Reply()
        else:
            reply = answer(self._client_side, task)
        return dataclasses.replace(reply, evaluation=evaluation, compute_s=time.perf_counter() - started)
