"""Serves a new run, the run that a state directory holds, or the model of a finished one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from feddkd.cli.observing import observe
from feddkd.cli.output import error_console, note
from feddkd.cli.publishing import Publishing
from feddkd.cli.stopping import StopSignals
from feddkd.config import Config
from feddkd.data.datasets import describe
from feddkd.engines.grpc import GrpcEngine
from feddkd.engines.simulation import algorithm_and_model, engine_of, make_evaluator, new_run_id, spent_before
from feddkd.engines.traffic_mark import TRAFFIC_MARK
from feddkd.errors import ConfigError, FedDKDError, StateError
from feddkd.imports import named, one_line
from feddkd.models.initial import InitialModel
from feddkd.observability.audit import AUDIT, AuditLog
from feddkd.observability.status_file import StatusFile
from feddkd.scheduler.journal import Journal, NoJournal
from feddkd.scheduler.journal_lines import has_journal
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import RunRecord
from feddkd.scheduler.recovery import is_finished, new_journal, resume
from feddkd.scheduler.rounds import Extensions, Scheduler
from feddkd.scheduler.server_state import ServerState
from feddkd.tasks.chosen import task_of
from feddkd.transport.server_security import ServerSecurity

logger = logging.getLogger(__name__)


WHAT_NEXT = "--linger SECONDS serves its model to clients that were away, more rounds extend it, --new begins another run"


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server can be reached.

    Attributes:
        security: what clients have to show; without an audit log.
        publishing: where others can watch.
    """

    host: str
    port: int
    security: ServerSecurity
    publishing: Publishing


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
    algorithm, initial = algorithm_and_model(config)
    evaluator = make_evaluator(config, initial)
    with _opened(state, config, new=new) as served:
        folder = out or served.folder
        if is_finished(served.journal.entries):
            note(error_console(), f"run {served.journal.run_id} is finished, its record is in {folder}: {WHAT_NEXT}")
        with (
            AuditLog(state.path / AUDIT, served.journal.run_id) as audit,
            _listening(config, served, initial, listening, state, audit) as engine,
            _observed(config, served, folder, listening, engine) as observers,
        ):
            scheduler = Scheduler(
                config,
                algorithm,
                engine,
                run_id=served.journal.run_id,
                observers=observers,
                evaluator=evaluator,
                extensions=Extensions(journal=served.journal, linger_s=linger_s, whole=initial.whole, metrics=initial.metrics),
            )
            return scheduler.run(initial.model), folder


@contextlib.contextmanager
def _observed(config: Config, served: Served, folder: Path, listening: Listening, engine: GrpcEngine) -> Iterator[Observers]:
    """Keep the record of the run, and let signals stop it."""
    is_kept = not isinstance(served.journal, NoJournal)
    signals = StopSignals(error_console(), folder, _command() if is_kept else "")
    signals.engine_ready(engine)  # at once: clients are to hear that the run is paused
    status = StatusFile(served.folder, f"cd {shlex.quote(str(Path.cwd()))} && {_command()}") if is_kept else None
    with (
        signals.handled(),
        observe(
            config,
            folder,
            listening.publishing,
            was_stopped=lambda: bool(signals.reason),
            again=served.is_resumed,
            run_id=served.journal.run_id,
            status=status,
        ) as observers,
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
                if journal.run_id != last.run_id:
                    raise StateError(f"{folder} holds the journal of run {journal.run_id}, not of {last.run_id} as {state.path} says")
                yield Served(journal, folder, is_resumed=True)
            return
        if last.status != "completed":
            logger.warning("run %s did not finish and left no journal: a new one begins", last.run_id)
    run_id = new_run_id()
    folder = state.path / run_id
    try:
        with contextlib.closing(new_journal(folder, run_id, config)) as journal:
            yield Served(journal, folder, is_resumed=False)
    finally:
        with contextlib.suppress(OSError):  # nobody has heard of a run that left nothing
            if not has_journal(folder):
                (folder / TRAFFIC_MARK).unlink(missing_ok=True)
            folder.rmdir()


@contextlib.contextmanager
def _listening(
    config: Config, served: Served, initial: InitialModel, listening: Listening, state: ServerState, audit: AuditLog
) -> Iterator[GrpcEngine]:
    """Listen for clients, and write down how the run stands when that ends."""
    run_id = served.journal.run_id
    engine = engine_of(config, served.journal, initial, served.folder)
    bound = engine.start(listening.host, listening.port, dataclasses.replace(listening.security, audit=audit))
    was_finished = is_finished(served.journal.entries)
    status: str = "failed"
    paused, reason = False, "the server stopped"
    try:
        state.mark(run_id, "running")
        note(error_console(), f"listening on {listening.host}:{bound}, waiting for {config.scheduler.starting_clients} clients")
        yield engine
        status = "completed"
    except BaseException as error:  # whatever it was: with a journal, the same command goes on
        paused, reason = not isinstance(served.journal, NoJournal), str(error) if isinstance(error, FedDKDError) else one_line(error)
        raise
    finally:
        # The farewell first: clients must not wait for a server whose disk is full.
        engine.finish(completed=status == "completed", reason=reason, paused=paused)
        state.mark(run_id, "completed" if was_finished or status == "completed" else "paused" if paused else "failed")


def _command() -> str:
    """How this process was started, without what would begin another run."""
    return shlex.join(["feddkd", *(word for word in sys.argv[1:] if word != "--new")])


def refuse_teachers(config: Config) -> None:
    """Check that the server's file names no network of a site's own. Raises ConfigError."""
    if config.teacher.own:
        raise ConfigError(
            f"{named('teacher.model', config.teacher.own[0])}: a server trains nothing and decides no site's network; "
            "each site names its own in [teacher] of its file"
        )


def with_shapes(config: Config) -> Config:
    """Write the data's shape into the configuration, so that clients need not read the server's data to learn it."""
    info = describe(config.data, task_of(config))
    return config.model_copy(update={"data": config.data.model_copy(update=info.keys)})
