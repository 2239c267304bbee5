"""What the loss of a host costs: one client in one exchange."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from harness import RUN_ID, SCHEMA, FakeWorker, Recorder, answering, exchange_of, filled, mean_of, short_of_memory, small_config, until
from thread_hosts import ThreadHost, ThreadHosts

from feddkd import algorithms
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.client.simulated import Simulation, simulated_clients
from feddkd.client.work import TaskRunner
from feddkd.config import Config
from feddkd.engines.dispatch import Dispatch, Turn
from feddkd.engines.hosted import HostedEngine
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.local_clients import LocalClients
from feddkd.errors import ConfigError, FedDKDError, RunError, StateError
from feddkd.exchange import Cause, Exchange, ExchangeId, Missing, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.journal import NoJournal
from feddkd.scheduler.rounds import Extensions, Scheduler

CHUNK_BYTES = 1 << 20
PARTS = {client: filled(SCHEMA, seed) for seed, client in enumerate("abc", start=1)}
LOST = Missing(Cause.DISCONNECTED, "not connected")


def numbered(step: int) -> Exchange:
    exchange = exchange_of(list(PARTS), filled(SCHEMA, 10 + step))
    return replace(exchange, id=replace(exchange.id, step=step))


class Losing(FakeWorker):
    """Loses its host with the first task."""

    def __init__(self, hosts: list[ThreadHosts]) -> None:
        super().__init__(self._lose)
        self.hosts = hosts
        self.times = 0

    def _lose(self, task: Task) -> Reply:
        self.times += 1
        if self.times == 1:
            for host in self.hosts[0].started:
                host.is_lost = host.is_lost or host.asked[-1:] == ["b"]
        return Reply(PARTS["b"], loss=0.5)


def losing(num_hosts: int, room: int | None = None) -> tuple[HostedEngine, ThreadHosts]:
    found: list[ThreadHosts] = []
    workers = {client: answering(part) for client, part in PARTS.items()} | {"b": Losing(found)}
    hosts = ThreadHosts(workers, num_hosts)
    hosts.room = room
    found.append(hosts)
    return HostedEngine(hosts, CHUNK_BYTES), hosts


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
def test_the_client_of_a_lost_host_is_missing_once_and_a_new_host_takes_its_place(num_hosts: int) -> None:
    engine, hosts = losing(num_hosts)
    with engine:
        outcome = engine.carry_out(numbered(0))
        assert outcome.missing == {"b": LOST}
        assert list(outcome.replies) == ["a", "c"]
        assert list(engine.clients()) == ["a", "b", "c"]
        again = engine.carry_out(numbered(1))
        assert again.missing == {}
        assert again.reduced is not None
        assert again.reduced.sha256() == mean_of(PARTS, dict.fromkeys(PARTS, 1.0)).sha256()
    assert len(hosts.started) == num_hosts + 1


def test_others_go_on_where_there_is_no_room_for_a_new_host() -> None:
    engine, hosts = losing(2, room=2)
    with engine:
        assert engine.carry_out(numbered(0)).missing == {"b": LOST}
        assert engine.carry_out(numbered(1)).missing == {}
    assert len(hosts.started) == 2


def test_the_run_ends_with_its_last_host() -> None:
    engine, _ = losing(1, room=1)
    with engine, pytest.raises(RunError, match="the last process that computes for the clients is lost"):  # noqa: PT012
        engine.carry_out(numbered(0))  # it may still close
        engine.carry_out(numbered(1))


def test_a_run_without_room_for_any_host_does_not_begin() -> None:
    engine, _ = losing(2, room=0)
    with pytest.raises(RunError, match="no process could be started"), engine:
        pass


def test_what_goes_wrong_between_two_turns_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(self: ThreadHost, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        raise StateError("the disk is gone")

    monkeypatch.setattr(ThreadHost, "settle", settle)
    hosts = ThreadHosts({client: answering(part) for client, part in PARTS.items()}, 1)
    with HostedEngine(hosts, CHUNK_BYTES) as engine:
        engine.carry_out(numbered(0))
        with pytest.raises(RunError, match="host 0: the disk is gone"):
            engine.carry_out(numbered(1))


class Failing(ThreadHosts):
    """Cannot start one of the hosts."""

    def __init__(self, workers: Mapping[str, TaskRunner], num_hosts: int, error: Exception, *, after: int) -> None:
        super().__init__(workers, num_hosts)
        self._error, self._left = error, after
        self._guard = threading.Lock()

    def start(self, counted: Mapping[str, ExchangeId]) -> ThreadHost:
        with self._guard:
            self._left -= 1
            if self._left < 0:
                raise self._error
            return super().start(counted)


ERRORS: list[tuple[Exception, str]] = [
    (ImportError("no module torch\nand more"), "host 0 cannot be started: ImportError: no module torch$"),
    (OSError(), "host 0 cannot be started: OSError$"),
    (ConfigError("the data are not there"), "^the data are not there$"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_whatever_goes_wrong_while_a_lost_host_is_replaced_ends_the_run(error: Exception, said: str) -> None:
    found: list[ThreadHosts] = []
    hosts = Failing({"a": answering(PARTS["a"]), "b": Losing(found)}, 1, error, after=1)
    found.append(hosts)
    with HostedEngine(hosts, CHUNK_BYTES) as engine, pytest.raises(RunError if "host" in said else FedDKDError, match=said):  # noqa: PT012
        engine.carry_out(numbered(0))  # it may still close
        engine.carry_out(numbered(1))


@pytest.mark.parametrize(("error", "said"), ERRORS)
def test_hosts_that_were_started_end_if_another_cannot_be(error: Exception, said: str) -> None:
    hosts = Failing({client: answering(part) for client, part in PARTS.items()}, 3, error, after=2)
    with pytest.raises(FedDKDError, match=said.replace("host 0", "host .")), HostedEngine(hosts, CHUNK_BYTES):
        pass
    assert [host.is_lost for host in hosts.started] == [True, True]


def test_a_host_that_was_started_while_the_engine_finished_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.engines.hosted.EXIT_TIMEOUT_S", 0.0)
    engine, hosts = losing(1)
    ends = threading.Semaphore(0)
    start, end = hosts.start, ThreadHost.end

    def late(counted: Mapping[str, ExchangeId]) -> ThreadHost:
        for _ in range(2 if hosts.started else 0):  # when the host is lost, and when the engine has waited long enough
            ends.acquire()
        return start(counted)

    def ended(host: ThreadHost) -> None:
        end(host)
        ends.release()

    monkeypatch.setattr(hosts, "start", late)
    monkeypatch.setattr(ThreadHost, "end", ended)
    with engine:
        engine.begin(numbered(0))
        until(lambda: hosts.started[0].is_lost)
    assert [host.is_lost for host in hosts.started] == [True, True]


@pytest.mark.parametrize("num_hosts", [1, 3])
def test_every_host_hears_once_of_an_exchange_and_of_all_its_clients(num_hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[ThreadHost, list[Mapping[str, bool]]] = {}
    settle = ThreadHost.settle

    def hears(host: ThreadHost, exchange: ExchangeId, counted: Mapping[str, bool]) -> None:
        settle(host, exchange, counted)
        heard.setdefault(host, []).append(dict(counted))

    def after_first(point: str) -> None:
        if point == "engine.acknowledge.after_first":
            until(lambda: len(heard) == num_hosts)

    monkeypatch.setattr(ThreadHost, "settle", hears)
    monkeypatch.setattr("feddkd.engines.hosted_exchange.failpoint", after_first)
    with HostedEngine(ThreadHosts({client: answering(part) for client, part in PARTS.items()}, num_hosts), CHUNK_BYTES) as engine:
        engine.carry_out(numbered(0))
    assert list(heard.values()) == [[dict.fromkeys(PARTS, True)]] * num_hosts


class MovingHosts(ThreadHosts):
    """Hosts with memory of their own, whose clients can move."""

    def __init__(self, config: Config, folder: Path, num_hosts: int) -> None:
        self._config, self._folder = config, folder
        super().__init__(simulated_clients(Simulation(config, folder)), num_hosts, movable=True)

    def local(self) -> LocalClients:
        return short_of_memory(self._config, self._folder)


class Wandering(Dispatch):
    """Gives every client to the other of two hosts in every exchange."""

    def __init__(self, *, movable: bool) -> None:
        super().__init__(movable=movable)
        assert movable
        self._exchanges = 0
        self._queues: dict[int, deque[str]] = {0: deque(), 1: deque()}

    def add(self, clients: Collection[str]) -> None:
        self._exchanges += 1
        for client in clients:
            self._queues[(int(client[-1]) + self._exchanges) % 2].append(client)

    def next(self, host: int) -> Turn | None:
        return self._moved(self._queues[host].popleft(), host) if self._queues[host] else None


def run_on(engine: Engine, config: Config, recorder: Recorder) -> str:
    initial = build_initial(config)
    extensions = Extensions(WeightedMean(), (), NoJournal(), whole=initial.whole, metrics=initial.metrics)
    scheduler = Scheduler(config, algorithms.build(config), engine, run_id=RUN_ID, observers=[recorder], extensions=extensions)
    return scheduler.run(initial.model).model.sha256()


CONFIGURATIONS = {
    "teachers": ["dkd.steps=3"],
    "control variates": ["algorithm.name=scaffold"],
    "steps": ["communication.down=int8"],
    "leftovers": ["communication.up=topk:0.1"],
}


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_client_computes_the_same_at_another_host_and_moves_the_same_bytes(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feddkd.engines.hosted.Dispatch", Wandering)
    config = small_config("rounds=3", *overrides)
    here, there = Recorder(), Recorder()
    with InProcessEngine(
        short_of_memory(config, tmp_path / "in-process"), config.transport.chunk_bytes, holdout=config.data.holdout
    ) as engine:
        expected = run_on(engine, config, here)
    hosts = MovingHosts(config, tmp_path / "hosts", 2)
    with HostedEngine(hosts, config.transport.chunk_bytes, holdout=config.data.holdout) as moving:
        assert run_on(moving, config, there) == expected
    assert [found.traffic for found in there.exchanges] == [found.traffic for found in here.exchanges]
    assert all(set(host.asked) == set(hosts.counts) for host in hosts.started)
