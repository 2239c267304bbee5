"""The engines that the contract holds for, and what their outcomes are compared by.

Another engine is one more entry of `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import pytest
from harness import RUN_ID, SCHEMA, start_agent
from thread_hosts import ThreadHosts

from feddkd.client.agent import Agent
from feddkd.client.work import TaskRunner
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.hosted import HostedEngine
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.simulation import LOOPBACK
from feddkd.exchange import Exchange, Missing, Outcome, Reply
from feddkd.scheduler.engine import Engine
from feddkd.tensors import Schema
from feddkd.traffic import Traffic

Workers = Mapping[str, TaskRunner]
Start = Callable[[Workers, Config, Schema], AbstractContextManager[Engine]]


@contextmanager
def in_process(workers: Workers, config: Config, model: Schema) -> Iterator[Engine]:
    """The reference."""
    chunk_bytes, staging_bytes = config.transport.chunk_bytes, config.transport.staging_bytes
    holdout = config.data.holdout
    with InProcessEngine(workers, chunk_bytes, staging_bytes, holdout=holdout) as engine:
        yield engine


@contextmanager
def over_grpc(workers: Workers, config: Config, model: Schema) -> Iterator[Engine]:
    """A server, and its clients in threads of this process."""
    engine = GrpcEngine(config, RUN_ID, model)
    address = f"{LOOPBACK}:{engine.start(LOOPBACK, 0)}"
    with ThreadPoolExecutor(max_workers=max(1, len(workers))) as executor:
        agents = [Agent(address, *item, executor, retry_for_s=60) for item in workers.items()]
        running = [start_agent(agent) for agent in agents]
        try:
            engine.wait_for_clients(len(workers), None)
            yield engine
        finally:
            engine.abort("the test is over")  # where a test has failed, an exchange may be open
            engine.finish(completed=True, reason="the test is over")
            for taking_part in running:
                taking_part.result()


@contextmanager
def on_hosts(workers: Workers, config: Config, model: Schema) -> Iterator[Engine]:
    """The engine of Ray, with threads of this process in the place of its actors."""
    transport, hosts = config.transport, ThreadHosts(workers)
    with HostedEngine(hosts, transport.chunk_bytes, transport.staging_bytes, holdout=config.data.holdout) as engine:
        yield engine


@dataclass(frozen=True)
class EngineUnderTest:
    """An engine, and what it can do that the contract leaves open.

    Attributes:
        start: starts it; on entry all clients can take part.
        concurrent: clients compute at the same time.
        waits: clients may come later, so it is worth waiting for them.
    """

    start: Start
    concurrent: bool
    waits: bool

    @contextmanager
    def running(
        self,
        workers: Workers,
        *overrides: str,
        config: Config | None = None,
        model: Schema = SCHEMA,
    ) -> Iterator[Engine]:
        """An engine with these clients, of a configuration or of the defaults with `overrides`."""
        with self.start(workers, config or Config.load(overrides=overrides), model) as engine:
            yield engine

    def carry_out(
        self,
        exchange: Exchange,
        workers: Workers,
        *overrides: str,
        model: Schema = SCHEMA,
    ) -> Outcome:
        """The outcome of an exchange, by an engine of its own."""
        with self.running(workers, *overrides, model=model) as engine:
            return engine.carry_out(exchange)


ENGINES = {
    "in-process": EngineUnderTest(in_process, concurrent=False, waits=False),
    "grpc": EngineUnderTest(over_grpc, concurrent=True, waits=True),
    "hosts": EngineUnderTest(on_hosts, concurrent=True, waits=False),
}
REFERENCE = ENGINES["in-process"]

on_every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


@dataclass(frozen=True)
class Facts:
    """An outcome as tests compare it: all but the seconds, and the order of clients as well."""

    reduced: str | None
    replies: list[tuple[str, Reply]]
    missing: list[tuple[str, Missing]]
    traffic: Traffic
    useful: Traffic
    fault: str
    ratios: list[tuple[str, float]]

    @classmethod
    def of(cls, outcome: Outcome) -> Facts:
        reduced = outcome.reduced.sha256() if outcome.reduced is not None else None
        return cls(
            reduced,
            list(outcome.replies.items()),
            list(outcome.missing.items()),
            outcome.traffic,
            outcome.useful,
            outcome.fault,
            list(outcome.ratios.items()),
        )

    def without_traffic(self) -> Facts:
        return replace(self, traffic=Traffic())


def agreed(
    engine: EngineUnderTest,
    exchange: Exchange,
    workers: Workers,
    *overrides: str,
    model: Schema = SCHEMA,
) -> Outcome:
    """Carry out an exchange on an engine and on the reference; they have to agree in everything."""
    outcome = engine.carry_out(exchange, workers, *overrides, model=model)
    expected = REFERENCE.carry_out(exchange, workers, *overrides, model=model)
    assert Facts.of(outcome) == Facts.of(expected)
    return outcome
