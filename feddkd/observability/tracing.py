"""Sends traces with OpenTelemetry: a span for the run, below it one for each attempt at a round, below these the exchanges.

Needs the extra `otel`. Where the spans go is said by OpenTelemetry's own environment variables, such as
OTEL_EXPORTER_OTLP_ENDPOINT. Spans are sent on a thread of its own. A collector that is not there costs the run
nothing but the spans.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeId
from feddkd.extras import install_command
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord
from feddkd.tensors import Tensors
from feddkd.text import printable

logger = logging.getLogger(__name__)

SERVICE_NAME = "feddkd"

EXPORT_TIMEOUT_S = 5.0
"""Seconds that one export, and the last one at the end of the run, may take."""


class Tracing(Observer):
    """Makes spans of what the scheduler tells.

    What an earlier process of the run did is not told again: it has sent its own spans.
    """

    follows_history = False

    def __init__(self, processor: Any) -> None:
        """Args:
        processor: of OpenTelemetry; takes the spans.
        """
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("feddkd")
        self._run: Any = None
        self._round: Any = None
        self._open_round = 0

    def close(self) -> None:
        """Send what is left, for at most `EXPORT_TIMEOUT_S` seconds; the spans still open end now."""
        self._end_round()
        self._end_run(None)
        # The exporter tries again on its own, for longer than a command should take to end.
        sending = threading.Thread(target=self._provider.shutdown, name="feddkd-traces", daemon=True)
        sending.start()
        sending.join(EXPORT_TIMEOUT_S)

    def run_started(self, run_id: str, rounds: int) -> None:
        self._begin_run({"feddkd.run_id": run_id, "feddkd.rounds": rounds})

    def run_resumed(self, run_id: str, rounds: int, rounds_done: int, incarnation: int, last: ExchangeId | None) -> None:
        done = {"feddkd.rounds_done": rounds_done, "feddkd.incarnation": incarnation}
        self._begin_run({"feddkd.run_id": run_id, "feddkd.rounds": rounds, **done})

    def round_started(self, round_number: int, attempt: int, clients: int) -> None:
        self._end_round()
        attributes = {"feddkd.round": round_number, "feddkd.attempt": attempt, "feddkd.clients": clients}
        self._round = self._tracer.start_span("round", self._below(self._run), attributes=attributes)
        self._open_round = round_number

    def exchange_done(self, record: ExchangeRecord) -> None:
        end_ns = time.time_ns()
        of_round = record.id.round == self._open_round and self._round is not None
        span = self._tracer.start_span(
            record.id.name,
            self._below(self._round if of_round else self._run),
            start_time=end_ns - round(record.seconds * 1e9),
            attributes=_attributes(record),
        )
        span.end(end_ns)

    def round_finished(self, round_number: int, model: Tensors) -> None:
        self._end_round()

    def round_failed(self, round_number: int, attempt: int, reason: str) -> None:
        self._end_round(reason)

    def run_done(self, record: RunRecord) -> None:
        self._end_round()
        self._end_run("completed")

    def run_failed(self, reason: str) -> None:
        self._end_round(reason)
        self._end_run("failed", reason)

    def run_stopped(self, reason: str) -> None:
        self._end_round(reason)
        self._end_run("stopped", reason)

    def _begin_run(self, attributes: dict[str, str | int]) -> None:
        self._run = self._tracer.start_span("run", attributes=attributes)

    def _below(self, span: Any) -> Any:
        """Return the context of what happens in a span; None for a trace of its own."""
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(span) if span is not None else None

    def _end_round(self, fault: str = "") -> None:
        if self._round is not None:
            _end(self._round, fault)
        self._round = None

    def _end_run(self, outcome: str | None, fault: str = "") -> None:
        if self._run is not None:
            if outcome is not None:
                self._run.set_attribute("feddkd.outcome", outcome)
            _end(self._run, fault)
        self._run = None


def otlp_processor() -> Any:
    """Return what sends spans with OTLP over HTTP.

    Raises:
        ConfigError: the packages are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(f"--trace needs the extra otel: {install_command('otel')}") from error
    _tell_once()
    return BatchSpanProcessor(OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S))


def _attributes(record: ExchangeRecord) -> dict[str, str | int | float]:
    found: dict[str, str | int | float] = {
        "feddkd.run_id": record.id.run_id,
        "feddkd.round": record.id.round,
        "feddkd.attempt": record.id.attempt,
        "feddkd.exchange": record.id.name,
        "feddkd.step": record.id.step,
        "feddkd.clients": record.clients_selected,
        "feddkd.clients_reported": record.clients_reported,
        "feddkd.wire_bytes_down": record.traffic.wire_bytes_down,
        "feddkd.wire_bytes_up": record.traffic.wire_bytes_up,
        "feddkd.payload_bytes_down": record.traffic.payload_bytes_down,
        "feddkd.payload_bytes_up": record.traffic.payload_bytes_up,
        "feddkd.client_seconds": record.client_seconds,
    }
    return found if record.loss is None else {**found, "feddkd.loss": record.loss}


def _end(span: Any, fault: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    if fault:
        span.set_status(Status(StatusCode.ERROR, fault))
    span.end()


class _Once(logging.Handler):
    """Says once what the exporter has to say: a collector that is away for hours is one entry of the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._has_told = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._has_told:
            self._has_told = True
            logger.warning("traces are lost, and the run goes on: %s", printable(record.getMessage()))


def _tell_once() -> None:
    library = logging.getLogger("opentelemetry")
    library.propagate = False
    library.handlers = [_Once()]
