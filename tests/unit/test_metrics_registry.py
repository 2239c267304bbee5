"""A collector that fails takes no other with it, wherever the metrics are read."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from feddkd.config import Config
from feddkd.observability import metrics_file
from feddkd.observability.client_metrics import ClientMetrics
from feddkd.observability.metrics_file import MetricsFile
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.registry import MetricsRegistry
from feddkd.observability.scrape import scrape
from feddkd.observability.web import Request


class Sick(Collector):
    """Raises half-way, while it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = ValueError("a certificate is damaged")

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("feddkd_half", "The half that works.", value=1)
        if self.error is not None:
            raise self.error


def page(registry: CollectorRegistry, names: list[str] | None = None) -> str:
    body = scrape(registry, Request("/metrics", query={"name[]": names} if names else {})).body
    assert isinstance(body, bytes)
    return body.decode()


REGISTRIES: list[Callable[[], CollectorRegistry]] = [
    MetricsRegistry,
    lambda: PrometheusMetrics(Config()).registry,
    lambda: ClientMetrics("site-a").registry,
]


@pytest.mark.parametrize("registry_of", REGISTRIES)
def test_the_metrics_of_the_others_are_served(registry_of: Callable[[], CollectorRegistry], caplog: pytest.LogCaptureFixture) -> None:
    registry, sick = registry_of(), Sick()
    registry.register(sick)
    Gauge("feddkd_well", "Works.", registry=registry).set(42)
    for _ in range(2):
        assert "feddkd_well 42.0" in page(registry)
        assert "feddkd_half" not in page(registry)
    assert [record.levelname for record in caplog.records] == ["WARNING"], "told once"
    sick.error = None
    assert "feddkd_half 1.0" in page(registry)


def test_a_value_that_cannot_be_computed_takes_its_own_metric_alone() -> None:
    registry = MetricsRegistry()
    Gauge("feddkd_sick", "Fails.", registry=registry).set_function(lambda: [][0])
    Gauge("feddkd_well", "Works.", registry=registry).set(42)
    assert "feddkd_well 42.0" in page(registry)
    assert "feddkd_well 42.0" in page(registry, ["feddkd_sick", "feddkd_well"])


def test_a_name_is_registered_once_and_is_free_again() -> None:
    registry = MetricsRegistry()
    gauge = Gauge("feddkd_x", "X.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Gauge("feddkd_x", "X.", registry=registry)
    registry.unregister(gauge)
    assert generate_latest(registry) == b""


@pytest.mark.parametrize("error", [ValueError("no number"), OSError(28, "No space left on device"), RuntimeError("changed size")])
def test_the_file_is_written_again_after_any_error(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def broken(*_: object) -> None:
        failed.set()
        raise error

    registry = MetricsRegistry()
    gauge = Gauge("feddkd_x", "X.", registry=registry)
    file = MetricsFile(registry, tmp_path / "m.prom", every_s=0.0)
    with monkeypatch.context() as patched:
        patched.setattr(metrics_file, "write_to_textfile", broken)
        assert failed.wait(30)
    gauge.set(42)
    file.close()
    assert "feddkd_x 42.0" in (tmp_path / "m.prom").read_text()
