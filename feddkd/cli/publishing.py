"""Shows the metrics of a run to other programs, also for a while after the run has ended."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.cli.options import METRICS_HOST
from feddkd.cli.output import LINE_LETTERS, error_console, note
from feddkd.client.watch import ClientWatch
from feddkd.config import Config
from feddkd.errors import CommandInterruptedError, StoppedError
from feddkd.imports import one_line
from feddkd.observability.client_metrics import ClientMetrics
from feddkd.observability.health import Health
from feddkd.observability.metrics_file import MetricsFile
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.scrape import scrape
from feddkd.observability.tracing import Tracing, otlp_processor
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
        traces: whether traces are sent with OpenTelemetry.
    """

    metrics_port: int | None = None
    metrics_host: str = METRICS_HOST
    metrics_linger_s: float = 0.0
    metrics_textfile: Path | None = None
    traces: bool = False


class Publishing:
    """Stands around a command: what it serves ends after the command's own work.

    The metrics stay for `metrics_linger_s` seconds after a run that was completed or failed. A run that somebody
    stopped leaves at once.

    Attributes:
        endpoints: what is wanted.
    """

    def __init__(self, endpoints: Endpoints, certificates: Mapping[str, Path | None] | None = None) -> None:
        """Prepare.

        Args:
            certificates: files of the server's, by role.

        Raises:
            ConfigError: what traces need is not installed.
        """
        self.endpoints = endpoints
        self._certificates = certificates or {}
        self._processor = otlp_processor() if endpoints.traces else None
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
        observers: list[Observer] = []
        if self._processor is not None:
            tracing = Tracing(self._processor, was_stopped)
            self._stack.callback(tracing.close)
            observers.append(tracing)
        if self.endpoints.metrics_port is not None or self.endpoints.metrics_textfile is not None:
            observers += self._begin_metrics(config, was_stopped)
        return observers

    def _begin_metrics(self, config: Config, was_stopped: Callable[[], bool]) -> list[Observer]:
        """Serve the metrics, and keep their file."""
        endpoints = self.endpoints
        metrics = PrometheusMetrics(config)
        metrics.was_stopped = was_stopped
        metrics.watch_certificates(self._certificates)
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


@contextlib.contextmanager
def published_client(client_id: str, port: int | None, host: str, certificates: Mapping[str, Path | None]) -> Iterator[ClientWatch]:
    """Serve the metrics of a client, if a port is given, and yield what fills them.

    Args:
        certificates: files of the client's, by role.

    Raises:
        AddressInUseError: the port is taken, or the address is not one of this machine's.
    """
    if port is None:
        yield ClientWatch()
        return
    metrics = ClientMetrics(client_id)
    metrics.certificates.watch(certificates)
    with contextlib.closing(WebServer({"/metrics": functools.partial(scrape, metrics.registry)}, port, host, "metrics")) as server:
        note(error_console(), f"metrics on http://{server.address}/metrics")
        yield metrics


def _stay(seconds: float) -> None:
    threading.Event().wait(seconds)


def _is_worth_a_scrape(error: BaseException | None) -> bool:
    """Whether a run ended by itself."""
    return error is None or (isinstance(error, Exception) and not isinstance(error, StoppedError | CommandInterruptedError))
