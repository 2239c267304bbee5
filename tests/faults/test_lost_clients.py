"""Client processes that are killed, stopped or come back, at moments that are chosen exactly."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from gated import Moment, StartClient
from harness import (
    RUN_ID,
    FakeWorker,
    Recorder,
    Server,
    answering,
    exchange_of,
    filled,
    mean_of,
    reasons,
    run_in_process,
    serving,
    small_config,
    until,
)
from watching import Clock, WatchedEngine

from feddkd import algorithms
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.errors import ClientError, PausedError
from feddkd.exchange import Closing, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler

GATED = 'algorithm.name="gated:GatedFedDKD"'
NAMES = ["client-0", "client-1", "client-2"]


class Run:
    """A federation of three: the server here, its clients in processes of their own."""

    def __init__(self, server: Server, config: Config, recorder: Recorder) -> None:
        self.server = server
        self.recorder = recorder
        self._config = config

    def start(self) -> Future[RunRecord]:
        config = self._config
        algorithm = algorithms.find(config.algorithm.name)(config)
        scheduler = Scheduler(config, algorithm, self.server.engine, run_id=RUN_ID, observers=[self.recorder])
        return self.server.background(lambda: scheduler.run(build_initial(config).model))


@contextmanager
def federation(
    tmp_path: Path,
    *overrides: str,
    recorder: Recorder | None = None,
    engine: type[GrpcEngine] = GrpcEngine,
) -> Iterator[Run]:
    config = small_config(
        GATED,
        "partition.name=iid",
        "partition.clients=3",
        "scheduler.wait_for_clients=3",
        *overrides,
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    schema = build_initial(config).model.schema
    with serving(engine=engine(config, RUN_ID, schema)) as server:
        yield Run(server, config, recorder or Recorder())


def test_a_client_killed_in_local_training_is_left_out_of_the_round(tmp_path: Path, start_client: StartClient) -> None:
    training = Moment("client-1", "local_train")
    with federation(tmp_path) as run:
        start_client(run.server.address, [0, 2])
        victim = start_client(run.server.address, [1], [training])
        result = run.start()
        victim.wait_at(training)
        victim.kill()
        record = result.result()
    first = run.recorder.of("local_train")
    assert (first.clients_selected, first.clients_reported) == (3, 2)
    assert first.clients_missing == {"client-1": "not connected"}
    assert run.recorder.of("dkd_step").clients_selected == 2
    assert run.recorder.of("local_train", 2).clients_selected == 2
    assert [finished.clients_reported for finished in run.recorder.rounds] == [2, 2]
    assert run.recorder.failures == []
    assert torch.isfinite(record.model.elements(record.model.schema.segments[0])).all()


def test_a_client_killed_in_a_dkd_step_is_missing_from_that_step_alone_on_record(tmp_path: Path, start_client: StartClient) -> None:
    distilling = Moment("client-1", "dkd_step", step=1)
    with federation(tmp_path) as run:
        start_client(run.server.address, [0, 2])
        victim = start_client(run.server.address, [1], [distilling])
        result = run.start()
        victim.wait_at(distilling)
        victim.kill()
        result.result()
    assert run.recorder.of("dkd_step", step=0).clients_missing == {}
    assert run.recorder.of("dkd_step", step=1).clients_missing == {"client-1": "not connected"}
    assert run.recorder.of("local_train", 2).clients_selected == 2


@pytest.mark.parametrize("state", ["kept", "lost"])
def test_a_client_that_comes_back_within_a_round_needs_its_teacher(state: str, tmp_path: Path, start_client: StartClient) -> None:
    distilling, held = (
        Moment("client-1", "dkd_step", step=0),
        Moment("client-2", "dkd_step", step=0),
    )
    with federation(tmp_path, "dkd.steps=3") as run:
        start_client(run.server.address, [0])
        other = start_client(run.server.address, [2], [held])
        victim = start_client(run.server.address, [1], [distilling])
        result = run.start()
        victim.wait_at(distilling)
        other.wait_at(held)
        victim.kill()
        run.server.wait_for("client-0", "client-2")
        if state == "lost":
            for teacher in (tmp_path / "clients" / "client-1").glob("*.safetensors"):
                teacher.unlink()
        start_client(run.server.address, [1])
        run.server.wait_for(*NAMES)
        other.release(held)
        result.result()
    assert run.recorder.of("dkd_step", step=0).clients_missing == {"client-1": "not connected"}
    for step in (1, 2):
        missing = run.recorder.of("dkd_step", step=step).clients_missing
        if state == "kept":
            assert missing == {}
        else:
            assert list(missing) == ["client-1"]
            assert "no teacher of round 1" in missing["client-1"]
    assert run.recorder.of("local_train", 2).clients_missing == {}
    assert run.recorder.of("dkd_step", 2).clients_missing == {}


def test_a_client_that_comes_back_in_time_answers_the_very_exchange_it_was_killed_in(tmp_path: Path, start_client: StartClient) -> None:
    distilling = Moment("client-1", "dkd_step", step=1)
    with federation(tmp_path, "scheduler.reconnect_grace_s=100") as run:
        start_client(run.server.address, [0, 2])
        victim = start_client(run.server.address, [1], [distilling])
        result = run.start()
        victim.wait_at(distilling)
        victim.kill()
        start_client(run.server.address, [1])
        record = result.result()
        config = run._config
    assert all(exchange.clients_missing == {} for exchange in run.recorder.exchanges)
    assert record.model.sha256() == run_in_process(config, tmp_path / "reference").model.sha256()


def test_a_run_below_its_quorum_pauses_and_gives_up_when_nobody_comes(tmp_path: Path, start_client: StartClient) -> None:
    distilling = Moment("client-1", "dkd_step", step=0)
    with federation(tmp_path, "scheduler.min_clients=3", "scheduler.pause_timeout_s=0") as run:
        start_client(run.server.address, [0, 2])
        victim = start_client(run.server.address, [1], [distilling])
        result = run.start()
        victim.wait_at(distilling)
        victim.kill()
        with pytest.raises(PausedError) as stopped:
            result.result()
    assert run.recorder.failures == [
        (
            1,
            0,
            "round 1 dkd_step 1: 2 of 3 clients answered, 3 are needed (client-1: not connected)",
        ),
    ]
    assert [reason.partition(";")[0] for reason in run.recorder.pauses] == ["round 1 needs 3 clients, 2 are connected"]
    assert str(stopped.value) == "round 1 needs 3 clients, 2 are connected; no other client joined within scheduler.pause_timeout_s = 0"
    assert run.recorder.run is None


class Reviver(Recorder):
    """Does something when the run pauses."""

    on_pause: Callable[[], object]

    def paused(self, reason: str) -> None:
        super().paused(reason)
        self.on_pause()


def test_a_paused_run_goes_on_when_the_client_comes_back_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, start_client: StartClient
) -> None:
    distilling = Moment("client-1", "dkd_step", round=2)
    recorder = Reviver()
    with federation(tmp_path, "scheduler.min_clients=3", "dkd.optimizer_state=keep", recorder=recorder) as run:
        recorder.on_pause = lambda: start_client(run.server.address, [1])
        start_client(run.server.address, [0, 2])
        victim = start_client(run.server.address, [1], [distilling])
        result = run.start()
        victim.wait_at(distilling)
        victim.kill()
        record = result.result()
        config = run._config
    assert [(number, attempt) for number, attempt, _ in recorder.failures] == [(2, 0)]
    assert [reason.partition(";")[0] for reason in recorder.pauses] == ["round 2 needs 3 clients, 2 are connected"]
    assert recorder.of("local_train", 2, attempt=1).clients_missing == {}
    assert record.model.sha256() == run_in_process(config, tmp_path / "reference").model.sha256()


class QuorumKeeper(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.attempts: list[tuple[int, int]] = []

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self.attempts.append((round_number, attempt))


def test_clients_that_are_there_but_cannot_answer_end_the_run_after_the_retries(tmp_path: Path, start_client: StartClient) -> None:
    recorder = QuorumKeeper()
    with federation(tmp_path, "scheduler.min_clients=3", "scheduler.retries=2", recorder=recorder) as run:
        clients = tmp_path / "clients"
        start_client(run.server.address, [0, 1, 2])
        run.server.wait_for(*NAMES)
        shutil.rmtree(clients / "client-1")  # nowhere to keep the teacher
        (clients / "client-1").write_text("in the way")
        with pytest.raises(PausedError) as stopped:
            run.start().result()
    assert recorder.attempts == [(1, 0), (1, 1), (1, 2)]
    assert [attempt for _, attempt, _ in recorder.failures] == [0, 1, 2]
    assert "client-1: StateError" in str(stopped.value)
    assert "3 clients are connected, so waiting for more would not help" in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_stopped_client_is_left_out_at_the_deadline_and_takes_part_again_when_it_goes_on(
    tmp_path: Path,
    start_client: StartClient,
    clock: Clock,
) -> None:
    config = small_config("algorithm.name=fedavg", "partition.name=iid", "partition.clients=3")
    (tmp_path / "config.toml").write_text(config.to_toml())
    model = build_initial(config).model
    updates = {"client-0": filled(model.schema, 0), "client-2": filled(model.schema, 2)}
    with serving(config, model.schema) as server:
        stopped = start_client(server.address, [1])
        for client, update in updates.items():
            server.agent(client, answering(update))
        server.wait_for(*NAMES)
        os.kill(stopped.pid, signal.SIGSTOP)
        closing = Closing(600.0)
        result = server.begin(exchange_of(NAMES, model, reply_schema=model.schema, closing=closing))
        until(lambda: server.engine.states().working == 1)
        clock.advance(server.engine, 600.0)
        without = result.result()
        os.kill(stopped.pid, signal.SIGCONT)
        again = exchange_of(NAMES, model, reply_schema=model.schema, round_number=2)
        replied = server.engine.carry_out(again).replies
    assert reasons(without) == {"client-1": "no reply within 600 s"}
    assert without.reduced is not None
    weights = dict.fromkeys(updates, 1.0)
    assert without.reduced.sha256() == mean_of(updates, weights).sha256()
    assert list(replied) == NAMES


def test_a_client_killed_in_the_middle_of_a_large_upload_leaves_the_mean_of_the_others(
    tmp_path: Path,
    start_client: StartClient,
) -> None:
    config = small_config(
        'model.name="gated:wide_mlp"',
        "algorithm.name=fedavg",
        "partition.name=iid",
        "partition.clients=3",
        "rounds=1",
        "transport.chunk_bytes=16384",
        "transport.staging_bytes=1048576",
    )
    (tmp_path / "config.toml").write_text(config.to_toml())
    recorder = Recorder()
    model = build_initial(config).model
    engine = WatchedEngine(config, RUN_ID, model.schema)
    with serving(engine=engine) as server:
        processes = [start_client(server.address, [client]) for client in range(3)]
        server.wait_for(*NAMES)
        scheduler = Scheduler(
            config,
            algorithms.find("fedavg")(config),
            engine,
            run_id=RUN_ID,
            observers=[recorder],
        )

        def kill(client: str) -> None:
            """Kill client-1 while most of its upload is still before it: a window is 2 MiB."""
            if client == "client-1" and engine.chunks[client] == 1:
                processes[1].kill()

        engine.on_chunk = kill
        record = scheduler.run(model)
    first = recorder.of("local_train")
    assert first.clients_missing == {"client-1": "not connected"}
    assert first.traffic.payload_bytes_up == 2 * model.schema.size_bytes
    chunks = len(model.schema.chunks(config.transport.chunk_bytes))
    assert (engine.chunks["client-0"], engine.chunks["client-2"]) == (chunks, chunks)
    assert 0 < engine.chunks["client-1"] < chunks
    reference = run_without("client-1", config, tmp_path / "reference")
    assert record.model.sha256() == reference.model.sha256()


def run_without(client: str, config: Config, out: Path) -> RunRecord:
    """The reference run in which this client fails."""

    def fail(_: Task) -> Reply:
        raise ClientError("left out")

    workers: dict[str, Worker] = dict(simulated_workers(config, out))
    workers[client] = FakeWorker(fail, workers[client].model_schema, workers[client].counts.total)
    return run_in_process(config, out, workers=workers)
