"""The reference engine: what it counts and refuses, how it is aborted, what it keeps in a file."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blocking import Blocking, fail, give_up, reply_all_the_same
from harness import (
    SCHEMA,
    FakeWorker,
    OnePass,
    OrderSensitiveMean,
    answering,
    exchange_of,
    filled,
    mean_of,
)
from torch import Tensor

from feddkd.aggregator.rule import Reduction, Rows
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.client.work import TaskRunner
from feddkd.engines.in_process import InProcessEngine
from feddkd.errors import ClientError, DataError, RunError, StateError
from feddkd.exchange import Cause, Closing, Evaluation, ExampleCounts, Exchange, ExchangeId, Missing, Outcome, Reply, Task
from feddkd.scheduler.engine import ClientStates
from feddkd.tensors import Schema, Segment, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.messages import (
    Verdict,
    answer_message,
    failure_message,
    receipt_message,
    work_message,
)
from feddkd.transport.payload import Payload
from feddkd.transport.pb import federation_pb2 as pb

CHUNK = 64
PAYLOAD = filled(SCHEMA, 0)
PARTS = {client: filled(SCHEMA, seed) for seed, client in enumerate("abcd", start=1)}
STOPPED = r"^told to stop$"


def engine_of(workers: Mapping[str, TaskRunner] | None = None) -> InProcessEngine:
    honest = {client: answering(part) for client, part in PARTS.items()}
    return InProcessEngine(honest if workers is None else workers, CHUNK)


def carry_out(workers: Mapping[str, TaskRunner], **exchange: object) -> Outcome:
    engine = engine_of(workers)
    described: Exchange = exchange_of(list(workers), PAYLOAD, **exchange)  # type: ignore[arg-type]
    return engine.carry_out(described)


def replying(reply: Reply) -> FakeWorker:
    return FakeWorker(lambda _: reply)


def raising(error: Exception) -> FakeWorker:
    def respond(_: Task) -> Reply:
        raise error

    return FakeWorker(respond)


# An exchange.


def test_clients_are_known_in_client_order_with_their_examples() -> None:
    engine = engine_of({"b": answering(PARTS["b"], 3), "a": answering(PARTS["a"], 7)})
    assert list(engine.clients().items()) == [("a", ExampleCounts(7)), ("b", ExampleCounts(3))]
    assert engine.wait_for_clients(2, None)
    assert not engine.wait_for_clients(3, None)  # nobody will come
    assert engine.states() == ClientStates(connected=2)
    assert engine.other_traffic() == Traffic()


def test_contributions_are_reduced_in_client_order_with_their_weights() -> None:
    weights = {"a": 3.0, "b": 1.0, "c": 2.0}
    outcome = engine_of().carry_out(exchange_of(weights, PAYLOAD))
    assert outcome.reduced is not None
    expected = mean_of({client: PARTS[client] for client in weights}, weights)
    assert outcome.reduced.sha256() == expected.sha256()
    assert list(outcome.replies) == ["a", "b", "c"]
    assert outcome.replies["a"] == Reply(loss=0.5)
    assert (outcome.missing, outcome.fault) == ({}, "")


def test_the_rule_is_the_exchanges() -> None:
    floats = Schema([TensorSpec("w", torch.float32, (1000,))])
    parts = {client: filled(floats, seed) for seed, client in enumerate("abc")}
    engine = engine_of({client: answering(part) for client, part in parts.items()})

    def reduced_by(rule: OrderSensitiveMean | WeightedMean) -> str:
        exchange = exchange_of(list(parts), filled(floats, 9), reply_schema=floats, rule=rule)
        outcome = engine.carry_out(exchange)
        assert outcome.reduced is not None
        return outcome.reduced.sha256()

    assert reduced_by(WeightedMean()) != reduced_by(OrderSensitiveMean())


def test_a_client_is_told_what_the_exchange_says() -> None:
    tasks: list[Task] = []

    def respond(task: Task) -> Reply:
        tasks.append(task)
        return Reply()

    exchange = exchange_of(["a"], PAYLOAD, reply_schema=None, closing=Closing(12.5))
    engine_of({"a": FakeWorker(respond)}).carry_out(replace(exchange, evaluate=True))
    (task,) = tasks
    assert (task.id, task.evaluate, task.deadline_s) == (exchange.id, True, 12.5)
    assert task.payload.sha256() == PAYLOAD.sha256()
    assert not task.cancelled.is_set()


def test_no_client_can_touch_the_broadcast_of_another() -> None:
    seen: list[str] = []

    def spoil(task: Task) -> Reply:
        seen.append(task.payload.sha256())
        task.payload.block.zero_()
        return Reply()

    before = PAYLOAD.sha256()
    carry_out({"a": FakeWorker(spoil), "b": FakeWorker(spoil)}, reply_schema=None)
    assert seen == [before, before]
    assert PAYLOAD.sha256() == before


def test_an_outcome_that_is_asked_for_again_is_the_same() -> None:
    begun = engine_of().begin(exchange_of(["a"], PAYLOAD))
    assert begun.outcome() is begun.outcome()


def test_an_exchange_of_nobody_has_an_outcome() -> None:
    outcome = engine_of().carry_out(exchange_of([], PAYLOAD))
    assert (outcome.reduced, outcome.replies, outcome.missing) == (None, {}, {})


def test_a_client_that_is_not_here_is_missing_as_one_without_connection() -> None:
    outcome = engine_of().carry_out(exchange_of(["a", "stranger"], PAYLOAD))
    assert outcome.missing == {"stranger": Missing(Cause.DISCONNECTED, "not connected")}
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == PARTS["a"].sha256()
    assert outcome.traffic == engine_of().carry_out(exchange_of(["a"], PAYLOAD)).traffic


# Clients that do not reply as they should.


def with_value(name: str, value: float) -> Tensors:
    contribution = filled(SCHEMA, 1)
    contribution[name].view(-1)[-1] = value
    return contribution


OTHER = filled(Schema([TensorSpec("layer.weight", torch.float32, (5, 4))]), 1)
GOOD = PARTS["a"]
WRONG_COUNTS = Evaluation(1, 2, 0.0)
BAD = {
    "loss": (Reply(GOOD, loss=math.nan), "the loss is nan"),
    "metric": (Reply(GOOD, metrics={"x": 1.7e308}), "metric 'x' is 1.7e+308"),
    "seconds": (Reply(GOOD, compute_s=-1.0), "compute_s is -1.0"),
    "work": (Reply(GOOD, gradient_evaluations=2**60), f"{2**60} gradient evaluations"),
    "evaluation": (Reply(GOOD, evaluation=WRONG_COUNTS), "2 correct among 1 examples"),
    "no tensors": (Reply(), "the reply holds no tensors"),
    "other tensors": (Reply(OTHER), "tensor 'norm.count' is missing"),
    "not finite": (Reply(with_value("layer.bias", math.inf)), "NaN or infinite"),
    "enormous": (Reply(with_value("layer.weight", 1e30)), "their norm is above 1e+18"),
}


@pytest.mark.parametrize(("reply", "reason"), BAD.values(), ids=BAD)
def test_a_reply_that_is_not_what_it_should_be_is_refused(reply: Reply, reason: str) -> None:
    outcome = carry_out({"a": replying(reply), "b": answering(PARTS["b"])}, evaluate=True)
    missing = outcome.missing["a"]
    assert missing.cause is (Cause.DIVERGED if "the loss" in reason else Cause.REFUSED)
    assert missing.reason.startswith("refused: ")
    assert reason in missing.reason
    assert list(outcome.replies) == ["b"]
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == PARTS["b"].sha256()


def test_tensors_where_numbers_are_expected_are_refused() -> None:
    outcome = carry_out({"a": answering(PARTS["a"])}, reply_schema=None)
    reason = "refused: the reply holds tensors where numbers are expected"
    assert outcome.missing == {"a": Missing(Cause.REFUSED, reason)}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClientError("no data"), "ClientError: no data"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("disconnected from my camera"), "ValueError: disconnected from my camera"),
        (OSError("cannot open \udcff.png"), r"OSError: cannot open \udcff.png"),
        (RuntimeError("x" * 1000), f"RuntimeError: {'x' * 186}"),
    ],
)
def test_a_client_that_raises_has_failed_in_its_own_words(error: Exception, reason: str) -> None:
    outcome = carry_out({"a": raising(error), "b": answering(PARTS["b"])})
    assert outcome.missing == {"a": Missing(Cause.FAILED, reason)}
    assert not outcome.connection_lost
    assert list(outcome.replies) == ["b"]


def test_a_run_error_of_a_client_is_its_own_failure() -> None:
    """Only the engine's own abort ends a run."""
    outcome = carry_out({"a": raising(RunError("the run is over"))})
    assert outcome.missing == {"a": Missing(Cause.FAILED, "RunError: the run is over")}


def test_a_contribution_longer_than_allowed_is_refused() -> None:
    norm = PARTS["a"].norm()
    for limit, allowed in ((norm * 1.001, True), (norm * 0.999, False)):
        outcome = carry_out({"a": answering(PARTS["a"])}, max_norm=limit)
        assert (outcome.missing == {}) is allowed
        if not allowed:
            missing = outcome.missing["a"]
            assert missing.cause is Cause.REFUSED
            assert f"its norm is above aggregation.max_norm = {limit:g}" in missing.reason


# Bytes.

EXCHANGE = exchange_of(["a"], PAYLOAD)
ID, DEADLINE_S = EXCHANGE.id, EXCHANGE.closing.deadline_s


def broadcast_bytes() -> int:
    payload = Payload(PAYLOAD, CHUNK)
    work = work_message(ID, payload, evaluate=False, deadline_s=DEADLINE_S)
    return len(work) + payload.frames_bytes


def receipt_bytes(verdict: pb.Verdict.ValueType, reason: str = "") -> int:
    return len(receipt_message(ID, verdict, reason))


def header_bytes(reply: Reply) -> int:
    contribution = reply.contribution
    payload = Payload(contribution, CHUNK) if contribution is not None else None
    return len(answer_message(ID, reply, payload))


def traffic_of(worker: FakeWorker) -> Traffic:
    return engine_of({"a": worker}).carry_out(EXCHANGE).traffic


def test_a_reply_is_counted_as_the_messages_that_move_it() -> None:
    reply = Reply(PARTS["a"], loss=0.25, metrics={"x": 1.0})
    frames = Payload(PARTS["a"], CHUNK).frames_bytes
    assert traffic_of(replying(reply)) == Traffic(
        payload_bytes_down=SCHEMA.size_bytes,
        payload_bytes_up=SCHEMA.size_bytes,
        wire_bytes_down=broadcast_bytes() + receipt_bytes(Verdict.VERDICT_OK),
        wire_bytes_up=header_bytes(reply) + frames,
        dense_bytes_down=SCHEMA.size_bytes,
        dense_bytes_up=SCHEMA.size_bytes,
    )


def test_a_failure_is_counted_and_not_acknowledged() -> None:
    assert traffic_of(raising(ClientError("no data"))) == Traffic(
        payload_bytes_down=SCHEMA.size_bytes,
        payload_bytes_up=0,
        wire_bytes_down=broadcast_bytes(),
        wire_bytes_up=len(failure_message(ID, "ClientError: no data")),
        dense_bytes_down=SCHEMA.size_bytes,
    )


@pytest.mark.parametrize("reply", [Reply(), Reply(GOOD, loss=math.nan), Reply(OTHER)])
def test_a_reply_refused_at_its_header_costs_the_header_and_a_receipt(reply: Reply) -> None:
    outcome = engine_of({"a": replying(reply)}).carry_out(EXCHANGE)
    reason = outcome.missing["a"].reason.removeprefix("refused: ")
    refusal = receipt_bytes(Verdict.VERDICT_INVALID_ARGUMENT, reason)
    assert outcome.traffic == Traffic(
        payload_bytes_down=SCHEMA.size_bytes,
        payload_bytes_up=0,
        wire_bytes_down=broadcast_bytes() + refusal,
        wire_bytes_up=header_bytes(reply),
        dense_bytes_down=SCHEMA.size_bytes,
    )


def test_a_reply_refused_at_a_chunk_costs_the_chunks_until_then() -> None:
    contribution = filled(SCHEMA, 1)
    contribution["layer.weight"][3, 4] = math.nan  # byte 76 of the floats, in their second chunk
    frames = [len(frame) for frame in Payload(contribution, CHUNK).frames()]
    traffic = traffic_of(replying(Reply(contribution)))
    chunks_of_integers = 1
    sent = sum(frames[: chunks_of_integers + 2])
    assert sent < sum(frames)
    assert traffic.wire_bytes_up == header_bytes(Reply(contribution)) + sent
    assert traffic.payload_bytes_up == 0


def test_the_bytes_of_clients_add_up() -> None:
    workers = {client: answering(part) for client, part in PARTS.items()}
    total = engine_of(workers).carry_out(exchange_of(list(workers), PAYLOAD)).traffic
    each = Traffic()
    for client, worker in workers.items():
        alone = exchange_of([client], PAYLOAD)
        each += engine_of({client: worker}).carry_out(alone).traffic
    assert total == each


# Several exchanges.


def numbered(clients: Mapping[str, float] | list[str], step: int) -> Exchange:
    exchange = exchange_of(clients, filled(SCHEMA, 10 + step))
    return replace(exchange, id=replace(exchange.id, step=step))


def facts(outcome: Outcome) -> tuple[object, ...]:
    reduced = outcome.reduced.sha256() if outcome.reduced is not None else None
    return reduced, outcome.replies, outcome.missing, outcome.traffic, outcome.fault


@pytest.mark.parametrize("reverse", [False, True])
def test_exchanges_that_are_open_at_once_come_out_as_one_after_another(reverse: bool) -> None:
    def respond(task: Task) -> Reply:
        if task.id.step == 1:
            raise ClientError("not this one")
        return Reply(task.payload, loss=float(task.id.step))

    workers = {
        "a": answering(PARTS["a"]),
        "b": answering(PARTS["b"]),
        "c": FakeWorker(respond),
        "d": FakeWorker(respond),
    }
    exchanges = [numbered(["a", "b"], 0), numbered(["c"], 1), numbered(["d"], 2)]
    one_by_one = engine_of(workers)
    expected = [facts(one_by_one.carry_out(exchange)) for exchange in exchanges]
    engine = engine_of(workers)
    begun = [engine.begin(exchange) for exchange in exchanges]
    order = reversed(range(3)) if reverse else range(3)
    found = {index: facts(begun[index].outcome()) for index in order}
    assert [found[index] for index in range(3)] == expected


def test_a_client_takes_part_in_one_open_exchange_at_a_time() -> None:
    engine = engine_of()
    first = engine.begin(numbered(["a", "b"], 0))
    with pytest.raises(ValueError, match=r"^b takes part in round 1 local_train, which is"):
        engine.begin(numbered(["b", "c"], 1))
    assert engine.begin(numbered(["c"], 2)).outcome().missing == {}  # it was not taken
    first.acknowledge()
    assert engine.begin(numbered(["b"], 1)).outcome().missing == {}


# What cannot be reduced.


class Raising(OnePass, WeightedMean):
    """A rule with a bug."""

    def start(self, clients: Sequence[str] = ()) -> Reduction:
        return self

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        raise ZeroDivisionError("a rule with a bug")


class Overflowing(Raising):
    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        out.fill_(math.inf) if out.dtype.is_floating_point else out.zero_()


def test_a_reduction_that_is_not_finite_is_a_fault_not_an_error() -> None:
    engine = engine_of()
    outcome = engine.carry_out(exchange_of(["a", "b"], PAYLOAD, rule=Overflowing()))
    assert outcome.reduced is None
    assert "NaN or infinite; largest: " in outcome.fault
    assert list(outcome.replies) == ["a", "b"]
    assert engine.carry_out(EXCHANGE).missing == {}


def test_an_error_of_a_rule_reaches_who_waits_and_leaves_the_engine_usable() -> None:
    engine = engine_of()
    begun = engine.begin(exchange_of(["a", "b"], PAYLOAD, rule=Raising()))
    for _ in range(2):  # again the same when asked again
        with pytest.raises(ZeroDivisionError, match=r"^a rule with a bug$"):
            begun.outcome()
    assert engine.carry_out(EXCHANGE).missing == {}


# Memory and file.

LARGE = Schema(
    [
        TensorSpec("d", torch.float64, (3000,)),
        TensorSpec("w", torch.float32, (5000,)),
        TensorSpec("n", torch.int64, (7,)),
    ]
)


def in_budget(staging_bytes: int, folder: Path) -> str:
    workers = {client: answering(filled(LARGE, seed)) for seed, client in enumerate("abcd")}
    exchange = exchange_of(list(workers), filled(LARGE, 9), reply_schema=LARGE)
    with InProcessEngine(workers, 1024, staging_bytes, folder) as engine:
        outcome = engine.carry_out(exchange)
        assert outcome.missing == {}
        assert outcome.reduced is not None
        return outcome.reduced.sha256()


def test_contributions_beyond_the_memory_for_them_go_to_a_file_with_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[int] = []
    write = os.pwrite

    def counting(descriptor: int, data: bytes, offset: int) -> int:
        written.append(len(data))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    total = 4 * LARGE.size_bytes
    expected = in_budget(total, tmp_path)
    assert written == []
    for budget in (0, 10_000, total - 1):
        written.clear()
        assert in_budget(budget, tmp_path) == expected
        assert total - budget <= sum(written) <= total
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_exchange_with_its_reason(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    workers = {client: answering(part) for client, part in PARTS.items()}
    with InProcessEngine(workers, CHUNK, 0, tmp_path) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StateError, match=f"{tmp_path}: No space left on device"):
                engine.carry_out(EXCHANGE)
        assert engine.carry_out(EXCHANGE).missing == {}  # once there is room again


# Aborts.


ACTIONS: dict[str, Callable[[InProcessEngine], object]] = {
    "check": lambda engine: engine.check_aborted(),
    "clients": lambda engine: engine.clients(),
    "wait": lambda engine: engine.wait_for_clients(1, 0.0),
    "begin": lambda engine: engine.begin(EXCHANGE),
    "carry out": lambda engine: engine.carry_out(EXCHANGE),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_after_an_abort_nothing_more_is_done(action: Callable[[InProcessEngine], object]) -> None:
    action(engine_of())  # it would be possible
    computed: list[ExchangeId] = []

    def respond(task: Task) -> Reply:
        computed.append(task.id)
        return Reply(PARTS["a"])

    engine = engine_of({"a": FakeWorker(respond)})
    engine.abort("told to stop")
    with pytest.raises(RunError, match=STOPPED):
        action(engine)
    assert computed == []
    # Only questions and the farewell are possible still.
    assert engine.states() == ClientStates(connected=1)
    assert engine.other_traffic() == Traffic()
    engine.finish(completed=False, reason="told to stop")


def test_an_abort_ends_every_open_exchange() -> None:
    engine = engine_of()
    begun = [engine.begin(numbered(["a"], 0)), engine.begin(numbered(["b", "c"], 1))]
    engine.abort("told to stop")
    for each in begun:
        for _ in range(2):
            with pytest.raises(RunError, match=STOPPED):
                each.outcome()


@pytest.mark.parametrize("after", [give_up, reply_all_the_same, fail])
@pytest.mark.parametrize("others", [[], ["b"]])
def test_an_abort_ends_a_computation_under_way_and_the_exchange(
    after: Callable[[Task], Reply],
    others: list[str],
) -> None:
    blocking, computed = Blocking(after), list[str]()

    def respond(_: Task) -> Reply:
        computed.append("b")
        return Reply(PARTS["b"])

    engine = engine_of({"a": blocking, "b": FakeWorker(respond)})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.carry_out, exchange_of(["a", *others], PAYLOAD))
        blocking.started.wait()
        engine.abort("told to stop")
        with pytest.raises(RunError, match=STOPPED):
            waiting.result()
    assert computed == []


def test_an_abort_ends_an_exchange_of_numbers_alone() -> None:
    blocking = Blocking(lambda _: Reply())
    engine = engine_of({"a": blocking})
    with ThreadPoolExecutor(1) as pool:
        delivery = exchange_of(["a"], PAYLOAD, reply_schema=None)
        waiting = pool.submit(engine.carry_out, delivery)
        blocking.started.wait()
        engine.abort("told to stop")
        with pytest.raises(RunError, match=STOPPED):
            waiting.result()


BLOCKS = SCHEMA.chunks(CHUNK)


@pytest.mark.parametrize("aborted_in", range(len(BLOCKS)))
def test_an_abort_ends_a_reduction_under_way(aborted_in: int) -> None:
    reduced: list[Segment] = []

    class Aborting(Raising):
        def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
            out.zero_()
            reduced.append(block)
            if block == BLOCKS[aborted_in]:
                engine.abort("told to stop")

    engine = engine_of()
    with pytest.raises(RunError, match=STOPPED):
        engine.carry_out(exchange_of(["a", "b"], PAYLOAD, rule=Aborting()))
    assert reduced == list(BLOCKS[: aborted_in + 1])


def test_an_engine_that_is_closed_frees_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = {client: answering(part) for client, part in PARTS.items()}
    opened: list[int] = []
    closed: list[int] = []
    make, close = tempfile.mkstemp, os.close

    def making(**where: object) -> tuple[int, str]:
        descriptor, name = make(**where)  # type: ignore[call-overload]
        opened.append(descriptor)
        return descriptor, name

    def closing(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    monkeypatch.setattr(tempfile, "mkstemp", making)
    monkeypatch.setattr(os, "close", closing)
    with InProcessEngine(workers, CHUNK, 0, tmp_path) as engine:
        engine.carry_out(EXCHANGE)
        assert (len(opened), closed) == (1, [])
    assert closed == opened


def test_what_cannot_be_read_at_a_site_is_not_named_to_the_server() -> None:
    """File names can tell of patients."""
    outcome = carry_out({"a": raising(DataError("image_folder: cannot read clinic/anna-miller.png"))})
    assert outcome.missing["a"].reason == "DataError: its data cannot be read; the client's own log says why"
