"""Traces of a run, with OpenTelemetry's own exporters."""

import http.server
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from feddkd.cli.endpoints import Endpoints
from feddkd.cli.publishing import Publishing
from feddkd.config import Config
from feddkd.errors import ConfigError
from feddkd.exchange import ExchangeId
from feddkd.observability import tracing
from feddkd.observability.tracing import Tracing, otlp_processor
from feddkd.scheduler.records import ExchangeRecord, Observer, RunRecord
from feddkd.tensors import Schema, Tensors, TensorSpec
from feddkd.traffic import Traffic

MODEL = Tensors(Schema([TensorSpec("w", torch.float32, (3,))]))
TRAFFIC = Traffic(payload_bytes_down=1, payload_bytes_up=2, wire_bytes_down=3, wire_bytes_up=4)


@pytest.fixture(autouse=True)
def _logging_of_the_library() -> Iterator[None]:
    library = logging.getLogger("opentelemetry")
    before = library.propagate, list(library.handlers)
    yield
    library.propagate, library.handlers = before


def exchange(name: str, round_number: int, attempt: int = 0, step: int = 0) -> ExchangeRecord:
    identity = ExchangeId("run-1", round_number, attempt, name, step)
    return ExchangeRecord(identity, 3, 2, {"a": "gone"}, TRAFFIC, 0.5, 1.0, 1, 0.25, None, {})


def two_rounds(observer: Observer) -> None:
    """The first attempt at round 1 fails."""
    observer.run_started("run-1", 2)
    observer.round_started(1, 0, 3)
    observer.exchange_done(exchange("local_train", 1))
    observer.round_failed(1, 0, "too few clients")
    observer.round_started(1, 1, 3)
    observer.exchange_done(exchange("local_train", 1, 1))
    observer.exchange_done(exchange("dkd_step", 1, 1))
    observer.round_finished(1, MODEL)
    observer.round_started(2, 0, 3)
    observer.exchange_done(exchange("local_train", 2))
    observer.round_finished(2, MODEL)
    observer.exchange_done(exchange("deliver", 2))
    observer.run_done(RunRecord("run-1", 2, MODEL, None, None, Traffic(), Traffic(), 0, 1.0, {}, {}))


def spans_of(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return list(exporter.get_finished_spans())


def tree(spans: list[ReadableSpan]) -> list[tuple[str, ...]]:
    """Each span with those above it."""
    by_id = {span.context.span_id: span for span in spans if span.context is not None}

    def path(span: ReadableSpan) -> tuple[str, ...]:
        return (*(path(by_id[span.parent.span_id]) if span.parent is not None else ()), span.name)

    return sorted(path(span) for span in spans)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def test_exchanges_are_below_their_round_and_rounds_below_the_run(exporter: InMemorySpanExporter) -> None:
    two_rounds(Tracing(SimpleSpanProcessor(exporter)))
    spans = spans_of(exporter)
    rounds = [("run", "round")] * 3
    exchanges = [*[("run", "round", "local_train")] * 3, ("run", "round", "dkd_step"), ("run", "deliver")]
    assert tree(spans) == sorted([("run",), *rounds, *exchanges])
    assert len({span.context.trace_id for span in spans if span.context is not None}) == 1


def test_a_span_has_what_the_exchange_cost(exporter: InMemorySpanExporter) -> None:
    two_rounds(Tracing(SimpleSpanProcessor(exporter)))
    (step,) = [span for span in spans_of(exporter) if span.name == "dkd_step"]
    assert step.attributes is not None
    assert dict(step.attributes) == {
        "feddkd.run_id": "run-1",
        "feddkd.round": 1,
        "feddkd.attempt": 1,
        "feddkd.exchange": "dkd_step",
        "feddkd.step": 0,
        "feddkd.clients": 3,
        "feddkd.clients_reported": 2,
        "feddkd.wire_bytes_down": 3,
        "feddkd.wire_bytes_up": 4,
        "feddkd.payload_bytes_down": 1,
        "feddkd.payload_bytes_up": 2,
        "feddkd.client_seconds": 1.0,
        "feddkd.loss": 0.25,
    }
    assert step.start_time is not None
    assert step.end_time is not None
    assert step.end_time - step.start_time == 500_000_000


def test_a_failed_attempt_is_an_error(exporter: InMemorySpanExporter) -> None:
    two_rounds(Tracing(SimpleSpanProcessor(exporter)))
    rounds = [span for span in spans_of(exporter) if span.name == "round"]
    assert [(span.status.status_code, span.status.description) for span in rounds] == [
        (StatusCode.ERROR, "too few clients"),
        (StatusCode.UNSET, None),
        (StatusCode.UNSET, None),
    ]


@pytest.mark.parametrize(("stopped", "outcome"), [(False, "failed"), (True, "stopped")])
def test_a_run_that_ends_early_ends_its_spans(stopped: bool, outcome: str, exporter: InMemorySpanExporter) -> None:
    observer = Tracing(SimpleSpanProcessor(exporter))
    observer.run_resumed("run-1", 2, 1, 2, None)
    observer.round_started(2, 0, 3)
    (observer.run_stopped if stopped else observer.run_failed)("for a reason")
    observer.close()
    found = {span.name: span for span in spans_of(exporter)}
    assert found.keys() == {"run", "round"}
    attributes = found["run"].attributes
    assert attributes is not None
    assert (attributes["feddkd.outcome"], attributes["feddkd.incarnation"]) == (outcome, 2)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP as a real collector does."""

    received: list[tuple[str, ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[str]:
    Collector.received = []
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_spans_reach_a_collector_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as address:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with Publishing(Endpoints(traces=True)) as publishing:
            (observer,) = publishing.begin(Config())
            two_rounds(observer)
    assert {path for path, _ in Collector.received} == {"/v1/traces"}
    resources = [resource for _, request in Collector.received for resource in request.resource_spans]
    names = [span.name for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["deliver", "dkd_step", *["local_train"] * 3, *["round"] * 3, "run"]
    services = {each.value.string_value for resource in resources for each in resource.resource.attributes if each.key == "service.name"}
    assert services == {"feddkd"}


def test_a_collector_that_is_not_there_is_told_once_and_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_S", 0.5)
    observer = Tracing(otlp_processor())
    two_rounds(observer)
    observer.close()
    logging.getLogger("opentelemetry.sdk").error("again")
    said = [record for record in caplog.records if record.name == tracing.__name__]
    assert len(said) == 1
    assert said[0].getMessage().startswith("traces are lost, and the run goes on: ")


def test_a_missing_extra_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"^--trace needs the extra otel: .*otel"):
        Publishing(Endpoints(traces=True))
