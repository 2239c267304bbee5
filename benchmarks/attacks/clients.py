"""Puts hostile clients among the honest ones of an in-process simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from attacks.base import Attack, Seen
from feddkd.client.constants import HeldConstants
from feddkd.client.worker import Worker
from feddkd.compression.encoding import derive_seed
from feddkd.exchange import ExampleCounts, ExchangeId, Reply, Task
from feddkd.tensors import Schema, Tensors

UPDATES, GRADIENTS, BOTH = "updates", "gradients", "both"
"""What an attack is on."""

EXCHANGES = {UPDATES: ("local_train",), GRADIENTS: ("dkd_step",), BOTH: ("local_train", "dkd_step")}


@dataclass(slots=True)
class Witness:
    """Sees the contributions of the honest clients to the exchange under way.

    The in-process engine asks clients one after another in client order. The attackers are the last
    ones, so all honest contributions are there when they reply.
    """

    exchange: ExchangeId | None = None
    contributions: list[Tensors] = field(default_factory=list)

    def note(self, exchange: ExchangeId, contribution: Tensors) -> None:
        """Take in an honest contribution; those to another exchange are forgotten."""
        if exchange != self.exchange:
            self.exchange, self.contributions = exchange, []
        self.contributions.append(contribution)

    def of(self, exchange: ExchangeId) -> list[Tensors]:
        """Return the honest contributions to an exchange."""
        return self.contributions if exchange == self.exchange else []


class ClientAround(Worker):
    """An honest client: passes everything on to its worker, in sight of the witness."""

    def __init__(self, worker: Worker, witness: Witness) -> None:
        self.worker = worker
        self.witness = witness

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
            self.witness.note(task.id, reply.contribution)
        return reply


@dataclass(frozen=True, slots=True)
class Plot:
    """What all attackers of a run agree on.

    Attributes:
        attack: what they do.
        on: `UPDATES`, `GRADIENTS` or `BOTH`.
        clients: of the federation, attackers included.
        attackers: how many there are.
        rounds: of the run.
        most_examples: that the server admits.
        seed: of the run.
    """

    attack: Attack
    on: str
    clients: int
    attackers: int
    rounds: int
    most_examples: int
    seed: int = 0


class HostileClient(ClientAround):
    """Computes what an honest client does, and sends what the attack makes of it."""

    def __init__(self, worker: Worker, witness: Witness, plot: Plot) -> None:
        super().__init__(worker, witness)
        self._plot = plot

    @property
    def counts(self) -> ExampleCounts:
        return self._plot.attack.claims(self.worker.counts, self._plot.most_examples)

    def carry_out(self, task: Task) -> Reply:
        reply = self.worker.carry_out(task)
        plot = self._plot
        if reply.contribution is None or task.id.name not in EXCHANGES[plot.on]:
            return reply
        honest = self.witness.of(task.id) if plot.attack.sees_others else []
        seed = derive_seed(plot.seed, task.id.round, task.id.attempt, task.id.name, task.id.step)
        return plot.attack.reply(Seen(task, reply, honest, plot.clients, plot.attackers, plot.rounds, seed))


def put_among(workers: Mapping[str, Worker], plot: Plot) -> tuple[dict[str, Worker], tuple[str, ...]]:
    """Let the last clients attack.

    The labels of an attacker are changed in place: its site, its distiller and its batches share them.

    Returns:
        All clients in client order, and the ids of the attackers.
    """
    witness = Witness()
    names = sorted(workers)
    hostile = tuple(names[len(names) - plot.attackers :])
    clients: dict[str, Worker] = {name: ClientAround(workers[name], witness) for name in names}
    for name in hostile:
        labels = workers[name].site.examples.labels
        labels.copy_(plot.attack.labels(labels))
        clients[name] = HostileClient(workers[name], witness, plot)
    return clients, hostile
