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
from feddkd.observability.live.page import LivePage
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.status_file import StatusFile
from feddkd.observability.trackers.tracker import tracker_of
from feddkd.observability.trackers.tracking import Tracking
from feddkd.observability.web import WebServer
from feddkd.scheduler.observers import Observers
from feddkd.scheduler.records import Observer


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What a run shows to other programs, and where.

    Attributes:
        metrics_port: None for no metrics over HTTP; 0 takes a free port.
        metrics_linger_s: seconds that the metrics stay after the run has ended.
        metrics_textfile: holds the metrics, also after the process has ended; None for no file.
        live_port: of the live page; None for no page, 0 takes a free port.
        trackers: of experiments, by name or import path.
    """

    metrics_port: int | None = None
    metrics_host: str = METRICS_HOST
    metrics_linger_s: float = 0.0
    metrics_textfile: Path | None = None
    live_port: int | None = None
    live_host: str = METRICS_HOST
    trackers: tuple[str, ...] = ()


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
        if endpoints.live_port is not None:
            page = LivePage(config, resumed=again)
            pages = WebServer(page.routes(endpoints.live_host), endpoints.live_port, endpoints.live_host, "the live page")
            stack.callback(pages.close)
            found.append(stack.enter_context(page))
            note(console, f"live page on http://{pages.address}/")
        if status is not None:
            found.append(stack.enter_context(status))
        found.append(stack.enter_context(ConsoleProgress(config, console, resumed=again)))
        observers = Observers([*found, *(Tracking(name, tracker_of(name), config, out) for name in endpoints.trackers)])
        with observers.told_of_failure():
            yield observers
