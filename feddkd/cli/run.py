"""`feddkd run`: a whole federation on this machine."""

from __future__ import annotations

import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from feddkd.cli.options import METRICS_HOST, ConfigFile, Json, MetricsPort, Overrides, WithReport
from feddkd.cli.summary import finish_with_summary
from feddkd.config import Config
from feddkd.errors import ConfigError


class EngineChoice(StrEnum):
    """How exchanges are carried out."""

    GRPC = "grpc"
    IN_PROCESS = "in-process"


Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Record of the run; default: runs/ALGORITHM-TIME.", show_default=False)
]


Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="DIR", help="Go on with the run whose record is there, from its last exchange.", show_default=False),
]
Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, metavar="N", help="Rounds in all; with --resume, extends a run.", show_default=False)
]


def run(
    config: ConfigFile = None,
    override: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    rounds: Rounds = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="A real gRPC server and client processes, or everything in this process.")
    ] = EngineChoice.GRPC,
    metrics_port: MetricsPort = None,
    report: WithReport = True,
    as_json: Json = False,
) -> None:
    """Run a whole federation on this machine: a gRPC server and client processes.

    Without CONFIG: scikit-learn's digits, ten clients with one class each, FedDKD.

    Examples:
    `feddkd run`

    `feddkd run -o algorithm.name=fedavg --out runs/fedavg`

    `feddkd run examples/mnist_one_class.toml -o data.root=data/mnist`

    `feddkd run --resume runs/fedavg`
    """
    loaded = _loaded(config, [*(override or ()), *([f"rounds={rounds}"] if rounds else [])], out, resume)
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.observing import observe
    from feddkd.cli.stopping import StopSignals
    from feddkd.engines.resolve import resolve
    from feddkd.engines.simulation import prepare, run_federation
    from feddkd.observability.ledger import summarize
    from feddkd.observability.status_file import StatusFile
    from feddkd.scheduler.recovery import check_resumable

    resolved = resolve(loaded)
    if resume is not None:
        check_resumable(resume, resolved)
    federation = prepare(resolved)  # what is wrong is said before there is a folder
    folder = resume or out or default_out(resolved)
    signals = StopSignals()
    resumed_by = f"feddkd run --resume {folder}" if resolved.scheduler.durability != "none" else None
    status = StatusFile(folder) if resumed_by is not None else None
    with (
        signals.handled(resumed_by),
        observe(resolved, folder, metrics_port, METRICS_HOST, again=resume is not None, status=status) as observers,
    ):
        observers.add(signals)
        record = run_federation(federation, engine.value, folder, observers, resumed=resume is not None)
    finish_with_summary(summarize(record, resolved), folder, report=report, as_json=as_json)


def _loaded(config: Path | None, overrides: list[str], out: Path | None, resume: Path | None) -> Config:
    """Read the configuration of a new run, or that of the run to go on with. Raises ConfigError or StateError."""
    if resume is None:
        return Config.load(config, overrides)
    if config is not None or out is not None:
        raise ConfigError("--resume DIR takes configuration and record from DIR: give neither CONFIG nor --out")
    from feddkd.scheduler.journal_lines import read_journal

    header, _ = read_journal(resume)  # not the record's: that is written again, and may be in the middle of it
    return Config.loads(header.config, overrides, source=str(resume))


def default_out(config: Config) -> Path:
    """A folder named after the algorithm and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm.name.replace(':', '.')}-{now}"
