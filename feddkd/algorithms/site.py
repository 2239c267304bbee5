"""Define what the client side of an algorithm works with: data, model, store, local objective."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from feddkd.config import Config, NamedTable, Table
from feddkd.data.examples import Examples
from feddkd.data.seeding import reads_for
from feddkd.dkd import teacher_logits
from feddkd.evaluation import evaluate
from feddkd.exchange import ExampleCounts, ExchangeId, Task
from feddkd.registry import OBJECTIVES
from feddkd.structures import Structure
from feddkd.tasks.base import UNLABELLED, LearningTask
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics
from feddkd.tensors import Schema, Tensors

if TYPE_CHECKING:
    from feddkd.algorithms.own_teacher import OwnTeacher


LARGEST_SCORE = 1e30
"""A server refuses larger numbers, and a score must not cost a reply."""


class Store(Protocol):
    """Keeps named tensors at a site across restarts of its process."""

    def save(self, name: str, tensors: Tensors, label: str, *, about: Mapping[str, str] | None = None) -> None:
        """Store `tensors` under `name`, in place of what was there.

        They survive a crash once this returns. `label` says which round or run they belong to, `about` what
        they are, for people.
        """

    def label(self, name: str) -> str | None:
        """Read the label of what is stored under `name`; None if nothing is, or if it is damaged.

        Raises:
            StateError: it cannot be read.
        """

    def load(self, name: str, schema: Schema, label: str) -> Tensors | None:
        """Load what is stored under `name`; None if nothing is, if it has another label, or if it is damaged.

        Raises:
            StateError: it cannot be read, or has another schema.
        """


@dataclass(slots=True)
class Site:
    """One client's data, network and store.

    Attributes:
        examples: what it computes on, those without a label included.
        labelled: those of them with a label, in the same order: what it trains on.
        unlabelled: the others, in the same order.
        held_out: what it evaluates on; may be empty. All of these have a label.
        module: the shared network, the student, on `device`, with the weights that were loaded last.
        new_objective: builds the configured local objective.
        given_schema: of the global model, where that has not all tensors of the network.
        metrics: of the task.
        model_schema: of the global model.
        own_teacher: a network that only this site has; None where the student's own copy is trained.
    """

    client_id: str
    config: Config
    examples: Examples
    held_out: Examples
    module: nn.Module
    device: torch.device
    store: Store
    new_objective: Callable[[Site], LocalObjective]
    given_schema: Schema | None = None
    metrics: TaskMetrics = OF_CLASSIFICATION
    own_teacher: OwnTeacher | None = None
    model_schema: Schema = field(init=False)
    labelled: Examples = field(init=False)
    unlabelled: Examples = field(init=False)

    def __post_init__(self) -> None:
        self.model_schema = Schema.of_module(self.module) if self.given_schema is None else self.given_schema
        has_label = self.examples.labels != UNLABELLED
        self.labelled = self.examples if has_label.all() else self.examples.subset(has_label.nonzero().flatten())
        self.unlabelled = self.examples.subset((~has_label).nonzero().flatten())

    @property
    def learning_task(self) -> LearningTask[Any]:
        """What outputs, targets and the loss are."""
        return self.metrics.task

    @property
    def counts(self) -> ExampleCounts:
        """How many examples it computes on: the weight of its contributions."""
        return ExampleCounts(len(self.labelled), len(self.unlabelled))

    def model(self) -> Tensors:
        """Copy the tensors of the global model from the network as it is now."""
        return Tensors.copy_of(self.model_schema, self.module.state_dict())

    @property
    def teacher(self) -> Site:
        """The site with the network that local training trains: this one, unless it has a teacher of its own."""
        return self if self.own_teacher is None else self.own_teacher.site

    @property
    def eval_batch_size(self) -> int:
        """Examples in one batch outside of training."""
        return self.config.eval_batch_size

    def loss_on(self, examples: Examples, task: Task) -> float:
        """Compute the mean loss of the network as it is now, in eval mode."""
        found = evaluate(self.module, examples, self.device, task.check_cancelled, batch_size=self.eval_batch_size, metrics=self.metrics)
        return found.loss

    def held_out_score(self, task: Task) -> float | None:
        """Compute `task.metric` of the network as it is now on what is held out, at least one example, in eval mode.

        None for accuracy, which is counted in logits, and for a value that is not defined or cannot be sent. Examples whose reads are
        random are read as they were for the evaluation of the broadcast model.
        """
        metric = self.learning_task.settings.metric
        if metric == "accuracy" and self.metrics.has_one_class:
            return None
        with reads_for(evaluation_key(self.config.seed, task.id, self.client_id)):
            check, size = task.check_cancelled, self.eval_batch_size
            score = evaluate(self.module, self.held_out, self.device, check, batch_size=size, metrics=self.metrics).score(metric)
        return score if score is not None and abs(score) <= LARGEST_SCORE else None

    def outputs_of(self, module: nn.Module, examples: Examples, task: Task) -> Tensor:
        """Compute the outputs of a network as it is now, in eval mode; float32 [n, ...], NaN for what cannot be used.

        Raises:
            ClientError: an output is not finite.
            ValueError: there are no examples, or none can be used.
        """
        check, size = task.check_cancelled, self.eval_batch_size
        return teacher_logits(module, examples, self.device, check=check, batch_size=size, task=self.learning_task)

    def generator(self, exchange: ExchangeId) -> torch.Generator:
        """Make this client's generator for an exchange: the same on every engine, at any retry."""
        digest = hashlib.sha256(exchange_key(self.config.seed, exchange, self.client_id).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def exchange_key(seed: int, exchange: ExchangeId, client_id: str) -> str:
    """Name what a client draws and reads for in an exchange."""
    return f"{seed}/{exchange.round}/{exchange.name}/{exchange.step}/{client_id}"


def evaluation_key(seed: int, exchange: ExchangeId, client_id: str) -> str:
    """Name what a client reads for in an evaluation before an exchange."""
    return f"{exchange_key(seed, exchange, client_id)}/evaluate"


class CrossEntropyConfig(NamedTable):
    """Plain local training: the loss of the task; for classification the cross-entropy of the true labels."""

    name: Literal["cross_entropy"] = "cross_entropy"


@OBJECTIVES.register("cross_entropy")
class LocalObjective:
    """What a client minimises in local training: the loss of the task, for classification the cross-entropy.

    Subclasses add to the loss, or directly to its gradient.

    Attributes:
        needs_labels: whether it works with logits [B, C] and one class of each example.
        table: the class of its settings; not used for an objective that the configuration names by
            its import path.
        is_repeatable: a step does the same operations on the device whatever the batch: it reads nothing on the CPU, not even
            `index`, and draws nothing there. A CUDA graph may then repeat it. A class says it of itself, not of its subclasses.
        compares_with_broadcast: it compares the network with the broadcast model, which a network of a site's own cannot.
    """

    table: ClassVar[type[Table]] = CrossEntropyConfig
    needs_labels: ClassVar[bool] = False
    is_repeatable: ClassVar[bool] = True
    compares_with_broadcast: ClassVar[bool] = False

    def __init__(self, site: Site, settings: Table) -> None:
        """Build the objective of one site; `settings` is its table in the configuration."""
        self.site = site

    def begin(self, task: Task) -> None:
        """Prepare for local training; the module holds the broadcast model."""

    def loss(self, index: Tensor, inputs: Structure, targets: Structure) -> Tensor:
        """Compute the mean loss of one mini-batch at the module's weights.

        Args:
            index: int64 [B] on the CPU, positions among the site's labelled examples.
            inputs: float32 or int64 [B, ...] on the site's device.
            targets: of the task, on the site's device; for classification labels, int64 [B].
        """
        task = self.site.learning_task
        return task.loss(task.outputs(self.site.module, inputs), targets)

    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change the `.grad` of `parameters` in place, before each step; all of them have one."""

    def end(self, task: Task, steps: int) -> None:
        """Finish local training of `steps` > 0 steps; the module holds the local model.

        Let go of what only this round needed: it would take device memory until the next one.
        """
