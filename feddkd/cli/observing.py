"""Watches a run for the command line: the record on disk, the console, and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from feddkd.cli.output import error_console, note
from feddkd.cli.progress import ConsoleProgress
from feddkd.config import Config
from feddkd.observability.ledger import Ledger
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.status_file import StatusFile
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


@contextlib.contextmanager
def observe(
    config: Config,
    out: Path,
    metrics_port: int | None,
    metrics_host: str,
    *,
    again: bool = False,
    run_id: str | None = None,
    status: StatusFile | None = None,
) -> Iterator[Observers]:
    """The ledger in `out`, the console, metrics if a port is given, and `status.json`.

    They hear of any failure before it goes on.

    Args:
        again: `out` may hold the record of this run already.
        run_id: the run, where it is known by now.
        status: beside the journal of the run; None for a run without one.
    """
    console = error_console()
    with contextlib.ExitStack() as stack:
        ledger = Ledger(out, config, again=again, run_id=run_id)
        stack.callback(ledger.close)
        found: list[Observer] = [ledger]
        if metrics_port is not None:
            metrics = PrometheusMetrics(config)
            server = metrics.serve(metrics_port, metrics_host)
            stack.callback(server.close)
            note(console, f"metrics on http://{metrics_host}:{server.port}/metrics")
            found.append(metrics)
        if status is not None:
            found.append(stack.enter_context(status))
        found.append(stack.enter_context(ConsoleProgress(config, console, resumed=again)))
        observers = Observers(found)
        with observers.told_of_failure():
            yield observers
