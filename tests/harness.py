"""A live server in this process, with clients in threads, and a client that speaks the wire protocol by hand."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import torch
from torch import Tensor

from feddkd import algorithms
from feddkd.aggregator.rule import Rows, Rule
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.client.agent import Agent, Farewell
from feddkd.client.constants import HeldConstants
from feddkd.client.simulated import SimulatedMemberships, Simulation, simulated_clients, simulated_workers
from feddkd.client.work import TaskRunner
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.local_clients import LocalClients
from feddkd.engines.simulation import LOOPBACK
from feddkd.exchange import Closing, ExampleCounts, Exchange, ExchangeId, Outcome, Reply, Task
from feddkd.models.initial import build_initial
from feddkd.scheduler.engine import ClientStates, Engine, Keep, OpenExchange
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.records import ExchangeRecord, Observer, RoundRecord, RunRecord
from feddkd.scheduler.rounds import CohortLayer, Extensions, Scheduler
from feddkd.tensors import Schema, Segment, Tensors, TensorSpec
from feddkd.traffic import Traffic
from feddkd.transport.frames import SERVICE, decode_chunk, is_chunk
from feddkd.transport.messages import hello_message
from feddkd.transport.payload import Assembly, Payload, schema_from_message
from feddkd.transport.pb import federation_pb2 as pb

_T = TypeVar("_T")

RUN_ID = "testrun"

SCHEMA = Schema(
    [
        TensorSpec("layer.weight", torch.float32, (4, 5)),
        TensorSpec("layer.bias", torch.float32, (5,)),
        TensorSpec("norm.count", torch.int64, (), trainable=False),
        TensorSpec("mask", torch.bool, (3,), trainable=False),
    ]
)


def small_config(*overrides: str) -> Config:
    """A federation on digits that takes a second."""
    return Config.load(
        overrides=[
            "rounds=2",
            "partition.clients=4",
            "partition.labels=3",
            "dkd.steps=2",
            "training.epochs=1",
            "runtime.client_processes=2",
            "scheduler.reconnect_grace_s=0",
            *overrides,
        ]
    )


def filled(schema: Schema, seed: int) -> Tensors:
    """Tensors of small random values."""
    generator = torch.Generator().manual_seed(seed)
    out = Tensors(schema)
    for tensor in out.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 3)
    return out


def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; the test's own time limit ends the wait. Only where nothing tells us when."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.005)


class Recorder(Observer):
    """Keeps everything that a run tells."""

    essential = True  # or a failed assertion of a subclass would only be logged

    def __init__(self) -> None:
        self.exchanges: list[ExchangeRecord] = []
        self.rounds: list[RoundRecord] = []
        self.failures: list[tuple[int, int, str]] = []
        self.pauses: list[str] = []
        self.models: list[str] = []
        self.run: RunRecord | None = None

    def exchange_done(self, record: ExchangeRecord) -> None:
        self.exchanges.append(record)

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self.models.append(model.sha256())

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self.failures.append((round_number, attempt, reason))

    def paused(self, reason: str) -> None:
        self.pauses.append(reason)

    def run_done(self, record: RunRecord) -> None:
        self.run = record

    def of(self, name: str, round_number: int = 1, step: int = 0, attempt: int = 0) -> ExchangeRecord:
        """The record of one exchange."""
        (found,) = (
            record
            for record in self.exchanges
            if (record.id.name, record.id.round, record.id.step, record.id.attempt) == (name, round_number, step, attempt)
        )
        return found


class FakeWorker(Worker):
    """Answers every exchange with what a function makes of the task; has no data and no model."""

    def __init__(self, respond: Callable[[Task], Reply], schema: Schema = SCHEMA, examples: int = 1) -> None:
        self._respond = respond
        self._model_schema = schema
        self._examples = examples
        self._constants = HeldConstants()

    @property
    def counts(self) -> ExampleCounts:
        return ExampleCounts(self._examples)

    @property
    def class_names(self) -> tuple[str, ...]:
        return ()

    def broadcast_schema(self, exchange: str) -> Schema:
        return self._model_schema

    def carry_out(self, task: Task) -> Reply:
        task.check_cancelled()
        return self._respond(task)


def answering(contribution: Tensors, examples: int = 1) -> FakeWorker:
    """Always contributes the same."""
    return FakeWorker(lambda _: Reply(contribution, loss=0.5), contribution.schema, examples)


class Server:
    """A live GrpcEngine, and the clients in this process that talk to it."""

    def __init__(self, engine: GrpcEngine) -> None:
        self.engine = engine
        self.address = f"{LOOPBACK}:{engine.start(LOOPBACK, 0)}"
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="test")
        self._agents: list[Future[Farewell]] = []

    def agent(self, client: str, worker: TaskRunner, executor: Executor | None = None) -> Future[Farewell]:
        """Take part as this client, until the farewell."""
        taking_part = start_agent(Agent(self.address, client, worker, executor or self._threads, retry_for_s=60))
        self._agents.append(taking_part)
        return taking_part

    def background(self, work: Callable[[], _T]) -> Future[_T]:
        return self._threads.submit(work)

    def wait_for(self, *clients: str) -> None:
        """Return once exactly these clients are connected."""
        until(lambda: set(self.engine.clients()) == set(clients))

    def begin(self, exchange: Exchange) -> Future[Outcome]:
        """Carry out an exchange in the background."""
        return self.background(lambda: self.engine.carry_out(exchange))

    def close(self) -> None:
        self.engine.abort("the test is over")  # where a test has failed, whoever waits for clients would wait for ever
        self.engine.finish(True, "the test is over")
        self._threads.shutdown(cancel_futures=True)
        for agent in self._agents:
            assert agent.cancelled() or agent.result().completed


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all clients of all tests: gRPC's poller loses events of loops that are closed beside others."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="test-clients", daemon=True).start()
    return loop


def start_agent(agent: Agent) -> Future[Farewell]:
    return asyncio.run_coroutine_threadsafe(agent.run(), _loop())


@contextmanager
def serving(config: Config | None = None, schema: Schema = SCHEMA, engine: GrpcEngine | None = None) -> Iterator[Server]:
    server = Server(engine or GrpcEngine(config or small_config(), RUN_ID, schema))
    try:
        yield server
    finally:
        server.close()


def exchange_of(
    clients: Sequence[str] | Mapping[str, float],
    payload: Tensors,
    *,
    reply_schema: Schema | None = SCHEMA,
    round_number: int = 1,
    name: str = "local_train",
    closing: Closing = Closing(60.0),  # noqa: B008
    rule: Rule = WeightedMean(),  # noqa: B008
    max_norm: float | None = None,
    evaluate: bool = False,
) -> Exchange:
    """An exchange of any kind; its clients all weigh the same unless the weights are given."""
    weights = clients if isinstance(clients, Mapping) else dict.fromkeys(sorted(clients), 1.0)
    exchange = ExchangeId(RUN_ID, round_number, 0, name, 0)
    return Exchange(exchange, weights, payload, reply_schema, rule, closing, evaluate, max_norm)


class OnePass:
    """What a reduction has besides `reduce` that reads its contributions once and compares them with nothing."""

    def survey(self, block: Segment, rows: Rows) -> None:
        raise AssertionError

    def repeats(self) -> bool:
        return False

    def ratios(self) -> Sequence[float]:
        return ()


class OrderSensitiveMean(OnePass):
    """A mean accumulated in float32: unlike the real one, its bits show in which order the clients were added."""

    passes = 1

    def start(self, clients: Sequence[str]) -> Self:
        return self

    def reduce(self, block: Segment, rows: Rows, out: Tensor) -> None:
        total, weights = torch.zeros(len(out)), 0.0
        for elements, weight in rows:
            total += elements.float() * weight
            weights += weight
        out.copy_(total / weights)


def reasons(outcome: Outcome) -> dict[str, str]:
    """Why each client that did not reply did not, in client order."""
    return {client: missing.reason for client, missing in outcome.missing.items()}


def mean_of(contributions: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensors:
    """The weighted mean, straight from its definition."""
    schema = next(iter(contributions.values())).schema
    out = Tensors(schema)
    for segment in schema.segments:
        rows = [(contributions[client].elements(segment), weights[client]) for client in sorted(contributions)]
        WeightedMean().start().reduce(segment, rows, out.elements(segment))
    return out


def run_in_threads(
    config: Config,
    out: Path,
    observers: Sequence[Observer] = (),
    *,
    journal: Journal | None = None,
    run_id: str = RUN_ID,
    engine: GrpcEngine | None = None,
    workers: Mapping[str, Worker] | None = None,
    rule: Rule | None = None,
    layers: Sequence[CohortLayer] = (),
    around: Callable[[Engine], Engine] = lambda engine: engine,
) -> RunRecord:
    """A whole federation over gRPC, every client in this process."""
    initial = build_initial(config)
    schema = initial.model.schema
    with serving(config, schema, engine=engine or GrpcEngine(config, run_id, schema)) as server:
        server.engine.announce(initial.whole.constants)
        # As in a client process, one thread computes for all of them, unless the test needs them to wait for each other.
        executor = ThreadPoolExecutor(max_workers=1) if workers is None else None
        workers = workers or simulated_workers(config, out / "clients")
        for client, worker in workers.items():
            server.agent(client, worker, executor)
        server.wait_for(*workers)
        algorithm = algorithms.build(config)
        scheduler = Scheduler(
            config,
            algorithm,
            around(server.engine),
            run_id=run_id,
            observers=observers,
            extensions=Extensions(rule, layers, journal or NoJournal(), whole=initial.whole, metrics=initial.metrics),
        )
        return scheduler.run(initial.model)


class HandClient:
    """A client that puts together every message by hand, right or wrong."""

    def __init__(
        self,
        address: str,
        client_id: str = "hand",
        options: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Args:
        options: of the gRPC channel.
        """
        self.client_id = client_id
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, options=[*own, *options])
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call: Any = None  # what stream_stream returns has no name
        self.schema = Schema([])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hang_up()

    def join(
        self,
        examples: int = 1,
        version: int = 1,
        instance: str = "hand",
        software: str = "",
    ) -> pb.JoinResponse:
        request = pb.JoinRequest(
            protocol_version=version,
            client_id=self.client_id,
            num_examples=examples,
            instance_id=instance,
            software_version=software,
        )
        call = self._channel.unary_unary(f"/{SERVICE}/Join", pb.JoinRequest.SerializeToString, pb.JoinResponse.FromString)
        response: pb.JoinResponse = call(request, timeout=60)
        self.schema = schema_from_message(response.manifest.model)
        return response

    def open(self, token: str) -> Self:
        return self.open_with(hello_message(token))

    def open_with(self, first: bytes | None) -> Self:
        """Open the stream with any bytes as its first message, or none."""
        self._outgoing = queue.SimpleQueue()
        self._outgoing.put(first)
        participate: Any = self._channel.stream_stream(f"/{SERVICE}/Participate")
        self._call = participate(iter(self._outgoing.get, None))
        return self

    def connect(self) -> Self:
        return self.open(self.join().session_token)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._outgoing.put(message)

    def half_close(self) -> None:
        """End our side of the stream."""
        self._outgoing.put(None)

    def hang_up(self) -> None:
        """Close the connection, as when a process dies."""
        if self._call is not None:
            self._call.cancel()
        self._outgoing.put(None)
        self._channel.close()

    def receive(self) -> bytes:
        """The server's next message. Raises grpc.RpcError when it ends the stream with an error."""
        message: bytes = next(self._call)
        return message

    def response(self) -> pb.ParticipateResponse:
        """The server's next message that is not a chunk."""
        while is_chunk(message := self.receive()):
            pass
        return pb.ParticipateResponse.FromString(message)

    def work(self) -> tuple[pb.Work, Tensors]:
        """The next exchange, with its whole broadcast."""
        while (response := self.response()).WhichOneof("message") != "work":
            pass
        assembly = Assembly(response.work.payload, self.schema)
        while not assembly.complete:
            assembly.add(decode_chunk(self.receive()))
        return response.work, assembly.tensors

    def receipt(self) -> pb.Receipt:
        while (response := self.response()).WhichOneof("message") != "receipt":
            pass
        return response.receipt

    def status(self) -> grpc.StatusCode:
        """How the server ends the stream."""
        with contextlib.suppress(grpc.RpcError):
            for _ in self._call:
                pass
        code: grpc.StatusCode = self._call.code()
        return code

    def details(self) -> str:
        """What the server says of the end of the stream."""
        details: str = self._call.details()
        return details


def answer_frames(work: pb.Work, contribution: Tensors, chunk_bytes: int | None = None, **numbers: float) -> list[bytes]:
    """An honest answer: the header, then its chunks."""
    payload = Payload(contribution, chunk_bytes or work.payload.chunk_bytes)
    answer = pb.Answer(id=work.id, payload=payload.header, **numbers)  # type: ignore[arg-type]
    return [pb.ParticipateRequest(answer=answer).SerializeToString(), *payload.frames()]


class Changed:
    """An open exchange whose outcome is changed."""

    def __init__(self, begun: OpenExchange, change: Callable[[Outcome], Outcome]) -> None:
        self._begun = begun
        self._change = change

    def outcome(self) -> Outcome:
        return self._change(self._begun.outcome())

    def acknowledge(self) -> None:
        self._begun.acknowledge()


class EngineProxy(Engine):
    """Passes everything on to another engine; override what should go wrong."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.carried_out: list[ExchangeId] = []

    def clients(self) -> Mapping[str, ExampleCounts]:
        return self.engine.clients()

    def wait_for_clients(self, count: int, timeout_s: float | None) -> bool:
        return self.engine.wait_for_clients(count, timeout_s)

    def wait_for(self, clients: Collection[str], timeout_s: float) -> bool:
        return self.engine.wait_for(clients, timeout_s)

    def remember(self, counted: Mapping[str, ExchangeId]) -> None:
        self.engine.remember(counted)

    def last_heard(self) -> Mapping[str, float]:
        return self.engine.last_heard()

    def waiting_for(self) -> list[str]:
        return self.engine.waiting_for()

    def begin(self, exchange: Exchange) -> OpenExchange:
        return self.engine.begin(exchange)

    def carry_out(self, exchange: Exchange, keep: Keep | None = None) -> Outcome:
        self.carried_out.append(exchange.id)
        return super().carry_out(exchange, keep)

    def abort(self, reason: str) -> None:
        self.engine.abort(reason)

    def check_aborted(self) -> None:
        self.engine.check_aborted()

    def other_traffic(self) -> Traffic:
        return self.engine.other_traffic()

    def states(self) -> ClientStates:
        return self.engine.states()

    def finish(self, completed: bool, reason: str, paused: bool = False) -> None:
        self.engine.finish(completed, reason, paused)


def short_of_memory(config: Config, state: Path) -> LocalClients:
    """The clients of a simulation that has room for one of them at a time: the others are in their state directories."""
    simulation = Simulation(config, state, kept=1)
    return LocalClients(simulated_clients(simulation), SimulatedMemberships(config, state, simulation.ids), most_held=simulation.most_kept)


def run_in_process(
    config: Config,
    out: Path,
    observers: Sequence[Observer] = (),
    *,
    journal: Journal | None = None,
    run_id: str = RUN_ID,
    workers: Mapping[str, Worker] | None = None,
    rule: Rule | None = None,
    layers: Sequence[CohortLayer] = (),
    around: Callable[[Engine], Engine] = lambda engine: engine,
) -> RunRecord:
    """A whole federation on the reference engine."""
    initial, transport = build_initial(config), config.transport
    clients = LocalClients(workers) if workers is not None else short_of_memory(config, out / "clients")
    with InProcessEngine(clients, transport.chunk_bytes, transport.staging_bytes, holdout=config.data.holdout) as engine:
        scheduler = Scheduler(
            config,
            algorithms.build(config),
            around(engine),
            run_id=run_id,
            observers=observers,
            extensions=Extensions(rule, layers, journal or NoJournal(), whole=initial.whole, metrics=initial.metrics),
        )
        return scheduler.run(initial.model)
