"""Who may join, who may not, and what a client does that finds no server."""

import itertools
import logging
import socket
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
import torch
from harness import (
    RUN_ID,
    SCHEMA,
    FakeWorker,
    answer_frames,
    answering,
    exchange_of,
    serving,
    small_config,
    start_agent,
)
from live import MODEL, OURS, Scene, status_of

from feddkd.client import backoff
from feddkd.client.agent import Agent
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import LOOPBACK
from feddkd.errors import AddressInUseError, RefusedError, UnreachableError
from feddkd.exchange import Reply
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.frames import SERVICE
from feddkd.transport.pb import federation_pb2 as pb


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_protocol_version_may_neither_ask_nor_join(scene: Scene, version: int) -> None:
    with scene.hand() as hand:
        code, details = status_of(lambda: hand.join(version=version))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"version {version}, this server 1" in details
    with grpc.insecure_channel(scene.server.address) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/Describe",
            pb.DescribeRequest.SerializeToString,
            pb.DescribeResponse.FromString,
        )
        assert status_of(lambda: ask(pb.DescribeRequest(protocol_version=version)))[0] is grpc.StatusCode.FAILED_PRECONDITION
        assert ask(pb.DescribeRequest(protocol_version=1)).manifest.run_id == RUN_ID


@pytest.mark.parametrize("client_id", ["", "A", "-a", ".a", "a" * 65, "a b", "a/b", "a\n", "ä", "../../etc"])
def test_a_malformed_client_id_is_refused(scene: Scene, client_id: str) -> None:
    with scene.hand(client_id) as hand:
        assert status_of(hand.join)[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("client_id", ["a", "0", "a" * 64, "site-1.example_b"])
def test_a_well_formed_client_id_is_accepted(scene: Scene, client_id: str) -> None:
    with scene.hand(client_id) as hand:
        assert len(hand.join().session_token) == 32


@pytest.mark.parametrize("examples", [0, -1, -(2**63), 2**53 + 1])
def test_an_example_count_that_is_no_weight_is_refused(scene: Scene, examples: int) -> None:
    with scene.hand() as hand:
        code, details = status_of(lambda: hand.join(examples=examples))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(examples) in details


def test_a_second_process_with_the_same_id_is_turned_away(scene: Scene) -> None:
    with scene.hand("honest") as impostor:
        assert status_of(lambda: impostor.join(instance="another"))[0] is grpc.StatusCode.ALREADY_EXISTS


def test_a_newer_stream_of_the_same_client_ends_the_older_one(scene: Scene) -> None:
    with scene.hand() as old, scene.hand() as new:
        token = old.join().session_token
        new.schema = SCHEMA
        old.open(token)
        scene.server.wait_for("honest", "hand")
        outcome = scene.begin("hand")
        old.work()
        new.open(token)
        assert old.status() is grpc.StatusCode.ABORTED
        work, _ = new.work()
        new.send(*answer_frames(work, OURS))
        assert outcome.result().missing == {}


@pytest.mark.parametrize(
    "first",
    [b"", b"garbage", pb.ParticipateRequest(hello=pb.Hello(session_token="é")).SerializeToString()],
)
def test_a_stream_without_a_session_is_refused(scene: Scene, first: bytes) -> None:
    with scene.hand() as hand:
        assert hand.open_with(first).status() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_with_an_unknown_token_is_refused(scene: Scene) -> None:
    with scene.hand() as hand:
        assert hand.open("0" * 32).status() is grpc.StatusCode.UNAUTHENTICATED


def test_a_stream_that_ends_at_once_is_refused(scene: Scene) -> None:
    with scene.hand() as hand:
        assert hand.open_with(None).status() is grpc.StatusCode.UNAUTHENTICATED


def test_a_port_that_is_taken_is_an_error_at_once(scene: Scene) -> None:
    engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
    port = int(scene.server.address.rpartition(":")[2])
    with pytest.raises(AddressInUseError, match=f"{LOOPBACK}:{port}"):
        engine.start(LOOPBACK, port)


def test_an_address_of_another_machine_is_an_error_at_once() -> None:
    engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
    with pytest.raises(AddressInUseError, match=r"192\.0\.2\.1:0"):
        engine.start("192.0.2.1", 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(backoff, "LONGEST_DELAY_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_client_tries_again_and_says_so_until_its_patience_ends(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(backoff, "time", clock)
    with socket.socket() as taken, serving() as server:
        taken.bind((LOOPBACK, 0))  # and never listens
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        agent = Agent(address, "alone", answering(OURS), server._threads, retry_for_s=3)
        with pytest.raises(UnreachableError, match=rf"server {address}: .*\(gave up after 3 s\)"):
            start_agent(agent).result()
    messages = [record.getMessage() for record in caplog.records]
    tries = [message for message in messages if "trying again in" in message]
    assert len(tries) == 3
    assert [record.levelno for record in caplog.records if record.getMessage() in tries] == [logging.WARNING, logging.INFO, logging.INFO]
    assert all(address in line and "\n" not in line for line in tries)


def test_a_client_with_another_model_refuses_to_take_part(scene: Scene) -> None:
    other = FakeWorker(lambda _: Reply(), Schema([TensorSpec("layer.weight", torch.float32, (4, 6))]))
    agent = Agent(scene.server.address, "other", other, scene.server._threads)
    with pytest.raises(RefusedError, match="this client's model is not the server's: tensor"):
        start_agent(agent).result()


def test_a_client_that_trains_other_layers_refuses_to_take_part(scene: Scene) -> None:
    """Codecs encode what is trained, so every one of its replies would have another size than the server's."""
    frozen = Schema(replace(spec, trainable=not spec.trainable) for spec in MODEL.schema.specs)
    agent = Agent(scene.server.address, "other", FakeWorker(lambda _: Reply(), frozen), scene.server._threads)
    with pytest.raises(RefusedError, match=r"tensor '.*' is (not )?trained here, and"):
        start_agent(agent).result()


@pytest.mark.usefixtures("impatient")
def test_a_client_finds_its_server_again_after_a_restart() -> None:
    executor_of = FakeWorker(lambda _: Reply(OURS))
    with serving() as first:
        port = int(first.address.rpartition(":")[2])
        taking_part = start_agent(Agent(first.address, "site", executor_of, first._threads))
        first.wait_for("site")
        first.engine._server.stop()  # without a farewell, as when the process dies
        engine = GrpcEngine(small_config(), RUN_ID, SCHEMA)
        engine.start(LOOPBACK, port)
        engine.wait_for_clients(1, None)
        outcome = engine.carry_out(exchange_of(["site"], MODEL))
        engine.finish(True, "done")
        assert taking_part.result().reason == "done"
        first.engine._finished = True
    assert outcome.missing == {}
