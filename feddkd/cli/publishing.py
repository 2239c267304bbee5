"""Shows the metrics of a run to other programs, also for a while after the run has ended."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.cli.options import METRICS_HOST
from feddkd.cli.output import LINE_LETTERS, error_console, note
from feddkd.config import Config
from feddkd.errors import CommandInterruptedError, StoppedError
from feddkd.imports import one_line
from feddkd.observability.health import Health
from feddkd.observability.metrics_file import MetricsFile
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.web import WebServer
from feddkd.scheduler.records import Observer
from feddkd.text import printable


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


class Publishing:
    """Stands around a command: what it serves ends after the command's own work.

    The metrics stay for `metrics_linger_s` seconds after a run that was completed or failed. A run that somebody
    stopped leaves at once.

    Attributes:
        endpoints: what is wanted.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._stack = contextlib.ExitStack()
        self._server: WebServer | None = None

    def begin(self, config: Config, was_stopped: Callable[[], bool]) -> list[Observer]:
        """Serve what is wanted, and return the observers that fill it.

        Args:
            was_stopped: says of a run that ended early whether somebody stopped it.

        Raises:
            AddressInUseError: the port is taken, or the address is not one of this machine's.
            ConfigError: the file cannot be written.
        """
        endpoints = self.endpoints
        if endpoints.metrics_port is None and endpoints.metrics_textfile is None:
            return []
        metrics = PrometheusMetrics(config)
        metrics.was_stopped = was_stopped
        health = Health(was_stopped)
        if endpoints.metrics_textfile is not None:
            file = MetricsFile(metrics.registry, endpoints.metrics_textfile)
            self._stack.callback(file.close)
        if endpoints.metrics_port is not None:
            routes = {"/metrics": metrics.page, **health.routes}
            self._server = WebServer(routes, endpoints.metrics_port, endpoints.metrics_host, "metrics")
            self._stack.callback(self._server.close)
            note(error_console(), f"metrics on http://{self._server.address}/metrics")
        return [metrics, health]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stay for the last scrapes; a signal ends that at once, and the command ends as it would have without."""
        with self._stack:
            if self._server is None or not self.endpoints.metrics_linger_s or not _is_worth_a_scrape(error):
                return
            why = f"{printable(one_line(error), LINE_LETTERS)}; " if error is not None else ""
            stay = f"the metrics stay for {self.endpoints.metrics_linger_s:g} s on http://{self._server.address}/metrics"
            note(error_console(), f"{why}{stay}; Ctrl-C or SIGTERM ends that")
            with contextlib.suppress(KeyboardInterrupt):
                _stay(self.endpoints.metrics_linger_s)


def _stay(seconds: float) -> None:
    threading.Event().wait(seconds)


def _is_worth_a_scrape(error: BaseException | None) -> bool:
    """Whether a run ended by itself."""
    return error is None or (isinstance(error, Exception) and not isinstance(error, StoppedError | CommandInterruptedError))
