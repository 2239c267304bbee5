"""A connection that breaks outside an exchange has the same time to come back as within one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from cable import Cable
from harness import (
    RUN_ID,
    EngineProxy,
    Recorder,
    run_in_process,
    serving,
    small_config,
    start_agent,
)
from watching import WatchedEngine

from feddkd import algorithms
from feddkd.client import backoff
from feddkd.client.agent import Agent
from feddkd.client.simulated import simulated_workers
from feddkd.config import Config
from feddkd.exchange import DELIVER, Exchange
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine, OpenExchange
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors

CABLED = "client-0"


class Moment(NamedTuple):
    """The exchange before which a connection breaks."""

    name: str
    round: int = 1
    step: int = 0


class Interrupted(EngineProxy):
    """Lets one client's connection break, and come back once the exchange of a moment has begun."""

    def __init__(self, engine: WatchedEngine, cable: Cable, moment: Moment) -> None:
        super().__init__(engine)
        self._watched = engine
        self._cable = cable
        self._moment = moment
        self.away = False

    def lose(self) -> None:
        """Return once the engine has noticed that the connection is lost."""
        self._cable.unplug()
        self._watched.losses.acquire()
        self.away = True

    def begin(self, exchange: Exchange) -> OpenExchange:
        this = Moment(exchange.id.name, exchange.id.round, exchange.id.step)
        if this == self._moment and not self.away:
            self.lose()
        begun = super().begin(exchange)
        if this == self._moment:
            self._cable.plug_in()
        return begun


class LosesAfter(Recorder):
    """Breaks the connection after a round, before the next clients are chosen."""

    def __init__(self, round_number: int) -> None:
        super().__init__()
        self.engine: Interrupted | None = None
        self._round = round_number

    def engine_ready(self, engine: Engine) -> None:
        assert isinstance(engine, Interrupted)
        self.engine = engine

    def round_finished(self, round_number: int, model: Tensors) -> None:
        if round_number == self._round and self.engine is not None:
            self.engine.lose()


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    return small_config("scheduler.reconnect_grace_s=1000", "scheduler.wait_for_clients=4")


def run(config: Config, folder: Path, moment: Moment, recorder: Recorder) -> RunRecord:
    """A run in which one client's connection breaks."""
    model = build_initial(config).model
    engine = WatchedEngine(config, RUN_ID, model.schema)
    workers = simulated_workers(config, folder / "clients")
    with (
        ThreadPoolExecutor(1) as executor,
        serving(engine=engine) as server,
        Cable(server.address) as cable,
    ):
        cabled = workers.pop(CABLED)
        farewell = start_agent(Agent(cable.address, CABLED, cabled, executor, retry_for_s=60))
        for client, worker in workers.items():
            server.agent(client, worker, executor)
        server.wait_for(CABLED, *workers)
        interrupted = Interrupted(engine, cable, moment)
        algorithm = algorithms.build(config)
        scheduler = Scheduler(config, algorithm, interrupted, run_id=RUN_ID, observers=[recorder])
        record = scheduler.run(model)
        assert interrupted.away
        assert farewell.result().completed
    return record


@pytest.mark.parametrize(
    "moment",
    [
        Moment("local_train"),
        Moment("dkd_step", step=0),
        Moment("dkd_step", round=2, step=1),
        Moment(DELIVER, round=2),
    ],
    ids=lambda moment: f"{moment.name}-{moment.round}-{moment.step}",
)
def test_a_break_between_two_exchanges_costs_nothing(
    moment: Moment,
    config: Config,
    tmp_path: Path,
) -> None:
    recorder = Recorder()
    record = run(config, tmp_path / "grpc", moment, recorder)
    assert_undisturbed(record, recorder, config, tmp_path)


@pytest.mark.parametrize(
    ("round_number", "moment"),
    [(1, Moment("local_train", round=2)), (2, Moment(DELIVER, round=2))],
    ids=["the_next_round", "the_delivery"],
)
def test_a_break_before_the_next_clients_are_chosen_costs_nothing(
    round_number: int,
    moment: Moment,
    config: Config,
    tmp_path: Path,
) -> None:
    recorder = LosesAfter(round_number)
    record = run(config, tmp_path / "grpc", moment, recorder)
    assert_undisturbed(record, recorder, config, tmp_path)


def assert_undisturbed(
    record: RunRecord,
    recorder: Recorder,
    config: Config,
    folder: Path,
) -> None:
    assert all(exchange.clients_missing == {} for exchange in recorder.exchanges)
    assert all(exchange.clients_selected == 4 for exchange in recorder.exchanges)
    assert record.rounds_missed == {}
    assert record.not_delivered == {}
    assert record.model.sha256() == run_in_process(config, folder / "reference").model.sha256()
