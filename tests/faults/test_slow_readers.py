"""Clients that do not read their stream: what waits for one is bounded, and nobody else waits."""

from __future__ import annotations

import gc
import weakref

import grpc
import pytest
import torch
from harness import (
    RUN_ID,
    FakeWorker,
    HandClient,
    Recorder,
    answer_frames,
    answering,
    exchange_of,
    filled,
    serving,
    small_config,
)
from live import Scene

from feddkd import algorithms
from feddkd.engines import grpc as grpc_engine
from feddkd.exchange import DELIVER, Closing, ExchangeId, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.rounds import Scheduler
from feddkd.tensors import Schema, TensorSpec
from feddkd.transport.messages import failure_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.stream import MESSAGE_BURST

LARGE = Schema([TensorSpec("w", torch.float32, (1 << 18,))])
"""1 MiB: far more than fits between the server and a client that takes 64 KiB."""

SMALL_WINDOW = [("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)]
FIRST = Closing(1000.0, enough=1, grace_after_enough_s=0.0)
"""Closes with the first reply."""

EXCHANGES = 5


def deaf_client(address: str) -> HandClient:
    return HandClient(address, "deaf", options=SMALL_WINDOW)


def test_broadcasts_that_a_client_does_not_read_do_not_pile_up() -> None:
    """The models of past exchanges are counted that are still in memory."""
    models: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    with serving(schema=LARGE) as server, deaf_client(server.address) as deaf:
        server.agent("good", answering(filled(LARGE, 1)))
        deaf.connect()
        server.wait_for("deaf", "good")
        for number in range(EXCHANGES):
            model = filled(LARGE, number)
            models.append(weakref.ref(model.block))
            outcome = server.engine.carry_out(
                exchange_of(
                    ["deaf", "good"],
                    model,
                    reply_schema=LARGE,
                    round_number=1 + number,
                    closing=FIRST,
                )
            )
            assert list(outcome.replies) == ["good"]
            del model, outcome
            server.engine.clients()  # so the server's loop has done with the exchange
            gc.collect()
            alive.append(sum(each() is not None for each in models))
        server.wait_for("deaf", "good")  # it still has its stream
    assert max(alive) <= 1
    gc.collect()
    assert all(each() is None for each in models)


def test_a_client_that_reads_again_takes_part_again() -> None:
    """It gets the exchange that is open, and nothing of most that it missed."""
    with serving(schema=LARGE) as server, deaf_client(server.address) as deaf:
        server.agent("good", answering(filled(LARGE, 1)))
        deaf.connect()
        server.wait_for("deaf", "good")
        for number in range(1, EXCHANGES):
            exchange = exchange_of(
                ["deaf", "good"],
                filled(LARGE, number),
                reply_schema=LARGE,
                round_number=number,
                closing=FIRST,
            )
            server.engine.carry_out(exchange)
        model = filled(LARGE, EXCHANGES)
        last = exchange_of(["deaf"], model, reply_schema=LARGE, round_number=EXCHANGES)
        result = server.begin(last)
        seen: list[pb.Work] = []
        while not seen or seen[-1].id.round < EXCHANGES:
            response = deaf.response()
            if response.HasField("work"):
                seen.append(response.work)
        deaf.send(*answer_frames(seen[-1], filled(LARGE, 2)))
        outcome = result.result()
    assert outcome.missing == {}
    # The one that was being written when it stopped reading, and the one that waited last.
    assert [work.id.round for work in seen] == [1, EXCHANGES]


def test_messages_of_a_client_that_reads_no_receipt_end_its_stream(scene: Scene) -> None:
    """Each is answered by a receipt; the server takes a few of them, and no more."""
    closed = failure_message(ExchangeId(RUN_ID, 7, 0, "local_train", 0), "x" * 200)
    with deaf_client(scene.server.address) as deaf:
        deaf.connect()
        scene.server.wait_for("deaf", "honest")
        before = scene.server.engine.other_traffic()
        deaf.send(*[closed] * 5000)
        scene.server.wait_for("honest")
        taken = scene.server.engine.other_traffic()
        assert deaf.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
    answered = (taken.wire_bytes_up - before.wire_bytes_up) // len(closed)
    assert MESSAGE_BURST <= answered < 5000
    receipts = taken.wire_bytes_down - before.wire_bytes_down
    assert receipts < 1 << 20


def test_a_whole_run_goes_on_and_ends_without_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_engine, "FAREWELL_GRACE_S", 0.1)
    config = small_config(
        "algorithm.name=fedavg",
        'model.name="gated:wide_mlp"',
        "rounds=3",
        "scheduler.min_clients=2",
        "scheduler.grace_after_quorum_s=0",
        "scheduler.wait_for_clients=3",
        "data.test_set=false",
    )
    model, recorder = build_initial(config).model, Recorder()
    update = filled(model.schema, 1)

    def respond(task: Task) -> Reply:
        return Reply() if task.id.name == DELIVER else Reply(update)

    with serving(config, model.schema) as server, deaf_client(server.address) as deaf:
        for name in ("a", "b"):
            server.agent(name, FakeWorker(respond, model.schema))
        deaf.connect()
        server.wait_for("a", "b", "deaf")
        algorithm = algorithms.build(config)
        scheduler = Scheduler(
            config,
            algorithm,
            server.engine,
            run_id=RUN_ID,
            observers=[recorder],
        )
        record = scheduler.run(model)
    why = {"deaf": "the exchange closed after 2 replies"}
    assert [exchange.clients_missing for exchange in recorder.exchanges] == [why] * 4
    assert record.rounds_missed == {"deaf": 3}
    assert record.not_delivered == why
