"""Defines hostile clients: each computes what an honest client does, and sends something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from feddkd.client.constants import HeldConstants
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.examples import MemoryExamples
from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.tensors import Schema, Tensors

LARGEST_CLAIM = 2**53
"""Examples that a client may claim where the configuration sets no lower limit."""


class ClientAround(Worker):
    """A client that passes everything on to another one; subclasses change a part of it.

    Attributes:
        contributions: number of contributions so far.
        largest_norms: of its contributions, by exchange name.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.contributions = 0
        self.largest_norms: dict[str, float] = {}

    @property
    def counts(self) -> ExampleCounts:
        return self.worker.counts

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.worker.class_names

    @property
    def model_schema(self) -> Schema:
        return self.worker.model_schema

    @property
    def constants(self) -> HeldConstants:
        return self.worker.constants

    def broadcast_schema(self, exchange: str) -> Schema:
        return self.worker.broadcast_schema(exchange)

    def carry_out(self, task: Task) -> Reply:
        reply = self.worker.carry_out(task)
        if reply.contribution is not None:
            self.contributions += 1
            norm = max(reply.contribution.norm(), self.largest_norms.get(task.id.name, 0.0))
            self.largest_norms[task.id.name] = norm
        return reply


@dataclass(frozen=True, slots=True)
class Attack:
    """What a hostile client does.

    Attributes:
        title: says it in a table.
        change: makes the reply that is sent of the honest one.
        flips_labels: trains on 9 - y in place of y.
        claims_examples: claims as many examples as the server admits.
        only_for: the algorithm that it is measured with; all where it is None.
        needs_limits: says nothing without limits.
    """

    title: str
    change: Callable[[Config, Task, Reply], Reply] = lambda _config, _task, reply: reply
    flips_labels: bool = False
    claims_examples: bool = False
    only_for: str | None = None
    needs_limits: bool = False


class Attacker(ClientAround):
    """A hostile client."""

    def __init__(self, worker: Worker, attack: Attack, config: Config) -> None:
        super().__init__(worker)
        self._attack = attack
        self._config = config
        if attack.flips_labels:
            examples = worker.site.examples
            assert isinstance(examples, MemoryExamples)
            worker.site.examples = MemoryExamples(examples.inputs, 9 - examples.labels)

    @property
    def counts(self) -> ExampleCounts:
        return ExampleCounts(most_examples(self._config)) if self._attack.claims_examples else super().counts

    def carry_out(self, task: Task) -> Reply:
        return self._attack.change(self._config, task, super().carry_out(task))


def most_examples(config: Config) -> int:
    """The most examples that a client may claim."""
    return int(config.model_dump()["scheduler"].get("max_examples", LARGEST_CLAIM))


def largest_norms(config: Config) -> Mapping[str, float]:
    """The limits on the norms of contributions, by exchange name; empty without limits."""
    limits: Mapping[str, float] = config.model_dump().get("aggregation", {}).get("max_norm", {})
    return limits


def _times(factor: float, exchange: str | None = None) -> Callable[[Config, Task, Reply], Reply]:
    """Multiply contributions by `factor`, all or those to one exchange."""

    def change(_: Config, task: Task, reply: Reply) -> Reply:
        if reply.contribution is None or exchange not in (None, task.id.name):
            return reply
        return replace(reply, contribution=reply.contribution.scaled(factor))

    return change


def _filled(value: float) -> Callable[[Config, Task, Reply], Reply]:
    """Set all elements of contributions to `value`."""

    def change(_: Config, __: Task, reply: Reply) -> Reply:
        if reply.contribution is None:
            return reply
        contribution = Tensors.empty(reply.contribution.schema)
        for tensor in contribution.values():
            tensor.fill_(value)
        return replace(reply, contribution=contribution)

    return change


def _as_long_as_allowed(config: Config, task: Task, reply: Reply) -> Reply:
    """Turn contributions round, and make them as long as `aggregation.max_norm` allows."""
    limit = largest_norms(config).get(task.id.name)
    if reply.contribution is None or limit is None:
        return reply
    factor = 0.999 * limit / max(reply.contribution.norm(), 1e-30)
    return replace(reply, contribution=reply.contribution.scaled(-factor))


def _with_metric(_: Config, __: Task, reply: Reply) -> Reply:
    return replace(reply, metrics={**reply.metrics, "x": 1.7e308})


def _with_loss(_: Config, __: Task, reply: Reply) -> Reply:
    return replace(reply, loss=1e300)


_turned = Attack("every contribution turned round, as long as is allowed", _as_long_as_allowed)
_update = Attack("updates of local training only times -10", _times(-10, "local_train"))
_gradients = Attack("gradients only times -10", _times(-10, "dkd_step"))

ATTACKS = {
    "none": Attack("none"),
    "times_-10": Attack("every contribution times -10", _times(-10)),
    "times_-1": Attack("every contribution times -1", _times(-1)),
    "longest": replace(_turned, needs_limits=True),
    "times_1e6": Attack("every contribution times 1,000,000", _times(1e6)),
    "gradients_-10": replace(_gradients, only_for="feddkd"),
    "local_train_-10": replace(_update, only_for="feddkd"),
    "labels": Attack("trains on the labels 9 - y", flips_labels=True),
    "examples": Attack("claims as many examples as is allowed", claims_examples=True),
    "filled_1e38": Attack("every element 1e38", _filled(1e38)),
    "metric": Attack("a metric of 1.7e308", _with_metric),
    "loss": Attack("a loss of 1e300", _with_loss),
}
