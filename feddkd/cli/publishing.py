"""Shows the metrics of a run to other programs, also for a while after the run has ended."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from feddkd.cli.endpoints import Endpoints
from feddkd.cli.output import LINE_LETTERS, error_console, note
from feddkd.client.watch import ClientWatch
from feddkd.config import Config
from feddkd.errors import CommandInterruptedError, StoppedError
from feddkd.imports import one_line
from feddkd.observability.client_metrics import ClientMetrics
from feddkd.observability.health import Health
from feddkd.observability.host_names import checked_on_this_machine
from feddkd.observability.live.page import LivePage
from feddkd.observability.metrics_file import MetricsFile
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.scrape import scrape
from feddkd.observability.tracing import Tracing, otlp_processor
from feddkd.observability.web import Route, WebServer
from feddkd.scheduler.records import Observer
from feddkd.text import printable


class Publishing:
    """Stands around a command: what it serves ends after the command's own work.

    The metrics and the live page stay for `linger_s` seconds after a run that was completed or failed. A run that somebody
    stopped leaves at once.

    Attributes:
        endpoints: what is wanted.
    """

    def __init__(self, endpoints: Endpoints, certificates: Mapping[str, Path | None] | None = None) -> None:
        """Prepare.

        Args:
            certificates: files of a server's, by role.

        Raises:
            ConfigError: what traces need is not installed.
        """
        self.endpoints = endpoints
        self._certificates = certificates or {}
        self._processor = otlp_processor() if endpoints.traces else None
        self._stack = contextlib.ExitStack()
        self._served: list[str] = []

    def begin(self, config: Config, *, resumed: bool = False) -> list[Observer]:
        """Serve what is wanted, and return the observers that fill it.

        Args:
            resumed: another process began the run.

        Raises:
            AddressInUseError: the port is taken, or the address is not one of this machine's.
            ConfigError: the file cannot be written.
        """
        return [
            *self._tracing(),
            *self._metrics(config),
            *self._page(config, resumed=resumed),
        ]

    def _tracing(self) -> list[Observer]:
        if self._processor is None:
            return []
        tracing = Tracing(self._processor)
        self._stack.callback(tracing.close)
        return [tracing]

    def _metrics(self, config: Config) -> list[Observer]:
        endpoints = self.endpoints
        port = endpoints.metrics
        if port.number is None and endpoints.metrics_textfile is None:
            return []
        metrics = PrometheusMetrics(config)
        metrics.certificates.watch(self._certificates)
        health = Health()
        if endpoints.metrics_textfile is not None:
            file = MetricsFile(metrics.registry, endpoints.metrics_textfile)
            self._stack.callback(file.close)
        if port.number is not None:
            routes = {"/metrics": metrics.page, **health.routes}
            server = self._stack.enter_context(_metrics_server(routes, port.number, port.host))
            self._tell("metrics", f"http://{server.address}/metrics")
        return [metrics, health]

    def _page(self, config: Config, *, resumed: bool) -> list[Observer]:
        port = self.endpoints.live
        if port.number is None:
            return []
        page = LivePage(config, resumed=resumed)
        server = WebServer(page.routes(port.host), port.number, port.host, "the live page")
        self._stack.callback(server.close)
        self._stack.enter_context(page)
        self._tell("live page", f"http://{server.address}/")
        return [page]

    def _tell(self, what: str, address: str) -> None:
        self._served.append(f"the {what}")
        note(error_console(), f"{what} on {address}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stay for the last scrapes; a signal ends that at once, and the command ends as it would have without."""
        with self._stack:
            if not self._served or not self.endpoints.linger_s or not _is_worth_a_scrape(error):
                return
            why = f"{printable(one_line(error), LINE_LETTERS)}; " if error is not None else ""
            stay = f"{' and '.join(self._served)} {'stays' if self._served == ['the live page'] else 'stay'}"
            note(error_console(), f"{why}{stay} for {self.endpoints.linger_s:g} s; Ctrl-C or SIGTERM ends that")
            with contextlib.suppress(KeyboardInterrupt):
                _stay(self.endpoints.linger_s)


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
    with _metrics_server({"/metrics": functools.partial(scrape, metrics.registry)}, port, host) as server:
        note(error_console(), f"metrics on http://{server.address}/metrics")
        yield metrics


def _metrics_server(routes: Mapping[str, Route], port: int, host: str) -> contextlib.closing[WebServer]:
    return contextlib.closing(WebServer(checked_on_this_machine(routes, host), port, host, "metrics"))


def _stay(seconds: float) -> None:
    threading.Event().wait(seconds)


def _is_worth_a_scrape(error: BaseException | None) -> bool:
    """Whether a run ended by itself."""
    return error is None or (isinstance(error, Exception) and not isinstance(error, StoppedError | CommandInterruptedError))
