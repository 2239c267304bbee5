"""`feddkd client` against a live server: what it says at the end, and what it refuses at the start."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from harness import RUN_ID, Server, exchange_of, filled, serving, small_config

from feddkd import algorithms, cli
from feddkd.client import tensor_file
from feddkd.client.kept_reply import KeptReply
from feddkd.client.outbox import Outbox
from feddkd.client.own_site import site_config, site_worker
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import FINAL_MODEL
from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codecs import find
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.forms import Forms
from feddkd.engines.grpc import GrpcEngine
from feddkd.exchange import DELIVER, Closing, Exchange, Reply
from feddkd.models.initial import build_initial
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Tensors
from feddkd.transport.messages import answer_message
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

Client = Callable[..., tuple[int, list[str]]]
"""client(server, state directory, ...) -> exit code and the lines of standard error"""


@pytest.fixture
def client(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Client:
    def run(server: Server, state: Path, *arguments: str, name: str = "site") -> tuple[int, list[str]]:
        command = ["client", "--server", server.address, "--id", name, "--state", str(state), "--retry-for", "20"]
        monkeypatch.setattr(sys, "argv", ["feddkd", *command, "--partition-index", "0", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), capsys.readouterr().err.splitlines()

    return run


def federation_of_one() -> Config:
    config = small_config("algorithm.name=fedavg", "rounds=1", "partition.clients=1", "partition.labels=10", "scheduler.wait_for_clients=1")
    info = describe(config.data)
    shapes = {"input_shape": info.input_shape, "num_classes": info.num_classes}
    return config.model_copy(update={"data": config.data.model_copy(update=shapes)})


def start_run(server: Server, config: Config) -> Future[RunRecord]:
    scheduler = Scheduler(config, algorithms.build(config), server.engine, run_id=RUN_ID)
    return server.background(lambda: scheduler.run(build_initial(config).model))


def engine_of(config: Config) -> GrpcEngine:
    return GrpcEngine(config, RUN_ID, build_initial(config).model.schema)


def test_a_client_names_the_final_model_that_it_has(client: Client, tmp_path: Path) -> None:
    config = federation_of_one()
    with serving(engine=engine_of(config)) as server:
        running = start_run(server, config)
        code, lines = client(server, tmp_path / "state")
        record = running.result()
    assert code == 0
    assert lines[-1].endswith(f"the final model is in {tmp_path / 'state' / FINAL_MODEL}.safetensors")
    kept = StateDir(tmp_path / "state", "site").load(FINAL_MODEL, record.model.schema, RUN_ID)
    assert kept is not None
    assert kept.sha256() == record.model.sha256()
    assert lines[-2] == f"site: model sha256 {record.model.sha256()}"


def test_a_client_whose_disk_is_full_at_the_end_does_not_say_that_it_has_the_model(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = federation_of_one()
    StateDir(tmp_path / "state", "site").save(FINAL_MODEL, filled(build_initial(config).model.schema, 1), "an older run")

    def disk_full(path: Path, tensors: object, metadata: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file, "write_model", disk_full)
    with serving(engine=engine_of(config)) as server:
        running = start_run(server, config)
        code, lines = client(server, tmp_path / "state")
        running.result()
    assert code == 1
    assert lines[-1].startswith("feddkd: ")
    assert lines[-1].endswith("but this client did not get or could not keep the final model")
    assert "safetensors" not in lines[-1]


def test_a_state_directory_in_use_is_said_before_the_server_is_asked(client: Client, tmp_path: Path) -> None:
    StateDir(tmp_path / "state", "other")
    with serving() as server:
        code, lines = client(server, tmp_path / "state")
        assert server.engine.num_joined == 0
    assert code == 1
    expected = f"state directory {tmp_path / 'state'} belongs to client 'other', not to 'site'; each client needs its own directory"
    assert lines == [f"feddkd client: site, server {server.address}", f"feddkd: {expected}"]


def test_a_wrong_key_in_the_sites_file_is_said_before_the_server_is_asked(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('[data]\nnam = "x"\n')
    with serving() as server:
        code, lines = client(server, tmp_path / "state", str(file))
        assert server.engine.other_traffic().wire_bytes_up == 0
    assert code == 2
    assert lines[1:] == [f"feddkd: {file}: unknown key 'data.nam' (did you mean 'name'?)"]
    assert not (tmp_path / "state").exists()


def test_what_a_stopped_run_left_is_not_the_final_model(client: Client, tmp_path: Path) -> None:
    config = federation_of_one()
    with serving(engine=engine_of(config)) as server:

        def stop() -> None:
            server.wait_for("site")
            server.engine.finish(False, "the server stopped\x1b[2J")

        stopping = server.background(stop)
        code, lines = client(server, tmp_path / "state")
        stopping.result()
    assert code == 1
    assert lines[-1] == r"feddkd: the run ended early: the server stopped\x1b[2J"
    assert not (tmp_path / "state" / f"{FINAL_MODEL}.safetensors").exists()


@pytest.mark.parametrize("while_", ["feddkd.cli.standing.fetch_server_config", "feddkd.cli.standing.take_part"])
def test_a_client_that_is_interrupted_says_what_is_kept_and_how_to_go_on(
    while_: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(while_, interrupt)
    config, state = federation_of_one(), tmp_path / "state"
    with serving(engine=engine_of(config)) as server:
        code, lines = client(server, state)
    assert code == 130
    said, command = lines[-2:]
    assert said == f"feddkd: interrupted: what it has computed is kept in {state}/; to go on, the same command again:"
    assert command.startswith(f"  feddkd client --server {server.address} --id site --state {state} ")


def no_computation(*_: object) -> None:
    raise AssertionError("the client computed")


@pytest.mark.parametrize("down", ["none", "int8"])
@pytest.mark.parametrize("before", ["nothing", "an unsent reply", "another run"])
def test_a_client_that_was_away_at_the_end_gets_the_model_when_it_comes_back(
    down: str, before: str, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs nothing of the exchange before, not even the model that a step would lead from, and computes nothing."""
    config, state = federation_of_one(), tmp_path / "state"
    model = filled(build_initial(config).model.schema, 3)
    leave_behind(before, state, config)
    monkeypatch.setattr("feddkd.client.worker.answer", no_computation)
    with serving(engine=engine_of(config)) as server:
        delivery = deliver(model, down)
        outcome = server.background(lambda: server.engine.carry_out(delivery))
        outcome.add_done_callback(lambda _: server.engine.finish(completed=True, reason="all rounds are done"))
        code, lines = client(server, state)
        assert list(outcome.result().replies) == ["site"]
    assert code == 0, lines
    kept = StateDir(state, "site").load(FINAL_MODEL, model.schema, RUN_ID)
    assert kept is not None
    assert kept.sha256() == delivery.payload.sha256()
    assert not (state / "outbox.safetensors").exists()


def leave_behind(what: str, state: Path, config: Config) -> None:
    """What an earlier process left in the state directory."""
    schema, own = build_initial(config).model.schema, StateDir(state, "site")
    if what == "another run":
        own.save(FINAL_MODEL, filled(schema, 1), "an older run")
    if what == "an unsent reply":
        trained = exchange_of(["site"], filled(schema, 1), reply_schema=schema, round_number=config.rounds)
        message = pb.ParticipateResponse.FromString(Forms(trained, config.transport.chunk_bytes).message("site")).work
        payload = Payload(filled(schema, 2), config.transport.chunk_bytes)
        reply = KeptReply(answer_message(trained.id, Reply(), payload), payload)
        Outbox(own, worker_fingerprint(own, config)).keep(message, reply)


def worker_fingerprint(own: StateDir, config: Config) -> str:
    return site_worker(site_config(ServerConfig(config.shared_toml()).config, {}), own, 0).fingerprint


def deliver(model: Tensors, down: str) -> Exchange:
    """The last exchange; with a codec it is sent as a step from what the client would hold, had it been there."""
    closing = Closing(60.0, reconnect_grace_s=60.0)
    exchange = exchange_of(["site"], model, reply_schema=None, name=DELIVER, closing=closing)
    if down == "none":
        return exchange
    codec, broadcaster = find(down, unbiased=False), Broadcaster(1 << 20, 3)
    sent, broadcast = broadcaster.broadcast(codec, filled(model.schema, 9), ["site"])
    broadcaster.received(broadcast, sent, ["site"])
    sent, broadcast = broadcaster.broadcast(codec, model, ["site"])
    assert broadcast is not None
    assert broadcast.holders == {"site"}
    return replace(exchange, payload=sent, broadcast=broadcast)
