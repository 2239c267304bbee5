"""Carries out one client's part of any exchange, in any process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from feddkd import algorithms
from feddkd.algorithms.base import answer
from feddkd.algorithms.own_teacher import own_teacher_of
from feddkd.algorithms.site import Site, Store, evaluation_key, exchange_key
from feddkd.client.constants import HeldConstants
from feddkd.client.local_buffers import LocalBuffers
from feddkd.client.memory_errors import named_memory_errors
from feddkd.client.network import Network
from feddkd.compression import lossless
from feddkd.config import Config
from feddkd.data.datasets import DataInfo, describe
from feddkd.data.examples import Examples
from feddkd.data.labels import check_labels, prepare_labels
from feddkd.data.partitions import hold_out
from feddkd.data.seeding import reads_for
from feddkd.errors import ClientError, DataError
from feddkd.evaluation import evaluate
from feddkd.exchange import DELIVER, DELIVER_KIND, Evaluation, ExampleCounts, ExchangeKind, Reply, Task
from feddkd.models.initial import about, about_classes
from feddkd.tasks.base import UNLABELLED
from feddkd.tasks.chosen import task_of
from feddkd.tasks.metrics import TaskMetrics
from feddkd.tensors import Schema, Tensors

FINAL_MODEL = "model"
"""The name under which a client keeps the model that it is given at the end of a run."""


def settings_of_replies(config: Config) -> str:
    """Return what replies follow from, as JSON.

    What may differ when a run goes on is left out: a reply of before is still of use, and what it left over is needed
    if it counted.
    """
    rounds = not config.training.depends_on_rounds
    excluded: Any = {"rounds": rounds, "data": {"root"}, "model": {"init"}, "teacher": {"init"}, "runtime": True, "scheduler": True}
    return json.dumps(config.model_dump(mode="json", exclude=excluded), sort_keys=True)


def kinds_of(config: Config) -> Mapping[str, ExchangeKind]:
    """Return the exchanges of a run by name, the delivery of the final model included."""
    return {**algorithms.chosen(config).exchanges(config), DELIVER: DELIVER_KIND}


def broadcast_schema(kinds: Mapping[str, ExchangeKind], exchange: str, model: Schema, config: Config) -> Schema:
    """Return what the server may send in an exchange.

    Args:
        kinds: of the run.
        model: the schema of the model.

    Raises:
        ClientError: there is no exchange of this name.
    """
    kind = kinds.get(exchange)
    if kind is None:
        raise ClientError(f"algorithm {config.algorithm.name!r} has no exchange {exchange[:40]!r}")
    return kind.broadcast(model)


def split(config: Config, client_id: str, examples: Examples, info: DataInfo) -> tuple[Examples, Examples]:
    """Prepare the labels of a client's own examples as `[data]` says, and split off what is held out.

    Returns:
        What it trains on, and what it evaluates on.

    Raises:
        DataError: there is no labelled example.
    """
    prepared = prepare_labels(examples, config.data, info.num_classes, config.seed, client_id)
    train, held_out = hold_out(torch.arange(len(prepared)), prepared.labels, config.data.holdout, config.seed)
    if not (prepared.labels[train] != UNLABELLED).any():
        raise DataError(f"{client_id}: none of its {len(prepared)} examples has a label; a teacher needs labelled examples")
    return prepared.subset(train), prepared.subset(held_out)


class ReplyStage(Protocol):
    """Changes a client's reply before it leaves: the place for clipping, noise, masks and codecs.

    A stage is called once for each reply of the algorithm, in the thread that computed it. What it
    raises is this client's failure in this exchange.
    """

    def __call__(self, task: Task, reply: Reply) -> Reply:
        """Return the reply that goes on to the next stage, or to the server."""
        ...


class Worker:
    """Carries out one client's part of any exchange of its algorithm, on every engine."""

    def __init__(
        self,
        config: Config,
        client_id: str,
        examples: Examples,
        store: Store,
        info: DataInfo | None = None,
        *,
        network: Network | None = None,
        constants: HeldConstants | None = None,
        on_reply: Sequence[ReplyStage] = (),
    ) -> None:
        """Split off what is held out and build the network.

        Args:
            examples: all of the client's own examples.
            info: shapes of the data; by default what the configuration says of them.
            network: to compute with, shared with other workers of this process; by default its own.
            constants: where the client holds them longer than this worker; by default they are the worker's own.
            on_reply: stages that the algorithm's replies pass in this order before they leave.

        Raises:
            ConfigError: the model, the algorithm or the data do not fit together.
            DataError: there is no labelled example.
        """
        torch.set_num_threads(config.runtime.threads)
        if config.communication.zstd:
            lossless.require()
        task = task_of(config)
        info = info or describe(config.data, task)
        check_labels(config, task, info, needed_by=algorithms.needs_labels(config))
        train, held_out = split(config, client_id, examples, info)
        self._network = network or Network(config, info)
        self._on_reply = tuple(on_reply)
        algorithm = algorithms.chosen(config)
        objective = algorithms.objective_factory(config)
        self.site = Site(
            client_id,
            config,
            train,
            held_out,
            self._network.module,
            self._network.device,
            store,
            objective,
            self._network.parts.travelling,
            TaskMetrics(task, info.num_classes, info.target_shape),
        )
        self.site.own_teacher = own_teacher_of(self.site, info)
        self._client_side = algorithm.client_side(self.site)
        self._kinds = kinds_of(config)
        self._model_schema = self.site.model_schema
        parts = self._network.parts
        self._about = {**about(config, info), **about_classes(examples.class_names)}
        self._constants = constants or HeldConstants(self._network.constants, lambda: store)
        local = Schema(spec for spec in parts.constants.specs if spec.name in parts.local)
        self._local_buffers = LocalBuffers(store, local, next(iter(self._kinds)))

    @property
    def counts(self) -> ExampleCounts:
        """How many examples the client trains on: the weight of its contributions."""
        return self.site.counts

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; empty where the data do not say them."""
        return self.site.examples.class_names

    @property
    def model_schema(self) -> Schema:
        return self._model_schema

    @property
    def constants(self) -> HeldConstants:
        return self._constants

    def broadcast_schema(self, exchange: str) -> Schema:
        """Return what the server may send in an exchange. Raises ClientError for an unknown one."""
        return broadcast_schema(self._kinds, exchange, self._model_schema, self.site.config)

    def carry_out(self, task: Task) -> Reply:
        """Compute this client's part of an exchange.

        Raises:
            ClientError: it cannot be done; the message says why.
        """
        key = exchange_key(self.site.config.seed, task.id, self.site.client_id)
        with named_memory_errors(self.site.config), self._network.alone():
            started = time.perf_counter()
            task.check_cancelled()
            own = self._local_buffers.recall(task.id)
            self._network.load_constants(self._constants.current, own)
            with reads_for(evaluation_key(self.site.config.seed, task.id, self.site.client_id)):
                evaluation = self._evaluate(task) if task.evaluate and len(self.site.held_out) else None
            if task.id.name == DELIVER:
                self._keep_final(task, own)
                reply = Reply()
            else:
                with reads_for(key):
                    reply = self._reply(task)
                self._network.check_constants(self._constants.current)
                self._local_buffers.keep(task.id, self.site.module, own)
            return dataclasses.replace(reply, evaluation=evaluation, compute_s=time.perf_counter() - started)

    @property
    def fingerprint(self) -> str:
        """Name what this client computes with, its settings and its labels, by a SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256(settings_of_replies(self.site.config).encode())
        for examples in (self.site.examples, self.site.held_out):
            digest.update(f"{len(examples)} ".encode() + examples.labels.numpy().tobytes())
        return digest.hexdigest()

    def has_final_model(self, run_id: str) -> bool:
        """Return whether this client has the final model of a run, undamaged as far as its label shows. Raises StateError."""
        return self.site.store.label(FINAL_MODEL) == run_id

    def _keep_final(self, task: Task, own: Tensors | None) -> None:
        """Store the final model, all of it: with the constants, and this client's own buffers; and before it the own teacher."""
        constants = self._constants.current.tensors
        if own is not None:
            constants = constants.replace(own)
        whole = self._network.parts.whole(task.payload, constants)
        about = {"run_id": task.id.run_id, **self._about}
        if self.site.own_teacher is not None:
            self.site.own_teacher.take_home(task, about)
        self.site.store.save(FINAL_MODEL, whole, label=task.id.run_id, about=about)

    def _evaluate(self, task: Task) -> Evaluation:
        """Evaluate the broadcast model on what this client holds out."""
        task.payload.load_into(self.site.module)
        found = evaluate(
            self.site.module,
            self.site.held_out,
            self.site.device,
            task.check_cancelled,
            batch_size=self.site.eval_batch_size,
            metrics=self.site.metrics,
        )
        # Which classes a client holds is its own business.
        return dataclasses.replace(found, examples_by_class=(), correct_by_class=())

    def _reply(self, task: Task) -> Reply:
        """Let the algorithm compute, and pass its reply through the stages."""
        reply = answer(self._client_side, task)
        for stage in self._on_reply:
            reply = stage(task, reply)
        return reply
