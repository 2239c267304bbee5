"""One contract for all engines: the same seed and configuration give the same bits and the same bytes."""

import dataclasses
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest
from harness import RUN_ID, Changed, EngineProxy, OrderSensitiveMean, Recorder, run_in_process, run_in_threads, small_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from feddkd.algorithms import ALGORITHMS, OBJECTIVES
from feddkd.client.constants import HeldConstants
from feddkd.client.simulated import simulated_workers
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.partitions import client_ids
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import run_federation
from feddkd.errors import ClientError
from feddkd.exchange import DELIVER, Cause, ExampleCounts, Exchange, ExchangeId, Missing, Outcome, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.engine import Engine, Keep, OpenExchange
from feddkd.scheduler.events import ExchangeDone
from feddkd.scheduler.journal import Journal
from feddkd.scheduler.journal_lines import read_journal
from feddkd.scheduler.records import Observer, RunRecord
from feddkd.scheduler.recovery import new_journal, resume
from feddkd.tensors import Schema, Tensors
from feddkd.traffic import Meter
from feddkd.transport.messages import id_from_message
from feddkd.transport.pb import federation_pb2 as pb
from feddkd.transport.sessions import Session


class RunIt(Protocol):
    def __call__(
        self,
        config: Config,
        out: Path,
        observers: Sequence[Observer] = (),
        *,
        journal: Journal | None = None,
        workers: Mapping[str, Worker] | None = None,
        around: Callable[[Engine], Engine] = ...,
    ) -> RunRecord: ...


ENGINES: dict[str, RunIt] = {"in-process": run_in_process, "grpc": run_in_threads}

on_both_engines = pytest.mark.parametrize("run", ENGINES.values(), ids=ENGINES)


BATCH_NORM = ('model.name="gated:batch_norm_mlp"', "training.batch_size=50")  # so that no mini-batch is left with one example

CONFIGURATIONS = {
    **{name: [f"algorithm.name={name}"] for name in ALGORITHMS},
    "semifl": ["algorithm.name=semifl", "algorithm.confidence=0", "data.labelled_share=0.3"],
    **{f"feddkd_with_{name}": [f"algorithm.local_objective={name}", "dkd.steps=1"] for name in OBJECTIVES},
    **{
        f"fraction_of_the_clients_of_{name}": [f"algorithm.name={name}", "scheduler.cohort=0.5", "rounds=3"]
        for name in ("scaffold", "feddyn", "moon")
    },
    "batch_norm_and_dropout": [*BATCH_NORM],
    "fraction_of_the_clients": ["scheduler.cohort=0.5", "rounds=3"],
    "uniform_weights": ["scheduler.weights=uniform"],
    "optimizer_state_kept": ["dkd.optimizer_state=keep"],
    "unequal_clients": ["partition.name=quantity_dirichlet"],
    "iid": ["partition.name=iid"],
    "small_chunks": ["transport.chunk_bytes=1024"],
    "start_at_the_previous_model": ["dkd.start=previous", "dkd.optimizer=sgd"],
    "start_at_the_average": ["dkd.start=average"],
    "no_steps": ["dkd.steps=0"],
    "batch_norm_from_the_previous_model": [*BATCH_NORM, "dkd.start=previous"],
    "control_from_the_previous_model": ["algorithm.name=fedavg_sgd", "dkd.start=previous"],
    "gradient_that_rides_along": ["algorithm.name=fedavgm", "dkd.piggyback=true", "rounds=3"],
    "few_labels": ["data.labelled_share=0.2", "data.label_noise=0.2", "training.steps=4"],
    "few_labels_from_the_previous_model": ["data.labels_per_class=3", "dkd.start=previous", "dkd.confidence=0.3"],
    "self_training_with_few_labels": ["algorithm.name=self_training", "data.labelled_share=0.2", "dkd.start=previous", "rounds=3"],
    "the_best_teacher": ["data.labelled_share=0.3", "dkd.teacher=auto", "partition.name=iid", "rounds=4"],
    "the_best_teacher_from_the_previous_model": ["data.labelled_share=0.3", "dkd.teacher=auto", "dkd.start=previous"],
    "adamw_with_a_schedule_and_clipping": [
        "training.optimizer=adamw",
        "training.optimizer_options.betas=[0.9, 0.99]",
        "training.clip_norm=0.5",
        "training.schedule=cosine",
        "training.warmup_rounds=1",
        "training.warmup_steps=3",
        "rounds=4",
    ],
    **{
        f"{name}_with_a_schedule_over_steps": [f"algorithm.name={name}", "training.schedule=cosine", "training.schedule_over=steps"]
        for name in ("scaffold", "fednova")
    },
    "unlike_networks": [
        *("dkd.start=previous", "rounds=3", "teacher.lr=0.1"),
        'teacher.model=["mlp", "own_models:batch_norm", "student", "own_models:adapters"]',
    ],
    "unlike_networks_and_the_best_teacher": [
        *("dkd.start=previous", "dkd.teacher=auto", "data.labelled_share=0.3", "rounds=3"),
        'teacher.model=["student", "own_models:plain"]',
    ],
    "some_parameters": ["dkd.scope=['*.bias']", "dkd.start=previous"],
}


def bytes_of(recorder: Recorder) -> dict[ExchangeId, tuple[int, int, int, int]]:
    return {
        record.id: (
            record.traffic.payload_bytes_down,
            record.traffic.payload_bytes_up,
            record.traffic.wire_bytes_down,
            record.traffic.wire_bytes_up,
        )
        for record in recorder.exchanges
    }


@pytest.mark.parametrize("overrides", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_both_engines_give_the_same_bits_and_count_the_same_bytes(overrides: list[str], tmp_path: Path) -> None:
    config = small_config(*overrides)
    local, remote = Recorder(), Recorder()
    here = run_in_process(config, tmp_path / "in-process", [local])
    there = run_in_threads(config, tmp_path / "grpc", [remote])
    assert here.model.sha256() == there.model.sha256()
    assert here.model.sha256() != build_initial(config).model.sha256()
    assert [record.loss for record in local.exchanges] == [record.loss for record in remote.exchanges]
    assert [record.metrics for record in local.exchanges] == [record.metrics for record in remote.exchanges]
    work = [record.gradient_evaluations for record in local.exchanges]
    assert work == [record.gradient_evaluations for record in remote.exchanges]
    assert here.gradient_evaluations == there.gradient_evaluations == sum(work)
    assert all((count > 0) == (record.id.name != DELIVER) for count, record in zip(work, local.exchanges, strict=True))
    assert [record.metrics for record in local.rounds] == [record.metrics for record in remote.rounds]
    updates_travel = config.algorithm.name not in ("feddkd", "fedavg_sgd", "self_training") or config.dkd.start != "previous"
    assert all(("drift_diversity" in record.metrics) == updates_travel for record in local.rounds)
    assert [record.client_evaluation for record in local.exchanges] == [record.client_evaluation for record in remote.exchanges]
    assert all(record.clients_missing == {} for record in local.exchanges + remote.exchanges)
    # Seconds travel as doubles, so they weigh the same on both.
    assert bytes_of(local) == bytes_of(remote)
    assert all(min(counts[0], *counts[2:]) > 0 for counts in bytes_of(local).values())


@pytest.mark.usefixtures("importable_tests")
def test_real_client_processes_give_the_bits_and_the_ledger_of_the_reference(tmp_path: Path) -> None:
    config = small_config(*BATCH_NORM)
    records, ledgers = [], []
    for engine in ("in-process", "grpc"):
        ledger = Ledger(tmp_path / engine, config)
        records.append(run_federation(config, engine, tmp_path / engine, [ledger]))
        ledger.close()
        lines = [json.loads(line) for line in (tmp_path / engine / "exchanges.jsonl").read_text().splitlines()]
        for line in lines:
            line.get("by_client", {}).pop("seconds", None)
        ledgers.append([{key: value for key, value in line.items() if key not in ("time", "seconds", "client_seconds")} for line in lines])
    assert records[0].model.sha256() == records[1].model.sha256()
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[0]) == 2 * 3 + 1


@on_both_engines
def test_another_seed_gives_another_model(run: RunIt, tmp_path: Path) -> None:
    assert len({run(small_config(f"seed={seed}"), tmp_path / str(seed)).model.sha256() for seed in range(3)}) == 3


@on_both_engines
def test_without_steps_feddkd_and_the_control_are_fedavg_bit_for_bit(run: RunIt, tmp_path: Path) -> None:
    hashes = {
        run(small_config(f"algorithm.name={name}", "dkd.steps=0"), tmp_path / name).model.sha256()
        for name in ("fedavg", "feddkd", "fedavg_sgd")
    }
    assert len(hashes) == 1


@on_both_engines
def test_the_chunk_size_does_not_change_the_bits(run: RunIt, tmp_path: Path) -> None:
    hashes = {run(small_config(f"transport.chunk_bytes={size}"), tmp_path / str(size)).model.sha256() for size in (1024, 1032, 1 << 20)}
    assert len(hashes) == 1


@on_both_engines
def test_every_client_keeps_the_final_model(run: RunIt, tmp_path: Path) -> None:
    config = small_config("scheduler.cohort=2")  # also those that were not drawn for the last round
    record = run(config, tmp_path)
    for client in client_ids(4):
        kept = Tensors.copy_of(record.model.schema, load_file(tmp_path / "clients" / client / "model.safetensors"))
        assert kept.sha256() == record.model.sha256()


@on_both_engines
def test_integer_buffers_stay_integers_and_count_the_batches(run: RunIt, tmp_path: Path) -> None:
    config = small_config(*BATCH_NORM, "partition.name=iid", "rounds=1", "dkd.steps=0", "data.holdout=0")
    model = run(config, tmp_path).model
    batches = model["2.num_batches_tracked"]
    assert batches.shape == ()
    assert not batches.dtype.is_floating_point
    sizes = [worker.counts.total for worker in simulated_workers(config, tmp_path / "clients").values()]
    assert {-(-size // 50) for size in sizes} == {int(batches)}


def journalled(folder: Path) -> list[ExchangeId]:
    """The exchanges whose outcome the journal of a run holds, in order."""
    _, entries = read_journal(folder)
    return [entry.event.record.id for entry, _ in entries if isinstance(entry.event, ExchangeDone)]


class PowerCutError(Exception):
    """The server dies."""


class DyingEngine(EngineProxy):
    """Dies when so many exchanges are done."""

    def __init__(self, engine: Engine, after: int) -> None:
        super().__init__(engine)
        self.after = after

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        if len(self.carried_out) == self.after:
            raise PowerCutError
        return super().carry_out(exchange, keep)


@pytest.mark.parametrize(("run", "moments"), [(run_in_process, range(7)), (run_in_threads, (1, 2, 5))], ids=ENGINES)
def test_a_run_that_is_replayed_from_its_journal_goes_on_where_it_stopped(run: RunIt, moments: Sequence[int], tmp_path: Path) -> None:
    config = small_config("dkd.optimizer_state=keep")
    with closing(new_journal(tmp_path / "clean", RUN_ID, config)) as journal:
        expected = run(config, tmp_path / "clean", journal=journal).model.sha256()
        exchanges = journalled(tmp_path / "clean")
    assert len(exchanges) == 2 * 3 + 1
    for moment in moments:
        out = tmp_path / str(moment)
        with closing(new_journal(out, RUN_ID, config)) as journal, pytest.raises(PowerCutError):
            run(config, out, journal=journal, around=lambda engine, moment=moment: DyingEngine(engine, moment))  # type: ignore[misc]
        proxies: list[EngineProxy] = []
        recorder = Recorder()
        with closing(resume(out, config)) as journal:
            assert journalled(out) == exchanges[:moment]
            record = run(config, out, [recorder], journal=journal, around=lambda engine: proxies.append(EngineProxy(engine)) or proxies[0])  # type: ignore[func-returns-value]  # noqa: B023
        assert proxies[0].carried_out == exchanges[moment:]
        assert record.model.sha256() == expected
        assert [exchange.id for exchange in recorder.exchanges] == exchanges


class ForgetfulEngine(EngineProxy):
    """Loses all replies to one exchange after the clients have computed them."""

    def __init__(self, engine: Engine, lost: ExchangeId) -> None:
        super().__init__(engine)
        self.lost = lost

    def begin(self, exchange: Exchange) -> OpenExchange:
        begun = super().begin(exchange)
        return Changed(begun, self._lose) if exchange.id == self.lost else begun

    @staticmethod
    def _lose(outcome: Outcome) -> Outcome:
        lost = Missing(Cause.DISCONNECTED, "lost on the way")
        return Outcome(None, {}, dict.fromkeys(outcome.replies, lost), outcome.traffic, outcome.seconds)


@on_both_engines
@pytest.mark.parametrize("lost", [("local_train", 0), ("dkd_step", 0), ("dkd_step", 1)], ids=lambda lost: f"{lost[0]}_{lost[1]}")
def test_a_round_that_is_tried_again_gives_the_bits_of_a_clean_run(run: RunIt, lost: tuple[str, int], tmp_path: Path) -> None:
    config = small_config("dkd.optimizer_state=keep")
    expected = run(config, tmp_path / "clean").model.sha256()
    recorder = Recorder()
    failing = ExchangeId(RUN_ID, 2, 0, *lost)
    record = run(config, tmp_path / "again", [recorder], around=lambda engine: ForgetfulEngine(engine, failing))
    assert [(number, attempt) for number, attempt, _ in recorder.failures] == [(2, 0)]
    assert "0 of 4 clients answered" in recorder.failures[0][2]
    assert recorder.of("dkd_step", 2, 1, attempt=1).clients_reported == 4
    assert record.model.sha256() == expected


class Turns:
    """Lets clients reply to each exchange in a given order, whatever order they finish in."""

    def __init__(self, order: Sequence[str]) -> None:
        self.order = order
        self.replied: dict[ExchangeId, list[str]] = {}
        self.changed = threading.Condition()

    def wait(self, client: str, exchange: ExchangeId) -> None:
        before = set(self.order[: self.order.index(client)])
        with self.changed:
            self.changed.wait_for(lambda: before <= set(self.replied.get(exchange, ())))

    def passed(self, client: str, exchange: ExchangeId) -> None:
        with self.changed:
            self.replied.setdefault(exchange, []).append(client)
            self.changed.notify_all()


class TurnTakingWorker(Worker):
    """Computes at once, and replies when it is its turn."""

    def __init__(self, worker: Worker, turns: Turns) -> None:
        self._worker = worker
        self._turns = turns

    @property
    def counts(self) -> ExampleCounts:
        return self._worker.counts

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._worker.class_names

    @property
    def model_schema(self) -> Schema:
        return self._worker.model_schema

    @property
    def constants(self) -> HeldConstants:
        return self._worker.constants

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._worker.broadcast_schema(exchange)

    def carry_out(self, task: Task) -> Reply:
        reply = self._worker.carry_out(task)
        self._turns.wait(self._worker.site.client_id, task.id)
        return reply


class WatchingEngine(GrpcEngine):
    """Tells whose reply has arrived."""

    turns: Turns

    def replied(self, session: Session, answer: pb.Answer) -> Meter:
        meter = super().replied(session, answer)
        self.turns.passed(session.client_id, id_from_message(answer.id))
        return meter


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(client_ids(4)))
def test_the_order_of_arrival_does_not_change_the_bits(tmp_path_factory: pytest.TempPathFactory, order: list[str]) -> None:
    config = small_config("rounds=1", "dkd.steps=1", "partition.name=quantity_dirichlet", "scheduler.min_clients=4")
    out = tmp_path_factory.mktemp("order")
    turns = Turns(order)
    engine = WatchingEngine(config, RUN_ID, build_initial(config).model.schema)
    engine.turns = turns
    workers = {client: TurnTakingWorker(worker, turns) for client, worker in simulated_workers(config, out / "grpc").items()}
    record = run_in_threads(config, out, engine=engine, workers=workers, rule=OrderSensitiveMean())
    assert list(turns.replied.values()) == [order] * 3
    assert record.model.sha256() == run_in_process(config, out, rule=OrderSensitiveMean()).model.sha256()


class FailingWorker(Worker):
    """A worker whose every reply goes wrong in one way."""

    def __init__(self, worker: Worker, fail: Callable[[Reply], Reply]) -> None:
        self._worker = worker
        self._fail = fail

    counts = TurnTakingWorker.counts
    class_names = TurnTakingWorker.class_names
    model_schema = TurnTakingWorker.model_schema
    constants = TurnTakingWorker.constants
    broadcast_schema = TurnTakingWorker.broadcast_schema

    def carry_out(self, task: Task) -> Reply:
        return self._fail(self._worker.carry_out(task))


def client_error(reply: Reply) -> Reply:
    raise ClientError("the disk is full")


def any_error(reply: Reply) -> Reply:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def nan_loss(reply: Reply) -> Reply:
    return Reply(reply.contribution, float("nan"), reply.evaluation, reply.compute_s)


def nan_update(reply: Reply) -> Reply:
    assert reply.contribution is not None
    next(iter(reply.contribution.values())).fill_(float("nan"))
    return reply


def nan_metric(reply: Reply) -> Reply:
    return dataclasses.replace(reply, metrics={"angle": float("nan")})


def negative_work(reply: Reply) -> Reply:
    return dataclasses.replace(reply, gradient_evaluations=-1)


def no_tensors(reply: Reply) -> Reply:
    return Reply(None, reply.loss, reply.evaluation, reply.compute_s)


@pytest.mark.parametrize("fail", [client_error, any_error, nan_loss, nan_update, nan_metric, negative_work, no_tensors])
def test_both_engines_leave_out_a_client_that_fails(fail: Callable[[Reply], Reply], tmp_path: Path) -> None:
    config = small_config("rounds=1", "dkd.steps=1")
    recorders, hashes = [], set()
    for name, run in ENGINES.items():
        workers: dict[str, Worker] = dict(simulated_workers(config, tmp_path / name))
        workers["client-1"] = FailingWorker(workers["client-1"], fail)
        recorders.append(Recorder())
        hashes.add(run(config, tmp_path / name, [recorders[-1]], workers=workers).model.sha256())
    local, remote = (recorder.of("local_train").clients_missing for recorder in recorders)
    assert local == remote
    for recorder in recorders:
        assert list(recorder.of("local_train").clients_missing) == ["client-1"]
        assert recorder.of("dkd_step").clients_selected == 3
    assert len(hashes) == 1
