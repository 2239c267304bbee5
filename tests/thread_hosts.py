"""Hosts in threads of this process: the engine of Ray's actors with clients that a test can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from feddkd.client.work import TaskRunner
from feddkd.engines.hosts import HostLostError
from feddkd.engines.local_clients import LocalClients, work_of
from feddkd.errors import RunError
from feddkd.exchange import ExampleCounts, ExchangeId
from feddkd.transport.payload import Payload


class ThreadHost:
    """A host that is lost once it is told to be."""

    def __init__(self, clients: LocalClients) -> None:
        self.clients = clients
        self.is_lost = False
        self.asked: list[str] = []

    def check(self) -> None:
        if self.is_lost:
            raise HostLostError("the test ended it")

    def has_constants(self, client: str, version: bytes) -> bool:
        self.check()
        return self.clients.has_constants(client, version)

    def reply_of(self, client: str, message: bytes, payload: Payload) -> Sequence[bytes | memoryview] | None:
        self.check()
        self.asked.append(client)
        messages = self.clients.reply_of(client, work_of(message), payload.frames())
        self.check()
        return None if messages is None else list(messages)

    def settle(self, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        self.check()
        for client, counts in counted.items():
            self.clients.settle(client, exchange, counted=counts)

    def let_go(self, clients: Sequence[str]) -> None:
        self.check()
        for client in clients:
            self.clients.let_go(client)

    def abort(self, reason: str) -> None:
        self.check()
        self.clients.abort(RunError(reason))

    def end(self) -> None:
        self.is_lost = True


class ThreadHosts:
    """As many hosts as clients, so that all of them can compute at the same time."""

    def __init__(self, workers: Mapping[str, TaskRunner], num_hosts: int | None = None, *, movable: bool = False) -> None:
        self.workers = workers
        self.counts: Mapping[str, ExampleCounts] = {client: worker.counts for client, worker in sorted(workers.items())}
        self.class_names: Sequence[str] = next((worker.class_names for worker in workers.values()), ())
        self.num_hosts = max(1, len(workers)) if num_hosts is None else num_hosts
        self.movable = movable
        self.started: list[ThreadHost] = []
        self.room: int | None = None

    def start(self, counted: Mapping[str, ExchangeId]) -> ThreadHost:
        if self.room is not None and len(self.started) >= self.room:
            raise HostLostError("no room")
        host = ThreadHost(self.local())
        host.clients.remember(counted)
        self.started.append(host)
        return host

    def local(self) -> LocalClients:
        return LocalClients(self.workers)

    def share(self, payload: Payload) -> Payload:
        return payload

    def close(self) -> None:
        pass
