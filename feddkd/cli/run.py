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


class EngineChoice(StrEnum):
    """How exchanges are carried out."""

    GRPC = "grpc"
    IN_PROCESS = "in-process"


Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Record of the run; default: runs/ALGORITHM-TIME.", show_default=False)
]


def run(
    config: ConfigFile = None,
    override: Overrides = None,
    out: Out = None,
    engine: Annotated[
        EngineChoice, typer.Option(help="A real gRPC server and client processes, or everything in this process.")
    ] = EngineChoice.GRPC,
    resume: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
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
    """
    loaded = Config.load(config, override or ())
    # These import torch, which takes seconds: --help and a typing error should not.
    from feddkd.cli.observing import observe
    from feddkd.engines.resolve import resolve
    from feddkd.engines.simulation import run_federation
    from feddkd.observability.ledger import summarize

    resolved = resolve(loaded)
    folder = resume or out or default_out(resolved)
    with observe(resolved, folder, metrics_port, METRICS_HOST, again=bool(resume)) as observers:
        record = run_federation(resolved, engine.value, folder, observers, resumed=bool(resume))
    finish_with_summary(summarize(record, resolved), folder, report=report, as_json=as_json)


def default_out(config: Config) -> Path:
    """A folder named after the algorithm and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm.name.replace(':', '.')}-{now}"
