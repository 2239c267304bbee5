"""What every engine promises of encoded payloads: the same model, the same bytes, and clients that hold it to the bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from coding import MIXED, Alternate, coding, know
from engine_table import ENGINES, REFERENCE, EngineUnderTest, Facts, agreed, on_every_engine
from harness import RUN_ID, Changed, EngineProxy, FakeWorker, Recorder, answering, exchange_of, filled, mean_of, small_config

from feddkd import algorithms
from feddkd.algorithms.base import Cohort, CohortAround
from feddkd.algorithms.fedavg import FedAvg
from feddkd.client.simulated import simulated_workers
from feddkd.client.state_dir import StateDir
from feddkd.client.work import MEASURED_STEPS, TaskRunner
from feddkd.client.worker import FINAL_MODEL, Worker
from feddkd.compression.broadcaster import Broadcaster
from feddkd.compression.codec import Codec
from feddkd.compression.codecs import find
from feddkd.compression.encoding import Encoding
from feddkd.config import Config
from feddkd.engines.forms import Forms
from feddkd.errors import PausedError
from feddkd.exchange import DELIVER, Cause, Exchange, Missing, Outcome, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import Engine, Keep, OpenExchange
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.rounds import CohortLayer, Extensions, Scheduler
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import CODEC_ERROR, CODEC_SECONDS, Traffic
from feddkd.transport.messages import Verdict, answer_message, receipt_message
from feddkd.transport.payload import Payload

WEIGHTS = {"a": 3.0, "b": 1.0, "c": 7.0}
PARTS = {client: filled(MIXED, seed) for seed, client in enumerate(WEIGHTS, start=1)}
HONEST = {client: answering(part) for client, part in PARTS.items()}
MODEL, OTHER, THIRD = (filled(MIXED, seed) for seed in (10, 11, 12))
CHUNK_BYTES = 1024
SETTING = f"transport.chunk_bytes={CHUNK_BYTES}"
INT8 = find("int8", unbiased=False)


# Single exchanges.


def facts(outcome: Outcome) -> Facts:
    """All but what was measured in seconds."""
    found = Facts.of(outcome)
    return replace(found, replies=[(client, without_seconds(reply)) for client, reply in found.replies])


def without_seconds(reply: Reply) -> Reply:
    metrics = {name: value for name, value in reply.metrics.items() if name != CODEC_SECONDS["up"]}
    return replace(reply, metrics=metrics, compute_s=0.0)


def coded(name: str = "int8", *, weights: Mapping[str, float] = WEIGHTS, max_norm: float | None = None) -> Exchange:
    """An exchange whose replies are encoded."""
    exchange = exchange_of(weights, MODEL, reply_schema=MIXED, max_norm=max_norm)
    return replace(exchange, reply_codec=find(name, unbiased=True), seed=5)


def carried_out(engine: EngineUnderTest, exchange: Exchange, workers: Mapping[str, TaskRunner]) -> Outcome:
    """On this engine and on the reference; they have to agree."""
    outcome = engine.carry_out(exchange, workers, SETTING, model=MIXED)
    assert facts(outcome) == facts(REFERENCE.carry_out(exchange, workers, SETTING, model=MIXED))
    return outcome


def decoded_mean(exchange: Exchange, *clients: str) -> str:
    parts = {client: Encoding(MIXED, CHUNK_BYTES, exchange.reply_coding(client)).encode(PARTS[client]).decode() for client in clients}
    return mean_of(parts, WEIGHTS).sha256()


@on_every_engine
@pytest.mark.parametrize("name", ["fp16", "bf16", "int8", "int4", "eden1", "eden3", "topk:0.25"])
def test_encoded_contributions_are_reduced_to_the_mean_of_what_they_decode_to(
    name: str, engine: EngineUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, Alternate())
    exchange = coded(name)
    outcome = carried_out(engine, exchange, HONEST)
    assert outcome.reduced is not None
    assert outcome.reduced.sha256() == decoded_mean(exchange, *WEIGHTS)
    size = Encoding(MIXED, CHUNK_BYTES, coding(name)).size_bytes
    assert (outcome.traffic.payload_bytes_up, outcome.traffic.dense_bytes_up) == (3 * size, 3 * MIXED.size_bytes)
    assert (outcome.traffic.payload_bytes_down, outcome.traffic.snapshot_bytes_down) == (3 * MIXED.size_bytes, 0)
    for reply in outcome.replies.values():
        assert 0 < reply.metrics[CODEC_ERROR["up"]] < 2
        assert reply.metrics[CODEC_SECONDS["up"]] > 0


@on_every_engine
def test_a_contribution_that_is_of_no_use_is_refused_and_the_others_count(engine: EngineUnderTest) -> None:
    bad = PARTS["a"].replace({})
    bad["weight"][0, 0] = torch.nan
    exchange = coded()
    # It is refused at its first chunk; how many follow before the client knows is a race.
    outcome, expected = (
        each.carry_out(exchange, HONEST | {"a": answering(bad)}, "transport.chunk_bytes=1048576", model=MIXED)
        for each in (engine, REFERENCE)
    )
    assert replace(facts(outcome), traffic=Traffic()) == replace(facts(expected), traffic=Traffic())
    (missing,) = outcome.missing.values()
    assert missing.cause is Cause.REFUSED
    assert "NaN or infinite" in missing.reason
    assert list(outcome.replies) == ["b", "c"]
    assert outcome.traffic.payload_bytes_up == 2 * Encoding(MIXED, 1 << 20, coding("int8")).size_bytes


@on_every_engine
@pytest.mark.parametrize("value", [torch.nan, 1e30])
def test_clients_whose_loss_is_not_finite_say_that_the_model_is_of_no_use(value: float, engine: EngineUnderTest) -> None:
    """With a contribution that no codec encodes, as without a codec."""
    bad = PARTS["a"].replace({})
    bad["weight"][0, 0] = value
    worker = FakeWorker(lambda _: Reply(bad, loss=torch.inf), MIXED)
    for exchange in (coded(), replace(coded(), reply_codec=None)):
        outcome = engine.carry_out(exchange, HONEST | {"a": worker}, SETTING, model=MIXED)
        assert outcome.missing == {"a": Missing(Cause.DIVERGED, "refused: the loss is inf")}


@on_every_engine
def test_the_norm_that_is_limited_is_that_of_what_arrives(engine: EngineUnderTest) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (200,))])
    parts = {client: filled(schema, seed) for seed, client in enumerate("ab")}
    exchange = replace(exchange_of("ab", filled(schema, 9), reply_schema=schema), reply_codec=find("eden1", unbiased=True))
    norms = {
        client: Encoding(schema, 1 << 20, exchange.reply_coding(client)).encode(part).decode().norm() for client, part in parts.items()
    }
    longest = max(norms, key=lambda client: norms[client])
    (other,) = set(parts) - {longest}
    limit = sum(norms.values()) / 2
    workers = {client: answering(part) for client, part in parts.items()}
    outcome = engine.carry_out(replace(exchange, max_norm=limit), workers, model=schema)
    assert outcome.missing == {longest: Missing(Cause.REFUSED, f"refused: its norm is above aggregation.max_norm = {limit:g}")}
    assert list(outcome.replies) == [other]


class Steps:
    """Exchanges whose payload is broadcast as a step, as a scheduler would describe them."""

    def __init__(self, codec: Codec = INT8) -> None:
        self.server = Broadcaster(CHUNK_BYTES, 3)
        self.codec = codec
        self.number = 0

    def exchange(self, model: Tensors, clients: Sequence[str] = "abc") -> Exchange:
        sent, broadcast = self.server.broadcast(self.codec, model, clients)
        self.server.received(broadcast, sent, clients)
        self.number += 1
        described = exchange_of(clients, sent, reply_schema=None, round_number=self.number)
        return replace(described, broadcast=broadcast)


class Seeing(FakeWorker):
    """Keeps the hash of everything that it is sent; may write to it."""

    def __init__(self, spoil: Callable[[Task], object] = lambda _: None) -> None:
        super().__init__(self._see, MIXED)
        self.seen: list[str] = []
        self._spoil = spoil

    def _see(self, task: Task) -> Reply:
        self.seen.append(task.payload.sha256())
        self._spoil(task)
        return Reply()


@on_every_engine
def test_clients_compute_with_the_model_that_the_server_says(engine: EngineUnderTest) -> None:
    steps, workers = Steps(), {client: Seeing() for client in "abc"}
    exchanges = [steps.exchange(model) for model in (MODEL, OTHER, THIRD)]
    exchanges.append(steps.exchange(exchanges[-1].payload))
    with engine.running(workers, SETTING, model=MIXED) as running:
        outcomes = [running.carry_out(exchange) for exchange in exchanges]
    for worker in workers.values():
        assert worker.seen == [exchange.payload.sha256() for exchange in exchanges]
    whole, *rest = (outcome.traffic for outcome in outcomes)
    assert (whole.payload_bytes_down, whole.snapshot_bytes_down) == (3 * MIXED.size_bytes, 3 * MIXED.size_bytes)
    for traffic, exchange in zip(rest, exchanges[1:], strict=True):
        assert exchange.broadcast is not None
        assert exchange.broadcast.step is not None
        assert traffic.payload_bytes_down == 3 * exchange.broadcast.step.size_bytes
        assert (traffic.dense_bytes_down, traffic.snapshot_bytes_down) == (3 * MIXED.size_bytes, 0)
    assert outcomes[3].traffic.payload_bytes_down == 0


@on_every_engine
def test_a_client_that_is_new_is_sent_the_model_and_the_others_the_step(engine: EngineUnderTest) -> None:
    steps, workers = Steps(), {client: Seeing() for client in "abc"}
    first, second = steps.exchange(MODEL, "ab"), steps.exchange(OTHER, "abc")
    with engine.running(workers, SETTING, model=MIXED) as running:
        running.carry_out(first)
        traffic = running.carry_out(second).traffic
    assert {worker.seen[-1] for worker in workers.values()} == {second.payload.sha256()}
    assert second.broadcast is not None
    assert second.broadcast.step is not None
    assert traffic.payload_bytes_down == 2 * second.broadcast.step.size_bytes + MIXED.size_bytes
    assert traffic.snapshot_bytes_down == MIXED.size_bytes


@on_every_engine
@pytest.mark.parametrize("following", [OTHER, MODEL], ids=["another model", "the same model"])
def test_a_client_that_writes_to_its_payload_heals_itself(following: Tensors, engine: EngineUnderTest) -> None:
    """It asks for the whole model, which is lost: the record says what was planned; on every engine the same bytes."""
    found = []
    for each in (engine, REFERENCE):
        steps = Steps()
        writing = Seeing(lambda task: task.payload["bias"].zero_() if task.id.round == 1 else None)
        workers = {"a": Seeing(), "b": writing, "c": Seeing()}
        exchanges = [steps.exchange(model) for model in (MODEL, following, THIRD)]
        with each.running(workers, SETTING, model=MIXED) as running:
            outcomes = [running.carry_out(exchange) for exchange in exchanges]
        assert all(outcome.missing == {} for outcome in outcomes)
        for worker in workers.values():
            assert worker.seen == [exchange.payload.sha256() for exchange in exchanges]
        assert [outcome.traffic.snapshot_bytes_down for outcome in outcomes[1:]] == [0, 0]
        assert [outcome.lost.wire_bytes_down > MIXED.size_bytes for outcome in outcomes] == [False, True, False]
        found.append([facts(outcome) for outcome in outcomes])
    assert found[0] == found[1]


@on_every_engine
def test_a_client_that_does_not_hold_the_base_is_sent_the_model_once(engine: EngineUnderTest) -> None:
    steps, workers = Steps(), {client: Seeing() for client in "abc"}
    steps.exchange(MODEL)  # the server takes it that they have it
    second = steps.exchange(OTHER)
    with engine.running(workers, SETTING, model=MIXED) as running:
        outcome = running.carry_out(second)
    assert outcome.missing == {}
    assert {worker.seen[-1] for worker in workers.values()} == {second.payload.sha256()}
    assert outcome.traffic.snapshot_bytes_down == 0
    assert second.broadcast is not None
    assert second.broadcast.step is not None
    assert outcome.traffic.payload_bytes_down == 3 * second.broadcast.step.size_bytes
    forms = Forms(second, CHUNK_BYTES)
    planned = sum(len(forms.message(client)) + sum(map(len, forms.payload(client).frames())) for client in "abc")
    receipts = 3 * len(receipt_message(second.id, Verdict.VERDICT_OK))
    assert outcome.useful.wire_bytes_down == planned + receipts
    assert outcome.lost.wire_bytes_down > 3 * MIXED.size_bytes


@on_every_engine
def test_the_bytes_on_the_wire_are_those_of_the_messages(engine: EngineUnderTest) -> None:
    steps = Steps()
    first, second = (
        replace(steps.exchange(model, clients), reply_schema=MIXED, reply_codec=find("int4", unbiased=True))
        for model, clients in ((MODEL, "ab"), (OTHER, "abc"))
    )
    assert [Forms(second, CHUNK_BYTES).is_step(client) for client in "abc"] == [True, True, False]
    with engine.running(HONEST, SETTING, model=MIXED) as running:
        for exchange in (first, second):
            outcome = running.carry_out(exchange)
            forms, down, up = Forms(exchange, CHUNK_BYTES), 0, 0
            for client in exchange.clients:
                broadcast = forms.payload(client)
                down += len(forms.message(client)) + sum(map(len, broadcast.frames()))
                down += len(receipt_message(exchange.id, Verdict.VERDICT_OK))
                code = Payload.of(Encoding(MIXED, CHUNK_BYTES, exchange.reply_coding(client)).encode(PARTS[client]))
                up += len(answer_message(exchange.id, outcome.replies[client], code)) + sum(map(len, code.frames()))
            assert (outcome.traffic.wire_bytes_down, outcome.traffic.wire_bytes_up) == (down, up)
            assert outcome.useful == Traffic(wire_bytes_down=down, wire_bytes_up=up)


@on_every_engine
def test_leftovers_of_a_client_are_its_own(engine: EngineUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Alternate()
    know(monkeypatch, codec)
    exchanges = [replace(coded(), reply_codec=codec, id=replace(coded().id, step=step)) for step in range(5)]
    with engine.running(HONEST, SETTING, model=MIXED) as running:
        found = [running.carry_out(exchange).reduced for exchange in exchanges]
    left = {client: Tensors(MIXED) for client in WEIGHTS}
    for exchange, reduced in zip(exchanges, found, strict=True):
        parts = {}
        for client, part in PARTS.items():
            lossy = {name: part[name] + left[client][name] for name, spec in MIXED.by_name.items() if spec.lossy}
            whole = part.replace(lossy)
            parts[client] = Encoding(MIXED, CHUNK_BYTES, exchange.reply_coding(client)).encode(whole).decode()
            left[client] = whole - parts[client]
        assert reduced is not None
        assert reduced.sha256() == mean_of(parts, WEIGHTS).sha256()


# Whole runs.

CODECS = {
    "int8 up, int4 down": ("up=int8", "down=int4"),
    "eden": ("up=eden1", "down=eden2", "snapshot=bf16"),
    "fp16 both ways": ("up=fp16", "down=fp16"),
    "snapshots of int8": ("down=eden4", "snapshot=int8"),
    "kept leftovers": ("up=topk:0.25", "down=int8"),
    "largest elements": ("up=topk:0.05", "down=int8"),
    "drawn elements": ("up=randk:0.1", "down=int8"),
    "compressed without loss": ("zstd=true", "up=int4", "down=int4"),
    "steps alone": ("dkd_step.up=eden2", "dkd_step.down=eden4"),
}
ALGORITHMS = {
    "fedavg": ("algorithm.name=fedavg",),
    "average": ("dkd.start=average",),
    "better": ("dkd.start=better", "dkd.tail=0.7", "dkd.steps=3"),
    "previous": ("dkd.start=previous", "dkd.tail=0.7", "dkd.steps=3"),
    "scaffold": ("algorithm.name=scaffold",),
    "fedexp": ("algorithm.name=fedexp",),
    "fedadam": ("algorithm.name=fedadam",),
    "semifl": ("algorithm.name=semifl", "algorithm.confidence=0", "data.labelled_share=0.3"),
}
RUN = ("rounds=3", "partition.clients=4", "partition.labels=3", "data.subset=200", "data.test_set=false", "dkd.steps=2")


def configuration(codecs: Sequence[str], *overrides: str) -> Config:
    return small_config(*RUN, *(f"communication.{codec}" for codec in codecs), *overrides)


class Run:
    """A run on an engine: what came of it, and what its clients keep."""

    def __init__(
        self,
        engine: EngineUnderTest,
        config: Config,
        folder: Path,
        *,
        layers: Sequence[CohortLayer] = (),
        around: Callable[[Engine], Engine] = lambda engine: engine,
        workers: Mapping[str, Worker] | None = None,
    ) -> None:
        self.recorder = Recorder()
        self.workers = workers or simulated_workers(config, folder)
        self.folder = folder
        model = build_initial(config).model
        self.schema = model.schema
        with engine.running(self.workers, config=config, model=model.schema) as running:
            self.record: RunRecord = Scheduler(
                config,
                algorithms.build(config),
                around(running),
                run_id=RUN_ID,
                observers=[self.recorder],
                extensions=Extensions(layers=layers),
            ).run(model)

    @property
    def sha256(self) -> str:
        return self.record.model.sha256()

    def kept(self) -> dict[str, str]:
        """The hash of the final model in every client's folder."""
        found = {}
        for client in self.workers:
            model = StateDir(self.folder / client, client).load(FINAL_MODEL, self.schema, RUN_ID)
            assert model is not None
            found[client] = model.sha256()
        return found

    def traffics(self) -> list[tuple[str, Traffic]]:
        return [(str(record.id), record.traffic) for record in self.recorder.exchanges]

    def metrics(self) -> list[dict[str, float]]:
        """Without seconds."""
        return [
            {name: value for name, value in record.metrics.items() if name not in CODEC_SECONDS.values()}
            for record in self.recorder.exchanges
        ]

    def check_delivered(self) -> None:
        """Every client has the very model that the record has."""
        assert self.record.not_delivered == {}
        assert set(self.kept().values()) == {self.sha256}


def check_alike(run: Run, reference: Run) -> None:
    assert run.sha256 == reference.sha256
    assert run.traffics() == reference.traffics()
    assert run.metrics() == reference.metrics()
    assert run.record.exchange_traffic == reference.record.exchange_traffic


CASES = [
    ("eden", "fedavg", ()),
    ("eden", "previous", ()),
    ("eden", "better", ("scheduler.cohort=2",)),
    ("eden", "scaffold", ()),
    ("eden", "fedexp", ()),
    ("eden", "semifl", ()),
    ("int8 up, int4 down", "average", ()),
    ("int8 up, int4 down", "fedadam", ("scheduler.cohort=3",)),
    ("fp16 both ways", "better", ()),
    ("snapshots of int8", "previous", ("scheduler.cohort=2",)),
    ("snapshots of int8", "fedavg", ("scheduler.cohort=2",)),
    ("kept leftovers", "fedavg", ()),
    ("kept leftovers", "previous", ("scheduler.cohort=3",)),
    ("largest elements", "fedavg", ("scheduler.cohort=3",)),
    ("drawn elements", "previous", ()),
    ("compressed without loss", "scaffold", ("scheduler.cohort=2",)),
    ("steps alone", "better", ()),
    ("steps alone", "previous", ()),
]
OTHERS = {name: engine for name, engine in ENGINES.items() if engine is not REFERENCE}


@pytest.mark.parametrize("engine", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(("codecs", "algorithm", "more"), CASES, ids=lambda value: str(value))
def test_a_run_with_codecs_has_the_same_model_bytes_and_metrics_on_every_engine(
    codecs: str, algorithm: str, more: Sequence[str], engine: EngineUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(monkeypatch, Alternate())
    config = configuration(CODECS[codecs], *ALGORITHMS[algorithm], *more)
    run, reference = Run(engine, config, tmp_path / "run"), Run(REFERENCE, config, tmp_path / "reference")
    check_alike(run, reference)
    run.check_delivered()
    reference.check_delivered()


def test_codecs_change_the_model(tmp_path: Path) -> None:
    """Or the test above would pass for codecs that are not used."""
    found = {
        name: Run(REFERENCE, configuration(codecs, *ALGORITHMS["average"]), tmp_path / name).sha256
        for name, codecs in {**CODECS, "none": ()}.items()
        if name not in ("kept leftovers", "compressed without loss")
    }
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_most_clients_get_whole_bears_no_error_of_a_step(seed: int, tmp_path: Path) -> None:
    """One client a round: the model of FedAvg is then that client's, whatever codec encodes steps."""
    sampled = (*ALGORITHMS["fedavg"], "scheduler.cohort=1", f"seed={seed}")
    plain = Run(REFERENCE, configuration((), *sampled), tmp_path / "plain")
    coded = Run(REFERENCE, configuration(("down=eden1",), *sampled), tmp_path / "coded")
    all_clients = Run(REFERENCE, configuration(("down=eden1",), *ALGORITHMS["fedavg"], f"seed={seed}"), tmp_path / "all")
    assert coded.sha256 == plain.sha256
    assert all_clients.sha256 != plain.sha256


@pytest.mark.parametrize("snapshot", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("algorithm", ["fedavg", "previous"])
def test_the_model_that_is_evaluated_is_the_one_that_a_sampled_cohort_receives(algorithm: str, snapshot: str, tmp_path: Path) -> None:
    config = configuration(("down=eden2", f"snapshot={snapshot}"), *ALGORITHMS[algorithm], "scheduler.cohort=1", "rounds=3")
    received: list[str] = []

    class Watched(EngineProxy):
        def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
            if exchange.id.name in ("local_train", DELIVER):
                received.append(exchange.payload.sha256())
            return super().carry_out(exchange, keep)

    run = Run(REFERENCE, config, tmp_path, around=Watched)
    assert received[1:] == run.recorder.models
    run.check_delivered()


class InPlace(FedAvg):
    """FedAvg that writes into the model it was given."""

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update = cohort.exchange("local_train", model)
        for name, tensor in model.items():
            tensor.add_(update[name])
        return model


@on_every_engine
@pytest.mark.parametrize("codecs", [(), ("down=eden4",), ("down=fp16", "snapshot=bf16")], ids=str)
def test_an_algorithm_may_write_into_its_model(codecs: tuple[str, ...], engine: EngineUnderTest, tmp_path: Path) -> None:
    """The server's own copy of what clients hold would change with it: then they get the model whole."""
    config = configuration(codecs, f"algorithm.name={__name__}:InPlace", "rounds=3")
    run = Run(engine, config, tmp_path)
    run.check_delivered()
    models = [record.traffic.payload_bytes_down for record in run.recorder.exchanges if record.id.name == "local_train"]
    assert min(models) > 0
    if not codecs:
        plain = Run(REFERENCE, configuration((), *ALGORITHMS["fedavg"], "rounds=3"), tmp_path / "plain")
        assert run.sha256 == plain.sha256


def test_zstandard_changes_no_model_and_saves_bytes(tmp_path: Path) -> None:
    codecs = ("up=int4", "down=int4")
    plain = Run(REFERENCE, configuration(codecs, *ALGORITHMS["average"]), tmp_path / "plain")
    packed = Run(REFERENCE, configuration((*codecs, "zstd=true"), *ALGORITHMS["average"]), tmp_path / "packed")
    assert packed.sha256 == plain.sha256
    assert packed.record.traffic.payload_bytes_up == plain.record.traffic.payload_bytes_up
    assert packed.record.traffic.wire_bytes < plain.record.traffic.wire_bytes


class Counting(EngineProxy):
    """Adds up, from what is described, what every exchange has to move."""

    def __init__(self, engine: Engine, chunk_bytes: int) -> None:
        super().__init__(engine)
        self.expected: list[tuple[int, int, int, int, int]] = []
        self.forms: Counter[str] = Counter()
        self._chunk_bytes = chunk_bytes

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        outcome = super().carry_out(exchange, keep)
        clients, broadcast = len(exchange.clients), exchange.broadcast
        assert broadcast is not None
        steps = len(broadcast.holders)
        assert broadcast.holders <= set(exchange.clients)
        step_bytes = broadcast.step.size_bytes if broadcast.step is not None else 0
        whole_bytes = broadcast.whole.size_bytes
        schema = exchange.reply_schema
        up = Encoding(schema, self._chunk_bytes, exchange.reply_coding("any")).size_bytes if schema is not None else 0
        self.expected.append(
            (
                steps * step_bytes + (clients - steps) * whole_bytes,
                clients * exchange.payload.schema.size_bytes,
                (clients - steps) * whole_bytes,
                clients * up,
                clients * schema.size_bytes if schema is not None else 0,
            )
        )
        self.forms["step"] += steps
        self.forms["whole"] += clients - steps
        return outcome


@on_every_engine
@pytest.mark.parametrize(("algorithm", "forms"), [("previous", {"step": 36, "whole": 4}), ("scaffold", {"step": 8, "whole": 8})])
def test_the_bytes_are_those_of_steps_models_and_codes(
    algorithm: str, forms: Mapping[str, int], engine: EngineUnderTest, tmp_path: Path
) -> None:
    """Three rounds of three exchanges and the delivery; scaffold's one exchange broadcasts more than a model."""
    config = configuration(("up=eden1", "down=int8"), *ALGORITHMS[algorithm])
    proxies: list[Counting] = []

    def around(running: Engine) -> Engine:
        proxies.append(Counting(running, config.transport.chunk_bytes))
        return proxies[0]

    run = Run(engine, config, tmp_path, around=around)
    found = [
        (
            traffic.payload_bytes_down,
            traffic.dense_bytes_down,
            traffic.snapshot_bytes_down,
            traffic.payload_bytes_up,
            traffic.dense_bytes_up,
        )
        for _, traffic in run.traffics()
    ]
    assert found == proxies[0].expected
    assert proxies[0].forms == forms
    total = run.record.traffic
    assert total.payload_bytes_up * 20 < total.dense_bytes_up
    assert total.payload_bytes_down < total.dense_bytes_down
    # What else crosses is headers, receipts and the frames of chunks.
    assert total.wire_bytes_up - total.payload_bytes_up < 1000 * len(found) * 4
    assert total.payload_bytes_down < total.wire_bytes_down < total.payload_bytes_down + 1500 * len(found) * 4


@on_every_engine
def test_the_record_says_what_the_codecs_did(engine: EngineUnderTest, tmp_path: Path) -> None:
    run = Run(engine, configuration(("up=eden2", "down=int8"), *ALGORITHMS["previous"]), tmp_path)
    names = {*CODEC_ERROR.values(), *CODEC_SECONDS.values()}
    for record in run.recorder.exchanges:
        if record.id.name == DELIVER:
            assert names & set(record.metrics) == {CODEC_ERROR["down"], CODEC_SECONDS["down"]}
            continue
        measured = record.id.step < MEASURED_STEPS
        assert names & set(record.metrics) == (names if measured else names - {CODEC_ERROR["up"]})
        assert not measured or 0.1 < record.metrics[CODEC_ERROR["up"]] < 0.9
        first = (record.id.name, record.id.round) == ("local_train", 1)
        assert (record.metrics[CODEC_ERROR["down"]] == 0.0) is first
        assert record.metrics[CODEC_ERROR["down"]] < 0.05
        assert record.metrics[CODEC_SECONDS["up"]] > 0
    for finished in run.recorder.rounds:
        assert names <= set(finished.metrics)


@on_every_engine
@pytest.mark.usefixtures("importable_tests")
def test_buffers_of_a_network_stay_exact(engine: EngineUnderTest, tmp_path: Path) -> None:
    """With a step of lr 0 and no local update kept, only the buffers move: as they would without a codec."""
    network = ("model.name=gated:batch_norm_mlp", "dkd.lr=1e-30", "dkd.optimizer=sgd", "dkd.clip_norm=1e-30", "dkd.start=previous")
    coded_run = Run(engine, configuration(("up=eden1", "down=eden1"), *network), tmp_path / "coded")
    plain_run = Run(REFERENCE, configuration((), *network), tmp_path / "plain")
    buffers = [spec.name for spec in coded_run.schema.specs if not spec.trainable]
    assert len(buffers) == 3
    for name in buffers:
        assert coded_run.record.model[name].equal(plain_run.record.model[name])
    coded_run.check_delivered()


@on_every_engine
def test_a_run_may_limit_norms_of_what_codecs_decode_to(engine: EngineUnderTest, tmp_path: Path) -> None:
    limits = ("aggregation.max_norm.local_train=1e6", "aggregation.max_norm.dkd_step=1e6")
    config = configuration(CODECS["eden"], *ALGORITHMS["average"])
    limited = configuration(CODECS["eden"], *ALGORITHMS["average"], *limits)
    check_alike(Run(engine, limited, tmp_path / "limited"), Run(REFERENCE, config, tmp_path / "free"))


class Scaling(CohortAround):
    """A cohort around another that scales what is sent."""

    def __init__(self, inner: Cohort, factor: float) -> None:
        super().__init__(inner)
        self._factor = factor

    def exchange(self, name: str, payload: Tensors, step: int = 0) -> Tensors:
        moved = payload.replace({name: payload[name] * self._factor for name, spec in payload.schema.by_name.items() if spec.lossy})
        return super().exchange(name, moved if self._factor != 1 else payload, step)


@on_every_engine
@pytest.mark.parametrize("algorithm", ["average", "previous"])
def test_layers_around_the_cohort_see_what_codecs_leave(algorithm: str, engine: EngineUnderTest, tmp_path: Path) -> None:
    """A layer that changes nothing changes no bit; one that changes what was adopted still leaves clients and server alike."""
    config = configuration(CODECS["eden"], *ALGORITHMS[algorithm])
    plain = Run(REFERENCE, config, tmp_path / "plain")
    transparent = Run(engine, config, tmp_path / "transparent", layers=[partial(Scaling, factor=1.0)])
    check_alike(transparent, plain)
    scaling = [Run(each, config, tmp_path / str(each.concurrent), layers=[partial(Scaling, factor=0.5)]) for each in (engine, REFERENCE)]
    check_alike(scaling[0], scaling[1])
    assert scaling[0].sha256 != plain.sha256
    scaling[0].check_delivered()


class FailingOnce(EngineProxy):
    """Loses all clients of one exchange, after it was carried out."""

    def __init__(self, engine: Engine, name: str) -> None:
        super().__init__(engine)
        self._name = name

    def begin(self, exchange: Exchange) -> OpenExchange:
        begun = super().begin(exchange)
        if (exchange.id.round, exchange.id.attempt, exchange.id.name) != (2, 0, self._name):
            return begun
        gone = dict.fromkeys(exchange.clients, Missing(Cause.DISCONNECTED, "not connected"))
        return Changed(begun, lambda outcome: replace(outcome, reduced=None, replies={}, missing=gone))


@on_every_engine
@pytest.mark.parametrize("name", ["local_train", "dkd_step"])
@pytest.mark.parametrize("algorithm", ["average", "previous"])
def test_a_round_that_fails_is_tried_again_with_whole_models(algorithm: str, name: str, engine: EngineUnderTest, tmp_path: Path) -> None:
    config = configuration(CODECS["eden"], *ALGORITHMS[algorithm])
    runs = [Run(each, config, tmp_path / str(each.concurrent), around=partial(FailingOnce, name=name)) for each in (engine, REFERENCE)]
    check_alike(*runs)
    run = runs[0]
    assert [(number, attempt) for number, attempt, _ in run.recorder.failures] == [(2, 0)]
    run.check_delivered()
    again = run.recorder.of("local_train", 2, attempt=1).traffic
    assert again.snapshot_bytes_down == again.payload_bytes_down > 0


@on_every_engine
def test_steps_that_no_codec_encodes_pause_the_run_and_say_so(engine: EngineUnderTest, tmp_path: Path) -> None:
    ruinous = ("dkd.lr=1e25", "dkd.optimizer=sgd", "dkd.start=average", "scheduler.retries=1")
    with pytest.raises(PausedError, match=r"^round 1 dkd_step 1 \(attempt 2\): cannot encode a vector whose norm .*would not help$"):
        Run(engine, configuration(CODECS["eden"], *ruinous), tmp_path)


def test_payloads_agree_over_many_chunks(tmp_path: Path) -> None:
    """Chunks of 4 KiB: the seeds of a payload's chunks, and the places of its codes, are those of both ends."""
    config = configuration(CODECS["eden"], *ALGORITHMS["previous"], "transport.chunk_bytes=4096")
    reference = Run(REFERENCE, config, tmp_path / "reference")
    for name, engine in OTHERS.items():
        run = Run(engine, config, tmp_path / name)
        check_alike(run, reference)
        run.check_delivered()
    one_chunk = Run(REFERENCE, configuration(CODECS["eden"], *ALGORITHMS["previous"]), tmp_path / "one")
    assert one_chunk.sha256 != reference.sha256  # a codec's blocks are those of its chunk


@on_every_engine
def test_a_broadcast_of_many_chunks_is_agreed(engine: EngineUnderTest) -> None:
    schema = Schema([TensorSpec("w", torch.float32, (5000,))])
    exchange = replace(exchange_of("ab", filled(schema, 1), reply_schema=schema), reply_codec=Alternate(), seed=1)
    workers = {client: FakeWorker(lambda task: Reply(task.payload), schema) for client in "ab"}
    plain = replace(exchange, reply_codec=None)
    outcome = agreed(engine, plain, workers, SETTING, model=schema)
    assert outcome.traffic.payload_bytes_up == 2 * schema.size_bytes
    assert Payload(filled(schema, 1), CHUNK_BYTES).num_frames == 20
