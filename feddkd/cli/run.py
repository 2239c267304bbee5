"""`feddkd run`: a whole federation on this machine."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from feddkd.cli.options import ConfigFile, Json, MetricsPort, Overrides, WithReport
from feddkd.cli.output import error_console, note, say
from feddkd.cli.progress import ConsoleProgress, megabytes
from feddkd.cli.report import report_of_run
from feddkd.config import Config
from feddkd.engines.resolve import resolve
from feddkd.engines.simulation import LOOPBACK, run_federation
from feddkd.errors import FedDKDError
from feddkd.imports import one_line
from feddkd.observability.ledger import Ledger, summarize
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


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
    resolved = resolve(Config.load(config, override or ()))
    folder = out or default_out(resolved)
    with observe(resolved, folder, metrics_port) as observers:
        record = run_federation(resolved, engine.value, folder, observers)
    say_summary(summarize(record, resolved), folder, report=report, as_json=as_json)


def default_out(config: Config) -> Path:
    """A folder named after the algorithm and the time."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.algorithm.name.replace(':', '.')}-{now}"


@contextlib.contextmanager
def observe(config: Config, out: Path, metrics_port: int | None, metrics_host: str = LOOPBACK) -> Iterator[Observers]:
    """The ledger in `out`, the console, and metrics if a port is given; told of any failure before it goes on."""
    console = error_console()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(out, config)
        stack.callback(ledger.close)
        found: list[Observer] = [ledger]
        if metrics_port is not None:
            metrics = PrometheusMetrics(config)
            server = metrics.serve(metrics_port, metrics_host)
            stack.callback(server.close)
            note(console, f"metrics on http://{metrics_host}:{server.port}/metrics")
            found.append(metrics)
        found.append(stack.enter_context(ConsoleProgress(config, console)))
        observers = Observers(found)
        try:
            yield observers
        except BaseException as error:
            observers.tell_failure(_reason(error))
            raise


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, FedDKDError) else one_line(error)


def say_summary(summary: dict[str, Any], out: Path, *, report: bool, as_json: bool) -> None:
    """The end of a run: its numbers, and the page with its pictures if one is wanted."""
    if as_json:
        say(json.dumps(summary))
    else:
        print_summary(summary, out)
    if report:
        page = report_of_run(out)
        line = f"  {'report':<18} {page}"
        if as_json:
            note(error_console(), line)
        else:
            say(line)


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """The numbers of a run, for a person."""
    rows = [
        ("bytes on the wire", f"{megabytes(summary['total_wire_bytes_down'])} down, {megabytes(summary['total_wire_bytes_up'])} up"),
        ("time", f"{summary['seconds']:.1f} s for {summary['rounds']} round{'s' if summary['rounds'] > 1 else ''}"),
        ("model sha256", summary["model_sha256"]),
        ("record", f"{out}/"),
    ]
    if summary["final_accuracy"] is not None:
        rows.insert(0, ("final accuracy", f"{summary['final_accuracy']:.2%} (best {summary['best_accuracy']:.2%})"))
    for name, value in rows:
        say(f"  {name:<18} {value}")
