"""What every engine promises: equal outcomes of equal exchanges, and an abort that ends everything.

Each test runs on every engine of `engine_table`. Where a scenario is defined for all of them,
`agreed` holds the whole outcome equal to the reference's: bits, numbers, reasons, and bytes.
"""

from __future__ import annotations

import errno
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import collecting
import pytest
import torch
from blocking import Blocking, fail, give_up, reply_all_the_same
from engine_table import (
    ENGINES,
    REFERENCE,
    EngineUnderTest,
    Facts,
    Workers,
    agreed,
    on_every_engine,
)
from harness import (
    RUN_ID,
    SCHEMA,
    FakeWorker,
    OnePass,
    OrderSensitiveMean,
    Recorder,
    answering,
    exchange_of,
    filled,
    mean_of,
    small_config,
    until,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd import algorithms, failpoints
from feddkd.aggregator.rule import Reduction, Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.algorithms.base import Cohort, CohortAround
from feddkd.client.simulated import simulated_workers
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import ReplyStage, Worker
from feddkd.data.datasets import describe, load_train
from feddkd.data.partitions import client_ids, hold_out, partition
from feddkd.engines.collection import max_evaluated
from feddkd.errors import ClientError, RunError, StateError
from feddkd.exchange import (
    DELIVER,
    MAX_METRICS,
    Cause,
    Closing,
    Evaluation,
    Exchange,
    Missing,
    Outcome,
    Reply,
    Task,
)
from feddkd.failpoints import FailpointError, planned
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import ClientStates, Engine
from feddkd.scheduler.records import ExchangeRecord, RunRecord
from feddkd.scheduler.rounds import CohortLayer, Extensions, Scheduler
from feddkd.tensors import DTYPES, Schema, Segment, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.payload import Payload

_T = TypeVar("_T")

WEIGHTS = {"a": 3.0, "b": 1.0, "c": 7.0}
PAYLOAD = filled(SCHEMA, 0)
PARTS = {client: filled(SCHEMA, seed) for seed, client in enumerate(WEIGHTS, start=1)}
HONEST = {client: answering(part) for client, part in PARTS.items()}

FLOATS = Schema([TensorSpec("w", torch.float32, (4, 5))])
"""One chunk: a reply is refused with its last message, so that all engines count the same bytes."""


def replying(reply: Reply, schema: Schema = SCHEMA) -> FakeWorker:
    return FakeWorker(lambda _: reply, schema)


def raising(error: Exception) -> FakeWorker:
    def respond(_: Task) -> Reply:
        raise error

    return FakeWorker(respond)


def numbered(step: int, *clients: str, rule: WeightedMean | None = None) -> Exchange:
    """One of several exchanges."""
    exchange = exchange_of(list(clients), filled(SCHEMA, 10 + step), rule=rule or WeightedMean())
    return replace(exchange, id=replace(exchange.id, step=step))


def check_usable(running: Engine) -> None:
    """Nothing is left of what went wrong before."""
    outcome = running.carry_out(numbered(9, *WEIGHTS))
    assert (outcome.missing, outcome.fault) == ({}, "")
    assert sha256(outcome) == mean_of(PARTS, dict.fromkeys(PARTS, 1.0)).sha256()


def sha256(outcome: Outcome) -> str:
    assert outcome.reduced is not None
    return outcome.reduced.sha256()


# Contributions and what they are reduced to.


@on_every_engine
def test_the_weighted_mean_has_the_bits_of_its_definition(engine: EngineUnderTest) -> None:
    specs = [TensorSpec(f"{name}.{n}", DTYPES[name], (n, 3)) for name in DTYPES for n in (1, 50)]
    schema = Schema(specs)
    parts = {client: filled(schema, seed) for seed, client in enumerate(WEIGHTS)}
    workers = {client: answering(part) for client, part in parts.items()}
    exchange = exchange_of(WEIGHTS, filled(schema, 9), reply_schema=schema)
    outcome = agreed(engine, exchange, workers, model=schema)
    assert sha256(outcome) == mean_of(parts, WEIGHTS).sha256()
    assert list(outcome.replies) == list(WEIGHTS)
    assert (outcome.missing, outcome.fault) == ({}, "")


@on_every_engine
@pytest.mark.parametrize("chunk_bytes", [1024, 1032, 5000, 1 << 20])
def test_the_chunk_size_changes_no_bit(chunk_bytes: int, engine: EngineUnderTest) -> None:
    workers = {client: answering(part) for client, part in collecting.CONTRIBUTIONS.items()}
    schema = collecting.LARGE
    exchange = exchange_of(collecting.WEIGHTS, filled(schema, 9), reply_schema=schema)
    setting = f"transport.chunk_bytes={chunk_bytes}"
    outcome = agreed(engine, exchange, workers, setting, model=schema)
    assert sha256(outcome) == collecting.expected(*workers)
    assert outcome.traffic.payload_bytes_up == 4 * schema.size_bytes
    assert outcome.traffic.payload_bytes_down == 4 * schema.size_bytes


@on_every_engine
def test_contributions_beyond_the_memory_for_them_have_the_same_bits(
    engine: EngineUnderTest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema, staging_bytes = Schema([TensorSpec("w", torch.float32, (150_000,))]), 1 << 20
    parts = {client: filled(schema, seed) for seed, client in enumerate(WEIGHTS)}
    workers = {client: answering(part) for client, part in parts.items()}
    written: list[int] = []
    write = os.pwrite

    def counting(descriptor: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    exchange = exchange_of(WEIGHTS, filled(schema, 9), reply_schema=schema)
    # Two passes, or blocks that are reduced as they arrive might all find room.
    exchange = replace(exchange, rule=NormalizedMean())
    settings = (f"transport.staging_bytes={staging_bytes}", "transport.chunk_bytes=65536")
    outcome = engine.carry_out(exchange, workers, *settings, model=schema)
    assert sum(written) >= 3 * schema.size_bytes - staging_bytes
    written.clear()
    in_memory = engine.carry_out(exchange, workers, settings[1], model=schema)
    assert written == []
    assert Facts.of(outcome) == Facts.of(in_memory)


@on_every_engine
def test_contributions_are_reduced_in_client_order_whatever_the_order_of_arrival(
    engine: EngineUnderTest,
) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (1000,))])
    parts = {client: filled(schema, seed) for seed, client in enumerate(WEIGHTS)}
    replied = {client: threading.Event() for client in WEIGHTS}

    def after(other: str | None, client: str) -> FakeWorker:
        def respond(_: Task) -> Reply:
            if other is not None and engine.concurrent:
                replied[other].wait()
            replied[client].set()
            return Reply(parts[client])

        return FakeWorker(respond, schema)

    late = {"a": after("b", "a"), "b": after("c", "b"), "c": after(None, "c")}
    rule = OrderSensitiveMean()
    exchange = exchange_of(WEIGHTS, filled(schema, 9), reply_schema=schema, rule=rule)
    reduced = engine.carry_out(exchange, late, model=schema).reduced
    assert reduced is not None

    def by_hand(order: list[str]) -> Tensor:
        out = torch.empty(1000)
        rows = [(parts[client]["w"], WEIGHTS[client]) for client in order]
        rule.reduce(schema.segments[0], rows, out)
        return out

    assert reduced["w"].equal(by_hand(["a", "b", "c"]))
    assert not reduced["w"].equal(by_hand(["c", "b", "a"]))


@dataclass(frozen=True)
class NormalizedMean:
    """The mean of the contributions' directions: the first pass finds their lengths."""

    passes: int = 2

    def start(self, clients: Sequence[str]) -> Reduction:
        return _Normalizing()


class _Normalizing(OnePass):
    def __init__(self) -> None:
        self._squares: list[float] = []

    def survey(self, block: Segment, rows: Rows) -> None:
        squares = [float(elements.double().square().sum()) for elements, _ in rows]
        before = self._squares or [0.0] * len(squares)
        self._squares = [a + b for a, b in zip(before, squares, strict=True)]

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        total = torch.zeros(len(out), dtype=torch.float64)
        for (elements, _), square in zip(rows, self._squares, strict=True):
            total += elements.double() / math.sqrt(square)
        out.copy_(total / len(self._squares))


@on_every_engine
def test_a_rule_of_two_passes_reads_the_contributions_twice(engine: EngineUnderTest) -> None:
    specs = [TensorSpec("w", torch.float64, (700,)), TensorSpec("v", torch.float32, (900,))]
    schema = Schema(specs)
    parts = {client: filled(schema, seed).scaled(10.0**seed) for seed, client in enumerate(WEIGHTS)}
    workers = {client: answering(part) for client, part in parts.items()}
    exchange = exchange_of(WEIGHTS, filled(schema, 9), reply_schema=schema, rule=NormalizedMean())
    outcome = agreed(engine, exchange, workers, "transport.chunk_bytes=1024", model=schema)
    assert outcome.reduced is not None
    lengths = {client: part.norm() for client, part in parts.items()}
    for name, found in outcome.reduced.items():
        rows = [part[name].double() / lengths[client] for client, part in parts.items()]
        torch.testing.assert_close(found.double(), torch.stack(rows).mean(0), rtol=1e-6, atol=1e-9)


# What else an exchange can be.


@on_every_engine
def test_numbers_pass_through_unchanged(engine: EngineUnderTest) -> None:
    replies = {
        "a": Reply(PARTS["a"], 0.1, Evaluation(2, 1, 0.7), 0.3, 12345, {"z": -1e-300, "a": 1 / 3}),
        "b": Reply(
            PARTS["b"],
            -0.0,
            Evaluation(1, 0, 1e30),
            1e30,
            2**53,
            {f"metric {n}": float(n) for n in range(MAX_METRICS)},
        ),
        "c": Reply(PARTS["c"]),
    }
    outcome = agreed(
        engine,
        exchange_of(WEIGHTS, PAYLOAD, evaluate=True),
        {client: replying(reply) for client, reply in replies.items()},
    )
    for client, reply in replies.items():
        assert outcome.replies[client] == replace(reply, contribution=None)
    assert outcome.evaluation == Evaluation(3, 1, 1e30 + 0.7)
    assert outcome.gradient_evaluations == 12345 + 2**53


@on_every_engine
def test_a_reply_may_be_only_numbers(engine: EngineUnderTest) -> None:
    workers = {client: replying(Reply(loss=float(seed))) for seed, client in enumerate(WEIGHTS)}
    outcome = agreed(engine, exchange_of(WEIGHTS, PAYLOAD, reply_schema=None), workers)
    assert outcome.reduced is None
    assert {client: reply.loss for client, reply in outcome.replies.items()} == {
        "a": 0.0,
        "b": 1.0,
        "c": 2.0,
    }
    assert (outcome.missing, outcome.fault) == ({}, "")
    assert outcome.traffic.payload_bytes_up == 0


@on_every_engine
def test_payloads_may_be_empty(engine: EngineUnderTest) -> None:
    empty = Schema([])
    exchange = exchange_of(WEIGHTS, Tensors(empty), reply_schema=empty)
    workers = dict.fromkeys(WEIGHTS, answering(Tensors(empty)))
    outcome = agreed(engine, exchange, workers, model=empty)
    assert outcome.reduced is not None
    assert outcome.reduced.schema == empty
    assert list(outcome.replies) == list(WEIGHTS)
    assert (outcome.traffic.payload_bytes_up, outcome.traffic.payload_bytes_down) == (0, 0)
    assert outcome.traffic.wire_bytes_up > 0


@on_every_engine
def test_an_exchange_of_nobody_has_an_outcome(engine: EngineUnderTest) -> None:
    outcome = agreed(engine, exchange_of([], PAYLOAD), HONEST)
    assert Facts.of(outcome) == Facts(None, [], [], outcome.traffic, Traffic(), "", [])
    assert outcome.traffic.wire_bytes == 0


@on_every_engine
def test_clients_that_take_no_part_are_not_asked(engine: EngineUnderTest) -> None:
    workers = HONEST | {"b": raising(AssertionError("asked"))}
    outcome = agreed(engine, exchange_of(["a", "c"], PAYLOAD), workers)
    assert list(outcome.replies) == ["a", "c"]


@on_every_engine
@pytest.mark.parametrize("evaluate", [False, True])
def test_a_client_is_told_what_the_exchange_says(evaluate: bool, engine: EngineUnderTest) -> None:
    tasks: list[Task] = []

    def respond(task: Task) -> Reply:
        assert not task.cancelled.is_set()
        tasks.append(task)
        return Reply()

    exchange = exchange_of(["a"], PAYLOAD, reply_schema=None, name="dkd_step", round_number=3)
    exchange = replace(exchange, evaluate=evaluate, closing=Closing(50.1))
    engine.carry_out(exchange, {"a": FakeWorker(respond)})
    (task,) = tasks
    assert (task.id, task.evaluate, task.deadline_s) == (exchange.id, evaluate, 50.1)
    assert task.payload.sha256() == PAYLOAD.sha256()


@on_every_engine
def test_no_client_can_touch_the_broadcast_of_another(engine: EngineUnderTest) -> None:
    before = PAYLOAD.sha256()
    seen: list[str] = []

    def spoil(task: Task) -> Reply:
        seen.append(task.payload.sha256())
        task.payload.block.zero_()
        return Reply()

    workers = dict.fromkeys(WEIGHTS, FakeWorker(spoil))
    engine.carry_out(exchange_of(WEIGHTS, PAYLOAD, reply_schema=None), workers)
    assert seen == [before] * 3
    assert PAYLOAD.sha256() == before


@on_every_engine
def test_without_faults_every_byte_on_the_wire_is_useful(engine: EngineUnderTest) -> None:
    outcome = agreed(engine, exchange_of(WEIGHTS, PAYLOAD), HONEST)
    assert (outcome.useful.wire_bytes_down, outcome.useful.wire_bytes_up) == (
        outcome.traffic.wire_bytes_down,
        outcome.traffic.wire_bytes_up,
    )


@on_every_engine
def test_what_is_moved_for_clients_that_do_not_count_is_of_no_use(engine: EngineUnderTest) -> None:
    bad = raising(ClientError("not today"))
    outcome = agreed(engine, exchange_of(WEIGHTS, PAYLOAD), HONEST | {"b": bad})
    without = agreed(engine, exchange_of({"a": 3.0, "c": 7.0}, PAYLOAD), HONEST)
    assert outcome.useful == without.useful
    assert outcome.traffic.wire_bytes > outcome.useful.wire_bytes


@on_every_engine
def test_equal_exchanges_have_equal_outcomes(engine: EngineUnderTest) -> None:
    good, bad = filled(FLOATS, 1), filled(FLOATS, 2)
    bad["w"][0, 0] = math.nan
    workers = {"a": answering(good), "b": answering(bad), "c": answering(good)}
    exchange = exchange_of(WEIGHTS, filled(FLOATS, 0), reply_schema=FLOATS)
    with engine.running(workers, model=FLOATS) as running:
        first, second = (Facts.of(running.carry_out(exchange)) for _ in range(2))
    assert first == second
    assert [client for client, _ in first.missing] == ["b"]


# Several exchanges.


@on_every_engine
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_several_exchanges_may_be_open(order: tuple[int, int], engine: EngineUnderTest) -> None:
    exchanges = [numbered(0, "a", "c"), numbered(1, "b")]
    with engine.running(HONEST) as running:
        begun = [running.begin(exchange) for exchange in exchanges]
        found = {index: Facts.of(begun[index].outcome()) for index in order}
    with REFERENCE.running(HONEST) as reference:
        for index, exchange in enumerate(exchanges):
            assert found[index] == Facts.of(reference.carry_out(exchange))


@on_every_engine
def test_exchanges_of_one_name_may_be_open_with_different_clients(engine: EngineUnderTest) -> None:
    first, second = exchange_of(["a"], PAYLOAD), exchange_of(["b", "c"], PAYLOAD)
    assert first.id == second.id
    with engine.running(HONEST) as running:
        begun = [running.begin(first), running.begin(second)]
        outcomes = [each.outcome() for each in begun]
        for each in begun:
            each.acknowledge()
        check_usable(running)
    assert [list(outcome.replies) for outcome in outcomes] == [["a"], ["b", "c"]]


@on_every_engine
def test_a_client_takes_part_in_one_open_exchange_at_a_time(engine: EngineUnderTest) -> None:
    go = threading.Event()

    def respond(_: Task) -> Reply:
        go.wait()
        return Reply(PARTS["a"])

    with engine.running(HONEST | {"a": FakeWorker(respond)}) as running:
        first = running.begin(numbered(0, "a", "b"))  # returns before anybody has replied
        busy = r"^a takes part in round 1 local_train, which is open$"
        with pytest.raises(ValueError, match=busy):
            running.begin(numbered(1, "a", "c"))
        second = running.begin(numbered(2, "c"))  # the one that was refused has taken nobody
        go.set()
        assert list(first.outcome().replies) == ["a", "b"]
        assert list(second.outcome().replies) == ["c"]
        with pytest.raises(ValueError, match=busy):
            running.begin(numbered(3, "a"))  # nobody has been told of the first
        first.acknowledge()
        assert running.begin(numbered(3, "a")).outcome().missing == {}


@on_every_engine
def test_an_outcome_may_be_asked_for_again(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(exchange_of(WEIGHTS, PAYLOAD))
        first = begun.outcome()
        begun.acknowledge()
        running.carry_out(numbered(1, *WEIGHTS))
        assert begun.outcome() is first


# Receipts.


@on_every_engine
def test_an_outcome_is_kept_before_any_client_is_told(engine: EngineUnderTest) -> None:
    """Until then every client has its reply: it is in no exchange but this one."""
    kept: list[Outcome] = []
    with engine.running(HONEST) as running:

        def keep(outcome: Outcome) -> None:
            kept.append(outcome)
            with pytest.raises(ValueError, match=r"^c takes part in"):
                running.begin(numbered(1, "c"))

        outcome = running.carry_out(exchange_of(WEIGHTS, PAYLOAD), keep)
        assert kept == [outcome]
        check_usable(running)


@on_every_engine
def test_what_cannot_be_kept_is_not_acknowledged(engine: EngineUnderTest) -> None:
    def keep(_: Outcome) -> None:
        raise StateError("the disk is full")

    with engine.running(HONEST) as running:
        with pytest.raises(StateError, match=r"^the disk is full$"):
            running.carry_out(exchange_of(WEIGHTS, PAYLOAD), keep)
        with pytest.raises(ValueError, match=r"^a takes part in"):
            running.begin(numbered(1, "a"))


@on_every_engine
def test_an_exchange_that_is_acknowledged_again_tells_nobody_anything(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(numbered(1, *WEIGHTS))
        traffic = begun.outcome().traffic
        other = running.other_traffic()
        begun.acknowledge()
        following = running.begin(numbered(2, *WEIGHTS))
        begun.acknowledge()
        assert running.other_traffic() == other  # the receipts were counted with the exchange
        assert following.outcome().traffic == traffic


@on_every_engine
def test_an_acknowledgement_waits_for_the_outcome(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(exchange_of(WEIGHTS, PAYLOAD))
        begun.acknowledge()
        assert list(begun.outcome().replies) == list(WEIGHTS)
        check_usable(running)


@on_every_engine
def test_nothing_is_acknowledged_after_an_abort(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(exchange_of(WEIGHTS, PAYLOAD))
        begun.outcome()
        stop(running)
        with pytest.raises(RunError, match=STOPPED):
            begun.acknowledge()


class Visits:
    """Stands in the place of a plan of failpoints, and writes down which of an engine are visited; clients have some too."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def visit(self, name: str) -> None:
        if name.startswith("engine."):
            self.names.append(name)


@on_every_engine
def test_every_engine_comes_to_the_same_failpoints(engine: EngineUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    visits, kept = Visits(), list[int]()
    monkeypatch.setattr(failpoints, "_plan", visits)
    with engine.running(HONEST) as running:
        running.carry_out(exchange_of(WEIGHTS, PAYLOAD), lambda _: kept.append(len(visits.names)))
        acknowledged = ["engine.acknowledge.before", *["engine.acknowledge.after_first"] * 3]
        until(lambda: len(visits.names) == kept[0] + len(acknowledged))  # the receipts are written soon after
    chunks = ["engine.reply.after_chunk"] * 3 * Payload(PAYLOAD, 1 << 20).num_frames
    assert visits.names[: kept[0]] == ["engine.exchange.after_begin", *chunks, "engine.exchange.before_outcome"]
    assert visits.names[kept[0] :] == acknowledged


@on_every_engine
def test_a_crash_before_the_acknowledgement_tells_nobody(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(exchange_of(WEIGHTS, PAYLOAD))
        begun.outcome()
        with planned("engine.acknowledge.before=raise"), pytest.raises(FailpointError):
            begun.acknowledge()
        begun.acknowledge()
        check_usable(running)


# Clients that fail.


class SilentError(Exception):
    """Has no text, and raises instead of saying so."""

    def __str__(self) -> str:
        raise TypeError("no text")


FAILURES = {
    "its own word": (ClientError("the disk is full"), "ClientError: the disk is full"),
    "torch": (RuntimeError("mat1 and mat2 shapes"), "RuntimeError: mat1 and mat2 shapes"),
    "the run's": (RunError("the run is over"), "RunError: the run is over"),
    "no text": (RuntimeError(), "RuntimeError"),
    "an empty text": (ValueError(""), "ValueError"),
    "a text that raises": (SilentError(), "SilentError"),
    "huge": (RuntimeError("x" * 100_000), "RuntimeError: " + "x" * 186),
    "several lines": (RuntimeError("one\ntwo\r\nthree"), r"RuntimeError: one\ntwo\r\nthree"),
    "escape sequences": (
        RuntimeError("\x1b[31mred\x07\u202e"),
        r"RuntimeError: \x1b[31mred\x07\u202e",
    ),
    "not UTF-8": (OSError("cannot open \udcff.png"), r"OSError: cannot open \udcff.png"),
    "like the server's": (RuntimeError("disconnected"), "RuntimeError: disconnected"),
    "what ends a generator": (StopIteration(), "StopIteration"),
    "what ends a future": (CancelledError("a loader"), "CancelledError: a loader"),
}


@on_every_engine
@pytest.mark.parametrize(("error", "reason"), FAILURES.values(), ids=FAILURES)
def test_a_client_that_raises_has_failed_in_its_own_words(
    error: Exception,
    reason: str,
    engine: EngineUnderTest,
) -> None:
    workers = HONEST | {"b": raising(error)}
    outcome = agreed(engine, exchange_of(WEIGHTS, PAYLOAD), workers)
    assert outcome.missing == {"b": Missing(Cause.FAILED, reason)}
    assert not outcome.connection_lost
    assert sha256(outcome) == mean_of({client: PARTS[client] for client in "ac"}, WEIGHTS).sha256()


@on_every_engine
def test_what_is_no_reply_is_a_failure(engine: EngineUnderTest) -> None:
    nothing: Reply = None  # type: ignore[assignment]
    workers = {
        "a": replying(nothing),
        "b": replying(Reply(PARTS["b"], metrics={"x": "much"})),  # type: ignore[dict-item]
        "c": replying(Reply(PARTS["c"], gradient_evaluations=-1)),
    }
    outcome = agreed(engine, exchange_of(WEIGHTS, PAYLOAD), workers)
    assert [missing.cause for missing in outcome.missing.values()] == [Cause.FAILED] * 3
    assert outcome.reduced is None
    assert outcome.fault == ""


@on_every_engine
def test_a_client_that_failed_is_asked_the_next_time(engine: EngineUnderTest) -> None:
    def respond(task: Task) -> Reply:
        if task.id.step == 0:
            raise ClientError("not yet")
        return Reply(PARTS["a"])

    with engine.running(HONEST | {"a": FakeWorker(respond)}) as running:
        assert list(running.carry_out(numbered(0, *WEIGHTS)).replies) == ["b", "c"]
        check_usable(running)


class Reader(FakeWorker):
    """Takes another broadcast than the server's, or none."""

    def broadcast_schema(self, exchange: str) -> Schema:
        if exchange == "local_train":
            return FLOATS
        raise ClientError(f"no exchange {exchange!r}")


@on_every_engine
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("local_train", "tensor 'w' is missing"),
        ("dkd_step", "no exchange 'dkd_step'"),
    ],
)
def test_a_broadcast_that_is_not_what_a_client_takes_is_its_failure(
    name: str,
    reason: str,
    engine: EngineUnderTest,
) -> None:
    workers = HONEST | {"b": Reader(lambda _: Reply(PARTS["b"]))}
    exchange = exchange_of(WEIGHTS, PAYLOAD, name=name)
    outcome, expected = (each.carry_out(exchange, workers) for each in (engine, REFERENCE))
    # The client says so when it has seen the header: how much of the rest it is sent is a race.
    assert Facts.of(outcome).without_traffic() == Facts.of(expected).without_traffic()
    assert outcome.traffic.wire_bytes_up == expected.traffic.wire_bytes_up
    assert list(outcome.missing.values()) == [Missing(Cause.FAILED, reason)]


@on_every_engine
def test_a_client_that_is_not_there_is_missing_for_want_of_a_connection(
    engine: EngineUnderTest,
) -> None:
    outcome = agreed(engine, exchange_of(["a", "stranger"], PAYLOAD), HONEST)
    assert outcome.missing == {"stranger": Missing(Cause.DISCONNECTED, "not connected")}
    assert outcome.connection_lost
    assert sha256(outcome) == PARTS["a"].sha256()


# Replies that are refused.

BAD_NUMBERS = {
    "loss nan": (Reply(loss=math.nan), "the loss is nan"),
    "loss inf": (Reply(loss=-math.inf), "the loss is -inf"),
    "loss huge": (Reply(loss=1.7e308), "the loss is 1.7e+308"),
    "metric nan": (Reply(metrics={"x": math.nan}), "metric 'x' is nan"),
    "metric huge": (Reply(metrics={"x": -1.7e308}), "metric 'x' is -1.7e+308"),
    "metrics": (
        Reply(metrics={f"{n:02}": 0.0 for n in range(MAX_METRICS + 1)}),
        f"{MAX_METRICS + 1} metrics, where at most {MAX_METRICS} are allowed",
    ),
    "metric's name": (
        Reply(metrics={"a\nb": 0.0}),
        "a metric's name is not 1 to 64 printable characters",
    ),
    "seconds": (Reply(compute_s=-1.0), "compute_s is -1.0"),
    "seconds huge": (Reply(compute_s=1.7e308), "compute_s is 1.7e+308"),
    "work": (Reply(gradient_evaluations=2**53 + 1), f"{2**53 + 1} gradient evaluations"),
    "evaluation of nothing": (
        Reply(evaluation=Evaluation(0, 0, 0.0)),
        "an evaluation of 0 correct among 0 examples",
    ),
    "evaluation beyond itself": (
        Reply(evaluation=Evaluation(1, 2, 0.0)),
        "an evaluation of 2 correct among 1 examples",
    ),
    "evaluation's loss": (
        Reply(evaluation=Evaluation(1, 1, 1e300)),
        "the evaluation's loss is 1e+300",
    ),
    "evaluation of too much": (
        Reply(evaluation=Evaluation(1000, 1000, 0.0)),
        "an evaluation of 1000 examples, where this client can hold out 11 at most",
    ),
    "tensors": (Reply(PARTS["a"]), "the reply holds tensors where numbers are expected"),
}
MOST_HELD_OUT = "data.holdout=0.8"


@on_every_engine
@pytest.mark.parametrize(("reply", "reason"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_a_reply_with_a_number_that_no_honest_client_sends_is_refused(
    reply: Reply,
    reason: str,
    engine: EngineUnderTest,
) -> None:
    workers = {"a": FakeWorker(lambda _: reply, examples=2), "b": replying(Reply(loss=1.0))}
    exchange = exchange_of(["a", "b"], PAYLOAD, reply_schema=None, evaluate=True)
    outcome = refused_alike(engine, exchange, workers, MOST_HELD_OUT)
    cause = Cause.DIVERGED if "loss is" in reason else Cause.REFUSED
    assert outcome.missing == {"a": Missing(cause, f"refused: {reason}")}
    assert outcome.replies == {"b": Reply(loss=1.0)}


def refused_alike(
    engine: EngineUnderTest,
    exchange: Exchange,
    workers: Workers,
    *overrides: str,
    model: Schema = SCHEMA,
) -> Outcome:
    """Like `agreed`, for a reply of "a" that is refused at its header.

    How many of the chunks that follow are read before the exchange has closed, or before the client
    knows, is a race; all else is the same.
    """
    outcome = engine.carry_out(exchange, workers, *overrides, model=model)
    expected = REFERENCE.carry_out(exchange, workers, *overrides, model=model)
    contribution = workers["a"].carry_out(Task(exchange.id, exchange.payload)).contribution
    rest = Payload(contribution, 1 << 20).frames_bytes if contribution is not None else 0
    surplus = outcome.traffic.wire_bytes_up - expected.traffic.wire_bytes_up
    assert 0 <= surplus <= rest
    outcome.traffic.wire_bytes_up -= surplus
    assert Facts.of(outcome) == Facts.of(expected)
    return outcome


@on_every_engine
def test_a_client_that_holds_out_much_may_evaluate_much(engine: EngineUnderTest) -> None:
    worker = FakeWorker(lambda _: Reply(evaluation=Evaluation(11, 11, 0.0)), examples=2)
    exchange = exchange_of(["a"], PAYLOAD, reply_schema=None, evaluate=True)
    outcome = agreed(engine, exchange, {"a": worker}, MOST_HELD_OUT)
    assert outcome.evaluation == Evaluation(11, 11, 0.0)


@given(
    labels=st.lists(st.integers(0, 9), min_size=2, max_size=200),
    share=st.floats(0.0, 0.999),
    seed=st.integers(0, 100),
)
def test_no_honest_client_holds_out_more_than_it_may(
    labels: list[int],
    share: float,
    seed: int,
) -> None:
    index = torch.arange(len(labels))
    train, held_out = hold_out(index, torch.tensor(labels), share, seed)
    assert len(held_out) <= max_evaluated(len(train), share)


def tensors(value: float, dtype: torch.dtype = torch.float32) -> Tensors:
    """Of one element that is not as the others."""
    contribution = filled(Schema([TensorSpec("w", dtype, (4, 5))]), 1)
    contribution["w"][-1, -1] = value
    return contribution


BAD_TENSORS = {
    "nan": (tensors(math.nan), "an element is NaN or infinite"),
    "inf": (tensors(-math.inf), "an element is NaN or infinite"),
    "enormous": (tensors(1e38), "its elements are too large: their norm is above 1e+18"),
    "enormous float64": (
        tensors(1e300, torch.float64),
        "its elements are too large: their norm is above 1e+18",
    ),
    "half nan": (tensors(math.nan, torch.float16), "an element is NaN or infinite"),
    "long": (tensors(1e6), "its norm is above aggregation.max_norm = 1000"),
}


@on_every_engine
@pytest.mark.parametrize(("contribution", "reason"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_contribution_that_no_honest_client_sends_is_refused(
    contribution: Tensors,
    reason: str,
    engine: EngineUnderTest,
) -> None:
    schema = contribution.schema
    good = filled(schema, 2)
    workers = {"a": replying(Reply(contribution), schema), "b": replying(Reply(good), schema)}
    exchange = exchange_of(["a", "b"], filled(schema, 0), reply_schema=schema, max_norm=1000.0)
    outcome = agreed(engine, exchange, workers, model=schema)
    assert outcome.missing == {"a": Missing(Cause.REFUSED, f"refused: {reason}")}
    assert sha256(outcome) == good.sha256()


def test_a_norm_adds_up_over_chunks() -> None:
    """One that only the sum of several chunks exceeds: the rest is not read."""
    schema = Schema([TensorSpec("w", torch.float32, (1000,))])
    contribution = Tensors(schema)
    contribution["w"].fill_(1.0)
    limit = math.sqrt(999.5)  # after the last of four chunks
    for engine in ENGINES.values():
        for max_norm, allowed in ((limit, False), (math.sqrt(1000.5), True)):
            exchange = exchange_of(["a"], Tensors(schema), reply_schema=schema, max_norm=max_norm)
            outcome = agreed(
                engine,
                exchange,
                {"a": answering(contribution)},
                "transport.chunk_bytes=1024",
                model=schema,
            )
            assert (outcome.missing == {}) is allowed


SHAPED = Schema([TensorSpec("w", torch.float32, (5, 4))])
BAD_SCHEMAS = {
    "no tensors": (None, "the reply holds no tensors"),
    "a tensor too many": (FLOATS.beside({"x": FLOATS}), "tensor 'x/w' is not expected"),
    "a tensor too few": (Schema([]), "tensor 'w' is missing"),
    "another shape": (SHAPED, "tensor w: float32[5, 4] where w: float32[4, 5] is expected"),
    "another dtype": (
        Schema([TensorSpec("w", torch.int32, (4, 5))]),
        "tensor w: int32[4, 5] where w: float32[4, 5] is expected",
    ),
    "a strange name": (
        Schema([TensorSpec("w\x1b[31m", torch.float32, (4, 5))]),
        "tensor 'w' is missing",
    ),
}


@on_every_engine
@pytest.mark.parametrize(("schema", "reason"), BAD_SCHEMAS.values(), ids=BAD_SCHEMAS)
def test_a_reply_of_another_schema_is_refused(
    schema: Schema | None,
    reason: str,
    engine: EngineUnderTest,
) -> None:
    contribution = filled(schema, 1) if schema is not None else None
    good = filled(FLOATS, 2)
    workers = {"a": replying(Reply(contribution)), "b": replying(Reply(good))}
    outcome = refused_alike(engine, exchange_of(["a", "b"], PAYLOAD, reply_schema=FLOATS), workers)
    assert outcome.missing == {"a": Missing(Cause.REFUSED, f"refused: {reason}")}
    assert sha256(outcome) == good.sha256()


# Rules and disks that fail.


class Broken(OnePass):
    """A rule that does something else from the second block on."""

    passes = 1

    def __init__(self, act: Callable[[Tensor], object]) -> None:
        self._act = act

    def start(self, clients: Sequence[str]) -> Reduction:
        return self

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        if block.start == 0:
            WeightedMean().start().reduce(block, rows, out)
        else:
            self._act(out)


@on_every_engine
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_reduction_that_is_not_finite_is_a_fault_that_names_the_largest(
    value: float,
    engine: EngineUnderTest,
) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (1000,))])
    sizes = {"a": 1.0, "b": 1e6, "c": 1e3, "d": 1e4}
    workers = {client: answering(filled(schema, 1).scaled(size)) for client, size in sizes.items()}
    rule = Broken(lambda out: out.fill_(value))
    exchange = exchange_of(list(sizes), filled(schema, 0), reply_schema=schema, rule=rule)
    settings = "transport.chunk_bytes=1024"
    outcome = agreed(engine, exchange, workers, settings, model=schema)
    assert outcome.reduced is None
    assert list(outcome.replies) == list(sizes)
    assert outcome.missing == {}
    what = "its elements are too large: .*" if value == 1e38 else "an element is NaN or infinite"
    largest = r"largest: b \(norm .*e\+07\), d \(norm .*e\+05\), c \(norm .*e\+04\)$"
    assert re.match(f"the reduced contributions are unusable: {what}; {largest}", outcome.fault)
    with engine.running(workers, settings, model=schema) as running:
        assert running.carry_out(exchange).fault == outcome.fault
        assert running.carry_out(replace(exchange, rule=WeightedMean())).fault == ""


@on_every_engine
def test_an_error_of_a_rule_reaches_the_caller(engine: EngineUnderTest) -> None:
    def break_off(_: Tensor) -> None:
        raise ZeroDivisionError("a rule with a bug")

    with engine.running(HONEST) as running:
        begun = running.begin(replace(exchange_of(WEIGHTS, PAYLOAD), rule=Broken(break_off)))
        for _ in range(2):  # again the same when asked again
            with pytest.raises(ZeroDivisionError, match=r"^a rule with a bug$"):
                begun.outcome()
        check_usable(running)


@on_every_engine
def test_a_full_disk_ends_the_exchange_and_not_the_engine(
    engine: EngineUnderTest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (150_000,))])
    workers = {client: answering(filled(schema, seed)) for seed, client in enumerate(WEIGHTS)}
    exchange = exchange_of(WEIGHTS, filled(schema, 9), reply_schema=schema, rule=NormalizedMean())

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    chunks, memory = "transport.chunk_bytes=65536", "transport.staging_bytes=1048576"
    with engine.running(workers, chunks, memory, model=schema) as running:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            begun = running.begin(exchange)
            with pytest.raises(StateError, match=r"file in /.*: No space left on device$"):
                begun.outcome()
        following = replace(exchange, id=replace(exchange.id, step=1))
        outcome = running.carry_out(following)
    # What the clients still sent for the first one does not count.
    expected = REFERENCE.carry_out(following, workers, chunks, model=schema)
    assert Facts.of(outcome) == Facts.of(expected)


# Aborts.

STOPPED = r"^the operator stopped it$"

QUESTIONS: dict[str, Callable[[Engine], object]] = {
    "check": lambda running: running.check_aborted(),
    "clients": lambda running: running.clients(),
    "wait": lambda running: running.wait_for_clients(3, None),
    "wait for more": lambda running: running.wait_for_clients(4, 30.0),
    "begin": lambda running: running.begin(exchange_of(WEIGHTS, PAYLOAD)),
    "carry out": lambda running: running.carry_out(exchange_of(WEIGHTS, PAYLOAD)),
}


def stop(running: Engine) -> None:
    """Abort from another thread, twice: the first reason stands."""

    def abort() -> None:
        running.abort("the operator stopped it")
        running.abort("all clients have gone")

    thread = threading.Thread(target=abort)
    thread.start()
    thread.join()


def check_finished(running: Engine) -> None:
    """Say farewell after an abort, again and again."""
    for _ in range(2):
        running.finish(completed=False, reason="the operator stopped it")
        assert running.states() == ClientStates()
        running.other_traffic()
    with pytest.raises(RunError, match=STOPPED):
        running.check_aborted()


@on_every_engine
@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_after_an_abort_nothing_more_is_done(
    question: Callable[[Engine], object],
    engine: EngineUnderTest,
) -> None:
    with engine.running(dict.fromkeys(WEIGHTS, raising(AssertionError("asked")))) as running:
        stop(running)
        with pytest.raises(RunError, match=STOPPED):
            question(running)
        check_finished(running)


@contextmanager
def in_background(work: Callable[[], _T]) -> Iterator[Future[_T]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


@on_every_engine
@pytest.mark.parametrize("after", [give_up, reply_all_the_same, fail])
@pytest.mark.parametrize("others", [[], ["b", "c"]])
def test_an_abort_ends_a_computation_under_way_and_the_exchange(
    after: Callable[[Task], Reply],
    others: list[str],
    engine: EngineUnderTest,
) -> None:
    blocking = Blocking(after)
    with engine.running(HONEST | {"a": blocking}) as running:
        exchange = exchange_of(["a", *others], PAYLOAD)
        with in_background(lambda: running.carry_out(exchange)) as waiting:
            blocking.started.wait()
            stop(running)
            with pytest.raises(RunError, match=STOPPED):
                waiting.result()
        check_finished(running)
        blocking.ended.wait()


@on_every_engine
def test_a_client_with_a_reply_to_send_is_counted_as_working(engine: EngineUnderTest) -> None:
    started, go = threading.Event(), threading.Event()

    def respond(_: Task) -> Reply:
        started.set()
        go.wait()
        return Reply(PARTS["a"])

    with engine.running(HONEST | {"a": FakeWorker(respond)}) as running:
        assert running.states() == ClientStates(connected=3)
        assert running.here() == ["a", "b", "c"]
        with in_background(lambda: running.carry_out(exchange_of(["a"], PAYLOAD))) as waiting:
            started.wait()
            assert running.states() == ClientStates(connected=2, working=1)
            go.set()
            waiting.result()
        assert running.states() == ClientStates(connected=3)


@on_every_engine
def test_who_is_there_can_be_asked_by_name_and_after_an_abort(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        assert running.wait_for(["a", "c"], 0.0)
        assert not running.wait_for(["a", "stranger"], 0.0)
        running.remember({})
        stop(running)
        with pytest.raises(RunError, match=STOPPED):
            running.wait_for(["a"], 0.0)
        assert list(running.last_heard()) == list(WEIGHTS)
        assert running.waiting_for() == []


@on_every_engine
def test_an_abort_ends_every_open_exchange(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = [running.begin(numbered(0, "a")), running.begin(numbered(1, "b", "c"))]
        stop(running)
        for each in begun:
            for _ in range(2):
                with pytest.raises(RunError, match=STOPPED):
                    each.outcome()
        check_finished(running)


@on_every_engine
def test_an_outcome_is_not_given_out_after_an_abort(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        begun = running.begin(exchange_of(WEIGHTS, PAYLOAD))
        begun.outcome()
        stop(running)
        with pytest.raises(RunError, match=STOPPED):
            begun.outcome()


@on_every_engine
def test_an_abort_from_inside_a_reduction_ends_it(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        rule = Broken(lambda out: (out.zero_(), running.abort("the operator stopped it")))
        with pytest.raises(RunError, match=STOPPED):
            running.carry_out(replace(exchange_of(WEIGHTS, PAYLOAD), rule=rule))
        check_finished(running)


WAITING = {name: engine for name, engine in ENGINES.items() if engine.waits}


@pytest.mark.parametrize("engine", WAITING.values(), ids=WAITING)
@pytest.mark.parametrize("timeout_s", [None, 100.0])
def test_an_abort_ends_a_wait_for_clients(timeout_s: float | None, engine: EngineUnderTest) -> None:
    with (
        engine.running(HONEST) as running,
        in_background(lambda: running.wait_for_clients(4, timeout_s)) as waiting,
    ):
        stop(running)
        with pytest.raises(RunError, match=STOPPED):
            waiting.result()
        check_finished(running)


# A whole run.


class Following(Recorder):
    """Calls a function after each exchange."""

    def __init__(self, then: Callable[[ExchangeRecord], None]) -> None:
        super().__init__()
        self._then = then

    def exchange_done(self, record: ExchangeRecord) -> None:
        super().exchange_done(record)
        self._then(record)


RUN = small_config("algorithm.name=fedavg", "rounds=2", "data.test_set=false")


def scheduler(running: Engine, recorder: Recorder) -> Scheduler:
    algorithm = algorithms.find("fedavg")(RUN)
    return Scheduler(RUN, algorithm, running, run_id=RUN_ID, observers=[recorder])


@on_every_engine
def test_an_abort_between_two_exchanges_ends_the_run(engine: EngineUnderTest) -> None:
    with engine.running(HONEST) as running:
        recorder = Following(lambda _: stop(running))
        with pytest.raises(RunError, match=STOPPED):
            scheduler(running, recorder).run(PAYLOAD)
        assert [record.id.round for record in recorder.exchanges] == [1]
        assert recorder.failures == []  # and no second attempt
        check_finished(running)


@on_every_engine
def test_an_abort_during_delivery_ends_the_run(engine: EngineUnderTest) -> None:
    delivering = Blocking(give_up)

    def respond(task: Task) -> Reply:
        return delivering.carry_out(task) if task.id.name == DELIVER else Reply(PARTS["a"])

    with engine.running(HONEST | {"a": FakeWorker(respond)}) as running:
        recorder = Recorder()
        with in_background(lambda: scheduler(running, recorder).run(PAYLOAD)) as waiting:
            delivering.started.wait()
            stop(running)
            with pytest.raises(RunError, match=STOPPED):
                waiting.result()
        assert [record.id.name for record in recorder.exchanges] == ["local_train", "local_train"]
        assert recorder.run is None
        check_finished(running)


# The places for what happens to a tensor on its way.

WHOLE_RUN = small_config("rounds=2", "dkd.steps=1", "partition.clients=3", "partition.labels=4")


def workers_with(stages: list[ReplyStage], folder: Path) -> dict[str, Worker]:
    """As `simulated_workers` makes them, and what they reply passes `stages`."""
    config, info = WHOLE_RUN, describe(WHOLE_RUN.data)
    examples = load_train(config.data, config.seed)
    parts = partition(config.partition, examples.labels, info.num_classes, config.seed)
    return {
        client: Worker(
            config,
            client,
            examples.subset(part),
            StateDir(folder / client, client),
            info,
            on_reply=stages,
        )
        for client, part in zip(client_ids(len(parts)), parts, strict=True)
    }


def whole_run(
    engine: EngineUnderTest,
    workers: Mapping[str, Worker],
    layers: list[CohortLayer],
) -> RunRecord:
    model = build_initial(WHOLE_RUN).model
    with engine.running(workers, config=WHOLE_RUN, model=model.schema) as running:
        algorithm = algorithms.find(WHOLE_RUN.algorithm.name)(WHOLE_RUN)
        return Scheduler(WHOLE_RUN, algorithm, running, run_id=RUN_ID, extensions=Extensions(layers=layers)).run(model)


@pytest.fixture(scope="module")
def plain_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the model of a run without stages and layers."""
    workers = simulated_workers(WHOLE_RUN, tmp_path_factory.mktemp("plain"))
    return whole_run(REFERENCE, workers, []).model.sha256()


class Changed(CohortAround):
    """A cohort around another; changes what comes up."""

    def __init__(self, inner: Cohort, change: Callable[[Tensors], Tensors]) -> None:
        super().__init__(inner)
        self._change = change

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        return self._change(super().exchange(name, payload, step))


def around(change: Callable[[Tensors], Tensors]) -> CohortLayer:
    return lambda cohort: Changed(cohort, change)


def pass_on(task: Task, reply: Reply) -> Reply:
    return reply


def halved(tensors: Tensors) -> Tensors:
    """Exact: the same before the mean as after it."""
    return tensors.scaled(0.5)


def halve_reply(task: Task, reply: Reply) -> Reply:
    assert reply.contribution is not None
    return replace(reply, contribution=halved(reply.contribution))


@on_every_engine
def test_stages_and_layers_that_change_nothing_change_no_bit(
    engine: EngineUnderTest,
    plain_sha256: str,
    tmp_path: Path,
) -> None:
    workers = workers_with([pass_on], tmp_path)
    record = whole_run(engine, workers, [around(lambda reduced: reduced)])
    assert record.model.sha256() == plain_sha256


@on_every_engine
def test_what_stages_and_layers_do_is_seen(
    engine: EngineUnderTest,
    plain_sha256: str,
    tmp_path: Path,
) -> None:
    by_stage = whole_run(engine, workers_with([halve_reply], tmp_path / "stage"), [])
    by_layer = whole_run(engine, workers_with([], tmp_path / "layer"), [around(halved)])
    reference = whole_run(REFERENCE, workers_with([halve_reply], tmp_path / "reference"), [])
    hashes = {record.model.sha256() for record in (by_stage, by_layer, reference)}
    assert len(hashes) == 1
    assert plain_sha256 not in hashes


@on_every_engine
def test_a_stage_that_raises_is_its_clients_failure(
    engine: EngineUnderTest,
    tmp_path: Path,
) -> None:
    def refuse(task: Task, reply: Reply) -> Reply:
        raise ValueError("the budget is spent")

    workers = workers_with([], tmp_path)
    workers["client-1"] = workers_with([refuse], tmp_path / "other")["client-1"]
    model = build_initial(WHOLE_RUN).model
    kind = algorithms.find(WHOLE_RUN.algorithm.name).exchanges(WHOLE_RUN)["local_train"]
    assert kind.reply is not None
    exchange = exchange_of(list(workers), model, reply_schema=kind.reply(model.schema))
    with engine.running(workers, config=WHOLE_RUN, model=model.schema) as running:
        outcome = running.carry_out(exchange)
    assert outcome.missing == {"client-1": Missing(Cause.FAILED, "ValueError: the budget is spent")}
