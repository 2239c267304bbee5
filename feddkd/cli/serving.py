"""Serves a new run, the run that a state directory holds, or the model of a finished one."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from feddkd import algorithms
from feddkd.aggregator.weighted_mean import WeightedMean
from feddkd.cli.observing import observe
from feddkd.cli.output import error_console, note
from feddkd.cli.stopping import StopSignals
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import engine_of, initial_model, make_evaluator, new_run_id, spent_before
from feddkd.errors import StateError, StoppedError
from feddkd.exchange import DELIVER, DELIVER_KIND, ExchangeId
from feddkd.observability.status_file import StatusFile
from feddkd.scheduler.downlink import Downlink, check_codecs
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.journal_lines import has_journal
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.plan import ExchangePlan
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.recovery import is_finished, new_journal, resume
from feddkd.scheduler.rounds import Extensions, Scheduler
from feddkd.scheduler.server_state import ServerState
from feddkd.tensors import Schema

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server can be reached.

    Attributes:
        credentials: None for plaintext.
        metrics_port: None for no metrics.
    """

    host: str
    port: int
    credentials: grpc.ServerCredentials | None
    metrics_port: int | None
    metrics_host: str


@dataclass(frozen=True, slots=True)
class Served:
    """The run that a server goes on with, or begins.

    Attributes:
        folder: of its journal, below the state directory.
        is_resumed: whether another process began it.
    """

    journal: Journal
    folder: Path
    is_resumed: bool

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are done and the model was delivered."""
        return is_finished(self.journal.entries)


def serve(
    config: Config, state: ServerState, listening: Listening, *, new: bool, linger_s: float, out: Path | None
) -> tuple[RunRecord, Path]:
    """Take a run to its end.

    Args:
        new: begin another run, whatever the state directory holds.
        linger_s: seconds to stay for clients that were away for the final model.
        out: record of the run; None for its folder below the state directory.

    Returns:
        What the run came to, and the folder of its record.

    Raises:
        ConfigError: the configuration does not fit together.
        RunError: the run failed; StoppedError: it was stopped and can go on.
        AddressInUseError: the port is taken.
    """
    algorithm = algorithms.build(config)
    config.check_exchanges(algorithm.exchanges(config))
    model, evaluator = initial_model(config), make_evaluator(config)
    algorithms.check_fits(algorithm, model.schema)
    check_codecs(config)

    def run(served: Served, engine: GrpcEngine, observers: Observers) -> RunRecord:
        extensions = Extensions(journal=served.journal)
        run_id = served.journal.run_id
        return Scheduler(config, algorithm, engine, run_id=run_id, observers=observers, evaluator=evaluator, extensions=extensions).run(
            model
        )

    with _opened(state, config, new=new) as served:
        folder, was_finished = out or served.folder, served.is_finished
        with _listening(config, served, model.schema, listening, state) as engine:
            with _observed(config, served, folder, listening) as observers:
                record = run(served, engine, observers)
            if was_finished:
                deliver_again(engine, config, record, linger_s)
        if not was_finished and record.not_delivered and linger_s > 0:
            with _listening(config, served, model.schema, listening, state) as engine:
                deliver_again(engine, config, record, linger_s)
    return record, folder


@contextlib.contextmanager
def _observed(config: Config, served: Served, folder: Path, listening: Listening) -> Iterator[Observers]:
    """Keep the record of the run, and let signals stop it."""
    signals = StopSignals()
    is_kept = not isinstance(served.journal, NoJournal)
    status = StatusFile(served.folder, _command()) if is_kept else None
    with (
        signals.handled("start the same command again" if is_kept else None),
        observe(config, folder, listening.metrics_port, listening.metrics_host, again=served.is_resumed, status=status) as observers,
    ):
        observers.add(signals)
        yield observers


@contextlib.contextmanager
def _opened(state: ServerState, config: Config, *, new: bool) -> Iterator[Served]:
    """Go on with the run that the state directory holds, or begin one. Raises StateError."""
    last = state.last_run
    if last is not None and not new:
        folder = state.path / last.run_id
        if has_journal(folder):
            with contextlib.closing(resume(folder, config, spent_before(folder))) as journal:
                yield Served(journal, folder, is_resumed=True)
            return
        if last.status != "completed":
            logger.warning("run %s did not finish and left no journal: a new one begins", last.run_id)
    run_id = new_run_id()
    folder = state.path / run_id
    with contextlib.closing(new_journal(folder, run_id, config)) as journal:
        yield Served(journal, folder, is_resumed=False)


@contextlib.contextmanager
def _listening(config: Config, served: Served, schema: Schema, listening: Listening, state: ServerState) -> Iterator[GrpcEngine]:
    """Listen for clients, and write down how the run stands when that ends."""
    run_id = served.journal.run_id
    engine = engine_of(config, served.journal, schema, served.folder)
    try:
        bound = engine.start(listening.host, listening.port, listening.credentials)
    except BaseException:
        if not served.is_resumed:
            shutil.rmtree(served.folder, ignore_errors=True)  # nobody has heard of this run
        raise
    status: str = "failed"
    paused, reason = False, "the server stopped"
    try:
        state.mark(run_id, "running")
        note(error_console(), f"listening on {listening.host}:{bound}, waiting for {config.scheduler.starting_clients} clients")
        yield engine
        status = "completed"
    except StoppedError as error:
        paused, reason = not isinstance(served.journal, NoJournal), str(error)
        raise
    except StateError as error:  # a full disk, say: once there is room, the run can go on
        paused, reason = not isinstance(served.journal, NoJournal), str(error)
        raise
    finally:
        # The farewell first: clients must not wait for a server whose disk is full.
        engine.finish(completed=status == "completed", reason=reason, paused=paused)
        state.mark(run_id, "completed" if status == "completed" else "paused" if paused else "failed")


def deliver_again(engine: GrpcEngine, config: Config, record: RunRecord, linger_s: float) -> set[str]:
    """Give the model of a finished run to clients that come within `linger_s` seconds.

    Ends early when every client that missed it has it.

    Returns:
        The clients that it was delivered to.
    """
    missed, delivered = set(record.not_delivered), set[str]()
    until = time.monotonic() + linger_s
    plan = ExchangePlan(config, {DELIVER: DELIVER_KIND}, record.model.schema, WeightedMean(), Downlink(config))
    attempt = 0
    while not missed or not missed <= delivered:
        clients = [client for client in engine.clients() if client not in delivered]
        if clients:
            attempt += 1
            identity = ExchangeId(record.run_id, record.rounds, attempt, DELIVER, 0)
            exchange = plan.describe(identity, dict.fromkeys(clients, 1.0), record.model, evaluate=False)
            delivered |= set(engine.carry_out(exchange).replies)
            continue
        left_s = until - time.monotonic()
        if left_s <= 0 or not engine.wait_for_clients(len(engine.clients()) + 1, left_s):
            break
    return delivered


def _command() -> str:
    """How this process was started, without what would begin another run."""
    return shlex.join(["feddkd", *(word for word in sys.argv[1:] if word != "--new")])


def with_shapes(config: Config) -> Config:
    """Write the data's shape into the configuration, so that clients need not read the server's data to learn it."""
    info = describe(config.data)
    shapes = {"input_shape": info.input_shape, "num_classes": info.num_classes}
    return config.model_copy(update={"data": config.data.model_copy(update=shapes)})
