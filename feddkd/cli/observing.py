"""Watches a run for the command line: the record on disk, the console, and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from feddkd.cli.options import METRICS_HOST
from feddkd.cli.output import error_console, note
from feddkd.cli.progress import ConsoleProgress
from feddkd.config import Config
from feddkd.observability.ledger import Ledger
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.status_file import StatusFile
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a run shows to other programs, and where.

    Attributes:
        metrics_port: None for no metrics over HTTP; 0 takes a free port.
        metrics_linger_s: seconds that the metrics stay after the run has ended.
        metrics_textfile: holds the metrics, also after the process has ended; None for no file.
    """

    metrics_port: int | None = None
    metrics_host: str = METRICS_HOST
    metrics_linger_s: float = 0.0
    metrics_textfile: Path | None = None


@contextlib.contextmanager
def observe(
    config: Config,
    out: Path,
    endpoints: Endpoints,
    *,
    again: bool = False,
    run_id: str | None = None,
    status: StatusFile | None = None,
) -> Iterator[Observers]:
    """The ledger in `out`, the console, metrics if a port is given, and `status.json`.

    They hear of any failure before it goes on.

    Args:
        endpoints: where other programs can watch.
        again: `out` may hold the record of this run already.
        run_id: the run, where it is known by now.
        status: beside the journal of the run; None for a run without one.
    """
    console = error_console()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(out, config, again=again, run_id=run_id)
        stack.callback(ledger.close)
        found: list[Observer] = [ledger]
        if endpoints.metrics_port is not None:
            metrics = PrometheusMetrics(config)
            server = metrics.serve(endpoints.metrics_port, endpoints.metrics_host)
            stack.callback(server.close)
            note(console, f"metrics on http://{server.address}/metrics")
            found.append(metrics)
        if status is not None:
            found.append(stack.enter_context(status))
        found.append(stack.enter_context(ConsoleProgress(config, console, resumed=again)))
        observers = Observers(found)
        with observers.told_of_failure():
            yield observers
