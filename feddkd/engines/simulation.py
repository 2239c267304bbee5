"""A whole federation, simulated on one of the engines: what `feddkd run` does."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from feddkd import algorithms
from feddkd.algorithms.base import Algorithm
from feddkd.client.preflight import check_simulation
from feddkd.client.simulated import SimulatedMemberships, Simulation, release_state_dirs, simulated_clients
from feddkd.config import Config
from feddkd.data.datasets import BUILT_IN, info_of, load_test, load_train
from feddkd.data.labels import check_labels, check_partition
from feddkd.data.partitions import class_counts, client_ids, partition
from feddkd.data.seeding import reads_for
from feddkd.engines.client_processes import ClientProcesses
from feddkd.engines.early_processes import EarlyProcesses
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.local_clients import LocalClients
from feddkd.engines.ray import check as check_ray
from feddkd.engines.ray import ray_engine
from feddkd.engines.resolve import resolve
from feddkd.engines.traffic_mark import TRAFFIC_MARK, TrafficMark
from feddkd.errors import StateError
from feddkd.evaluation import evaluate
from feddkd.exchange import Evaluation
from feddkd.models.device import find_device
from feddkd.models.initial import InitialModel, build_initial, warn_of_batch_norm
from feddkd.models.registry import build
from feddkd.scheduler.downlink import check_codecs
from feddkd.scheduler.engine import Engine
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer, RunRecord
from feddkd.scheduler.recovery import Spent, is_finished, new_journal, resume
from feddkd.scheduler.rounds import Evaluator, Extensions, Scheduler
from feddkd.scheduler.rule_book import check_rules
from feddkd.scheduler.state import fold
from feddkd.tensors import Tensors
from feddkd.transport.options import allow_connections, check_connections

EngineName = Literal["grpc", "in-process", "ray"]
LOOPBACK = "127.0.0.1"


def new_run_id() -> str:
    """Return 12 random hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def algorithm_and_model(config: Config) -> tuple[Algorithm, InitialModel]:
    """Build the algorithm and the first model. Raises ConfigError where the configuration does not fit together."""
    algorithm = algorithms.build(config)
    config.check_exchanges(algorithm.exchanges(config))
    initial = build_initial(config)
    algorithms.check_fits(algorithm, initial.model.schema)
    check_codecs(config)
    check_rules(config, algorithm)
    warn_of_batch_norm(initial)
    return algorithm, initial


def make_evaluator(config: Config, initial: InitialModel) -> Evaluator | None:
    """Build what evaluates models on the test split, in the initial network; None without a server's test set.

    Raises:
        ConfigError: the data are not there, or the device cannot be used.
    """
    if not config.data.test_set:
        return None
    examples = load_test(config.data, config.seed, initial.metrics.task)
    device = find_device(config.runtime.device)
    module = initial.module.to(device)

    def evaluate_model(model: Tensors, check: Callable[[], None]) -> Evaluation:
        model.load_into(module)
        with reads_for(f"{config.seed}/test"):  # the same views in every round
            return evaluate(module, examples, device, check, batch_size=config.eval_batch_size, metrics=initial.metrics)

    return evaluate_model


def spent_before(folder: Path) -> Spent | None:
    """Read the bytes that the folder's last process had counted; None if it left no count."""
    marked = TrafficMark.read(folder / TRAFFIC_MARK)
    return Spent(*marked) if marked is not None else None


def engine_of(config: Config, journal: Journal, initial: InitialModel, folder: Path) -> GrpcEngine:
    """Prepare the server of a run, as the process that its journal counts.

    Args:
        folder: of the run: what does not fit into memory goes there, and the mark of the bytes on the wire.
    """
    state = fold(journal.entries, journal.run_id, config.scheduler.quorum)
    mark = None if isinstance(journal, NoJournal) else folder / TRAFFIC_MARK
    engine = GrpcEngine(config, journal.run_id, initial.model.schema, folder, mark=mark, incarnation=state.incarnation, owners=state.owners)
    engine.announce(initial.whole.constants)
    return engine


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation that can begin: what its configuration names is there and fits together.

    Attributes:
        config: resolved.
        initial: the network before round 1.
        class_counts: examples of each class at each client; the clients will deal them in the same way.
        class_names: in the order of the classes' numbers; empty where the data do not say them.
    """

    config: Config
    algorithm: Algorithm
    initial: InitialModel
    evaluator: Evaluator | None
    class_counts: Mapping[str, list[int]]
    class_names: tuple[str, ...] = ()


def prepare(config: Config) -> Federation:
    """Find and check everything that can be wrong before a run begins; nothing is written.

    Raises:
        ConfigError: data, partition, model or algorithm are not as the configuration says.
    """
    config = resolve(config)
    algorithm, initial = algorithm_and_model(config)
    task = initial.metrics.task
    examples = load_train(config.data, config.seed, task)
    info = info_of(config.data, examples, task)
    if config.data.name not in BUILT_IN:
        build(config.model, info, config.seed, task)  # which dtype the inputs have is known only now
    check_partition(config, task, info)
    check_labels(config, task, info, needed_by=algorithms.needs_labels(config))
    check_simulation(config, initial.module, examples, info, initial.metrics)
    counts = _class_counts(config, examples.labels, info.num_classes if initial.metrics.has_one_class else 1)
    return Federation(config, algorithm, initial, make_evaluator(config, initial), counts, examples.class_names)


def run_federation(
    federation: Config | Federation,
    engine_name: EngineName,
    out: Path,
    observers: Observers | Iterable[Observer] = (),
    *,
    resumed: bool = False,
    early: EarlyProcesses | None = None,
) -> RunRecord:
    """Run all rounds with simulated clients on this machine.

    Args:
        federation: what `prepare` returned, or the configuration, which is prepared here. Where observers keep a
            record of the configuration, give them and this function `resolve(config)`.
        out: the journal goes there, and below it, into `clients`, the clients' state directories and configuration.
        resumed: go on with the run whose journal is there.
        early: client processes that were started before, for the engine over gRPC.

    Raises:
        ConfigError: data, partition, model or algorithm are not as the configuration says.
        RunError: too few clients were there or answered, or a file cannot be written.
    """
    if isinstance(federation, Config):
        federation = prepare(federation)
    if engine_name == "ray":
        check_ray(federation.config)
    config, initial, told = federation.config, federation.initial, Observers.of(observers)
    journal = resume(out, config, spent_before(out)) if resumed else new_journal(out, new_run_id(), config)
    with contextlib.closing(journal):
        told.tell(lambda observer: observer.partitioned(federation.class_counts))
        with _engine(engine_name, config, journal, initial, out, early) as engine:
            if isinstance(engine, GrpcEngine):
                engine.give_class_names(federation.class_names, "the simulation")
            scheduler = Scheduler(
                config,
                federation.algorithm,
                engine,
                run_id=journal.run_id,
                observers=told,
                evaluator=federation.evaluator,
                extensions=Extensions(journal=journal, whole=initial.whole, metrics=initial.metrics),
            )
            return scheduler.run(initial.model)


def _class_counts(config: Config, labels: Tensor, classes: int) -> dict[str, list[int]]:
    """Examples of each class at each client; the clients will deal them in the same way.

    Raises:
        PartitionError: it cannot be done, which is better said here, at once.
    """
    parts = partition(config.partition, labels, classes, config.seed)
    return dict(zip(client_ids(len(parts)), class_counts(parts, labels, classes).tolist(), strict=True))


@contextlib.contextmanager
def _engine(
    name: EngineName, config: Config, journal: Journal, initial: InitialModel, out: Path, early: EarlyProcesses | None
) -> Iterator[Engine]:
    state = out / "clients"
    if is_finished(journal.entries):  # nobody is needed but to write the record again
        with InProcessEngine({}, config.transport.chunk_bytes) as empty:
            yield empty
        return
    if name == "in-process":
        with _in_process(config, state, out) as local:
            yield local
        return
    if name == "ray":
        _write_config(config, state)
        with ray_engine(config, state, out) as hosted:
            yield hosted
        return
    check_connections(config.partition.clients, "partition.clients")
    engine = engine_of(config, journal, initial, out)
    port = engine.start(LOOPBACK, 0)
    processes = ClientProcesses(config, f"{LOOPBACK}:{port}", _write_config(config, state), state, engine, early)
    try:
        yield engine
    finally:
        processes.stopping = True
        engine.finish(completed=False, reason="the run failed")
        processes.wait()


@contextlib.contextmanager
def _in_process(config: Config, state: Path, out: Path) -> Iterator[InProcessEngine]:
    allow_connections()  # a client whose worker stays has a lock
    simulation = Simulation(config, state)
    simulation.try_one(0)
    memberships = SimulatedMemberships(config, state, simulation.ids)
    clients = LocalClients(simulated_clients(simulation), memberships, most_held=simulation.most_kept)
    transport = config.transport
    try:
        with InProcessEngine(clients, transport.chunk_bytes, transport.staging_bytes, out, holdout=config.data.holdout) as engine:
            yield engine
    finally:
        release_state_dirs(state, simulation.ids)


def _write_config(config: Config, state: Path) -> Path:
    """Write what client processes read into the folder of their state. Raises StateError."""
    file = state / "config.toml"
    try:
        state.mkdir(parents=True, exist_ok=True)
        file.write_text(config.to_toml(), encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {file}: {error.strerror}") from error
    return file
