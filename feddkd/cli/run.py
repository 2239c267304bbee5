"""`feddkd run`: a whole federation on this machine."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feddkd.cli.endpoints import Endpoints, Port
from feddkd.cli.interruptions import interruptible
from feddkd.cli.log_format import LogFormat
from feddkd.cli.logs import start_log
from feddkd.cli.options import (
    METRICS_HOST,
    CheckOnly,
    ConfigFile,
    Json,
    LiveHost,
    LivePort,
    LogFile,
    LogFormatOption,
    MetricsHost,
    MetricsLinger,
    MetricsPort,
    MetricsTextfile,
    Overrides,
    Trace,
    Track,
    Verbose,
    WithReport,
)
from feddkd.cli.output import LINE_LETTERS, announce, error_console, note
from feddkd.cli.signals import import_torch
from feddkd.cli.summary import finish_with_summary
from feddkd.config import Config, PartitionConfig, RuntimeConfig, read_tables
from feddkd.engines.early_processes import EarlyProcesses, early_processes
from feddkd.errors import ConfigError
from feddkd.observability.new_folder import RUNS, new_folder
from feddkd.observability.trackers.tracker import check_trackers
from feddkd.text import printable

if TYPE_CHECKING:
    from feddkd.cli.publishing import Publishing

BUILT_IN = "the built-in example"
DEFAULT_ALGORITHM = "feddkd"


class EngineChoice(StrEnum):
    """How exchanges are carried out."""

    GRPC = "grpc"
    IN_PROCESS = "in-process"
    RAY = "ray"


Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write the record there. Default: `runs/ALGORITHM-TIME`.", show_default=False),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="DIR", help="Go on with the run whose record is there.", show_default=False),
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", metavar="N", help="Run so many rounds in all; with `--resume`, extends a run.", show_default=False)
]
Engine = Annotated[
    EngineChoice,
    typer.Option(
        metavar="ENGINE",
        help="`grpc`: a server and client processes. `in-process`: all in one process, the same models. `ray`: the same models, "
        "computed by processes on a Ray cluster or on this machine.",
    ),
]


def run(
    config: ConfigFile = None,
    override: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    rounds: Rounds = None,
    engine: Engine = EngineChoice.GRPC,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = METRICS_HOST,
    metrics_linger: MetricsLinger = 0.0,
    metrics_textfile: MetricsTextfile = None,
    live_port: LivePort = None,
    live_host: LiveHost = METRICS_HOST,
    track: Track = None,
    trace: Trace = None,
    report: WithReport = True,
    as_json: Json = False,
    check: CheckOnly = False,
    log_format: LogFormatOption = LogFormat.TEXT,
    log_file: LogFile = None,
    _verbose: Verbose = False,
) -> None:
    """Run a whole federation on this machine.

    Without CONFIG: scikit-learn's digits, ten clients with one class each, FedDKD.

    ```console
    feddkd run
    feddkd run -o algorithm.name=fedavg -o rounds=5 --out runs/fedavg
    feddkd run examples/mnist_one_class.toml -o data.root=data/mnist
    feddkd run --resume runs/fedavg
    ```
    """
    start_log(log_format, log_file)
    endpoints = Endpoints(
        metrics=Port(metrics_port, metrics_host),
        live=Port(live_port, live_host),
        linger_s=metrics_linger,
        metrics_textfile=metrics_textfile,
        trackers=tuple(track or ()),
        traces=trace is not None,
    )
    if resume is not None and (config is not None or out is not None):
        raise ConfigError("--resume DIR takes configuration and record from DIR: give neither CONFIG nor --out")
    check_trackers(track or ())
    overrides = [*(override or ()), *([f"rounds={rounds}"] if rounds is not None else [])]
    tables = {} if resume else read_tables(config, overrides)
    place = contextlib.nullcontext(resume) if resume else new_folder(out, _algorithm(tables))
    announce("run", f"going on with {resume}" if resume is not None else str(config or BUILT_IN), overrides)
    if check:
        from feddkd.cli.check import check_run
        from feddkd.scheduler.recovery import check_resumable

        loaded = _loaded(config, overrides, resume)
        if resume is not None:
            check_resumable(resume, loaded)
        check_run(loaded, resume or out or RUNS, engine.value, endpoints.ports)
        return
    with place as folder, early_processes(*_client_processes(engine, tables)) as early:
        import_torch()
        loaded = _loaded(config, overrides, resume)
        left = f"the run did not go on; its record is in {folder}/" if resume else "nothing was started"
        go_on = shlex.join(["feddkd", "run", "--resume", str(folder)]) if resume else ""
        from feddkd.cli.publishing import Publishing

        with Publishing(endpoints) as publishing:
            with interruptible(left, go_on):
                summary = _carry_out(loaded, folder, engine, publishing, early, resumed=resume is not None)
            finish_with_summary(summary, folder, report=report, as_json=as_json)


def _carry_out(
    loaded: Config, folder: Path, engine: EngineChoice, publishing: Publishing, early: EarlyProcesses, *, resumed: bool
) -> dict[str, Any]:
    """Run all rounds, and sum them up."""
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.observing import observe
    from feddkd.cli.stopping import StopSignals
    from feddkd.engines.resolve import resolve
    from feddkd.engines.simulation import prepare, run_federation
    from feddkd.observability.ledger import summarize
    from feddkd.observability.status_file import StatusFile
    from feddkd.scheduler.recovery import check_resumable

    if resumed:
        check_resumable(folder, loaded)
    resolved = resolve(loaded)
    federation = prepare(resolved)  # what is wrong is said before there is a record
    if not resumed:
        note(error_console(), printable(f"record in {folder}/", LINE_LETTERS))
    resumed_by = shlex.join(["feddkd", "run", "--resume", str(folder)]) if resolved.scheduler.durability != "none" else ""
    signals = StopSignals(error_console(), folder, resumed_by)
    status = StatusFile(folder) if resumed_by else None
    with (
        signals.handled(),
        observe(resolved, folder, publishing, was_stopped=lambda: bool(signals.reason), again=resumed, status=status) as observers,
    ):
        observers.add(signals)
        record = run_federation(federation, engine.value, folder, observers, resumed=resumed, early=early)
    return summarize(record, resolved)


def _loaded(config: Path | None, overrides: list[str], resume: Path | None) -> Config:
    """Read the configuration of a new run, or that of the run to go on with. Raises ConfigError or StateError."""
    if resume is None:
        return Config.load(config, overrides)
    from feddkd.scheduler.journal_lines import read_journal
    from feddkd.scheduler.recovery import check_overrides

    header, _ = read_journal(resume)  # not the record's: that is written again, and may be in the middle of it
    try:
        return Config.loads(header.config, overrides, source=str(resume))
    except ConfigError:
        check_overrides(resume, header, overrides)
        raise


def _client_processes(engine: EngineChoice, tables: Mapping[str, Any]) -> tuple[int, int]:
    """Guess how many client processes a run will have, and the threads of each, from a configuration that is not checked yet.

    Those that are not right cost time and nothing else.
    """
    if engine is not EngineChoice.GRPC:
        return 0, 1

    def number(table: str, key: str, default: int) -> int:
        values = tables.get(table)
        value = values.get(key) if isinstance(values, Mapping) else None
        return value if isinstance(value, int) and value > 0 else default

    cores = os.cpu_count() or 1
    clients = number("partition", "clients", PartitionConfig.model_fields["clients"].default)
    count = min(number("runtime", "client_processes", cores), clients, cores)
    return count, number("runtime", "threads", RuntimeConfig.model_fields["threads"].default)


def _algorithm(tables: Mapping[str, Any]) -> str:
    """Return the name of the algorithm in a configuration that is not checked yet."""
    algorithm = tables.get("algorithm")
    name = algorithm.get("name") if isinstance(algorithm, Mapping) else None
    return str(name or DEFAULT_ALGORITHM)
