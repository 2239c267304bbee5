"""Simulates many clients in one process, in the memory of those that take part at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch

from feddkd.client.constants import HeldConstants
from feddkd.client.held import Held
from feddkd.client.membership import Membership
from feddkd.client.network import Network
from feddkd.client.recent import Recent
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.work import TaskRunner
from feddkd.client.worker import Worker, broadcast_schema, kinds_of, settings_of_replies, split
from feddkd.compression.constants import Constants
from feddkd.config import Config
from feddkd.config.scheduler import cohort_size
from feddkd.data.datasets import info_of, load_train
from feddkd.data.examples import Examples
from feddkd.data.partitions import client_ids, partition
from feddkd.exchange import ExampleCounts, Reply, Task
from feddkd.locking import DirectoryLock
from feddkd.tasks.base import UNLABELLED
from feddkd.tasks.chosen import task_of
from feddkd.tensors import Schema


class Simulation:
    """What the simulated clients of a process share: one data set, one network, and a bounded number of workers.

    A worker is built when its client computes, and stays for the later exchanges of its round. Then it makes room:
    as after a restart of a real client, all that is left of it is its state directory. What a worker saves survives
    the end of its process, but is not written through to the disk: with all clients on one machine that would take a
    quarter of a round on small models.

    Attributes:
        ids: of all clients of the federation, in client order.
        examples: all training examples.
        network: shared by all workers if it remembers nothing that does not travel.
        received: constants that any of the clients received, by version.
    """

    def __init__(self, config: Config, state: Path, examples: Examples | None = None, *, kept: int | None = None) -> None:
        """Load the data and deal them as `[partition]` says.

        Args:
            config: of the run.
            state: the folder with a state directory for each client.
            examples: the training examples, where they are loaded already.
            kept: most workers in memory; by default as many as take part in a round.

        Raises:
            ConfigError: data, partition or model are not as the configuration says.
        """
        torch.set_num_threads(config.runtime.threads)
        task = task_of(config)
        self._config = config
        self._state = state
        self.examples = load_train(config.data, config.seed, task) if examples is None else examples
        self._info = info_of(config.data, self.examples, task)
        self._parts = partition(config.partition, self.examples.labels, self._info.num_classes, config.seed)
        self.ids = client_ids(len(self._parts))
        self.network = Network(config, self._info)
        self.received: dict[bytes, Constants] = {}
        self._kinds = kinds_of(config)
        self.most_kept = (kept or most_in_a_round(config)) if self.can_let_go else None
        self._workers: Recent[int, Worker] = Recent(self.most_kept)

    @property
    def can_let_go(self) -> bool:
        """Whether nothing is lost with a worker: what the user wrote may remember what is in no state directory."""
        objective = getattr(self._config.algorithm, "local_objective", None)
        names = (self._config.algorithm.name, *self._config.teacher.own, objective.name if objective is not None else "")
        return self.network.can_be_shared and not any(":" in name for name in names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their numbers; empty where the data do not say them."""
        return self.examples.class_names

    def counts(self, index: int) -> ExampleCounts:
        """Count what a client computes on. Raises DataError if none of its examples has a label."""
        train, _ = split(self._config, self.ids[index], self._examples_of(index), self._info)
        unlabelled = int((train.labels == UNLABELLED).sum())
        return ExampleCounts(len(train) - unlabelled, unlabelled)

    def broadcast_schema(self, exchange: str) -> Schema:
        """Return what the server may send in an exchange. Raises ClientError for an unknown one."""
        return broadcast_schema(self._kinds, exchange, self.network.parts.travelling, self._config)

    def store(self, index: int) -> StateDir:
        """Open a client's state directory. Raises StateError if it cannot be used."""
        return StateDir(self._state / self.ids[index], self.ids[index], durable=False)

    def worker(self, index: int, constants: HeldConstants) -> Worker:
        """Return a client's worker, built now unless it computed a short time ago. Raises StateError."""
        return self._workers.use(index, lambda: self.build(index, constants))

    def build(self, index: int, constants: HeldConstants | None = None) -> Worker:
        """Build a client's worker. Raises ConfigError, DataError or StateError."""
        return Worker(
            self._config.model_copy(update={"teacher": self._config.teacher.of_client(index)}),
            self.ids[index],
            self._examples_of(index),
            self.store(index),
            self._info,
            network=self.network if self.network.can_be_shared else None,
            constants=constants,
        )

    def try_one(self, index: int) -> None:
        """Build a client's worker and let go of it: what is wrong with all of them is said now. Raises as `build`."""
        self.build(index)
        self.let_go(index)

    def let_go(self, index: int) -> None:
        """Let another process compute for a client: nothing of it is in memory, and its state directory is not locked."""
        self._workers.drop(index)
        release_state_dirs(self._state, [self.ids[index]])

    def _examples_of(self, index: int) -> Examples:
        return self.examples.subset(self._parts[index])


class SimulatedClient(TaskRunner):
    """One client of a simulation: what it takes part with, without a worker until it computes."""

    def __init__(self, simulation: Simulation, index: int) -> None:
        """Count its examples. Raises DataError if none of them has a label."""
        self._simulation = simulation
        self._index = index
        self._counts = simulation.counts(index)

    @property
    def counts(self) -> ExampleCounts:
        return self._counts

    @property
    def class_names(self) -> Sequence[str]:
        return self._simulation.class_names

    @property
    def model_schema(self) -> Schema:
        return self._simulation.network.parts.travelling

    @cached_property
    def constants(self) -> HeldConstants:
        built = self._simulation.network.constants
        return HeldConstants(built, lambda: self._simulation.store(self._index), self._simulation.received)

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._simulation.broadcast_schema(exchange)

    def carry_out(self, task: Task) -> Reply:
        return self._simulation.worker(self._index, self.constants).carry_out(task)

    def let_go(self) -> None:
        """Let another process compute for this client."""
        self.__dict__.pop("constants", None)
        self._simulation.let_go(self._index)


def most_in_a_round(config: Config) -> int:
    """Return how many clients take part in a round at most."""
    return cohort_size(config.scheduler.cohort, config.partition.clients)


def simulated_clients(simulation: Simulation, indices: Sequence[int] | None = None) -> dict[str, SimulatedClient]:
    """Make the clients of a simulation, by id.

    Args:
        simulation: what they share.
        indices: which clients; None for all.

    Raises:
        DataError: a client has no labelled example.
    """
    chosen = range(len(simulation.ids)) if indices is None else indices
    return {simulation.ids[index]: SimulatedClient(simulation, index) for index in chosen}


def simulated_workers(config: Config, state: Path, indices: Sequence[int] | None = None) -> dict[str, Worker]:
    """Build all workers of a simulation at once: for a few clients, and for what looks into them.

    Raises as `Simulation` and `Simulation.build`.
    """
    simulation = Simulation(config, state)
    chosen = range(len(simulation.ids)) if indices is None else indices
    return {simulation.ids[index]: simulation.build(index) for index in chosen}


class SimulatedMemberships(Mapping[str, Membership]):
    """How simulated clients join: with the secrets of their state directories, into this run only."""

    def __init__(self, config: Config, state: Path, clients: Sequence[str], *, kept: int | None = None) -> None:
        """Read nothing yet.

        Args:
            config: of the run.
            state: the folder with a state directory for each client.
            clients: their ids.
            kept: clients whose models for the next steps stay in memory; None for all.
        """
        self._state = state
        self._clients = dict.fromkeys(clients)
        self._known = ServerConfig(config.shared_toml())
        self._computes_with = hashlib.sha256(settings_of_replies(config).encode()).hexdigest()
        self._in_memory: Recent[str, Held] = Recent(kept, Held.put_away)

    def __getitem__(self, client: str) -> Membership:
        """Open a client's state directory. Raises StateError if it cannot be used."""
        if client not in self._clients:
            raise KeyError(client)
        own = StateDir(self._state / client, client, durable=False)
        return Membership(
            own.instance_id,
            self._known,
            own,
            self._computes_with,
            outlives_pause=False,
            in_memory=self._in_memory,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


def release_state_dirs(state: Path, clients: Sequence[str]) -> None:
    """Let another process have the state directories of simulated clients, which nothing here uses any more.

    Their locks end with the objects, but the traceback of an error keeps these in a notebook.
    """
    for client in clients:
        DirectoryLock.release_of_this_process(state / client)
