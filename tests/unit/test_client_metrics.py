"""The metrics of one client."""

import datetime
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from feddkd.certs.certificate import Certificate
from feddkd.errors import ConfigError
from feddkd.exchange import Evaluation, ExampleCounts, ExchangeId, Reply, Task
from feddkd.observability.certificate_metrics import CertificateExpiry
from feddkd.observability.client_metrics import ClientMetrics, _Activity
from feddkd.tensors import Schema, Tensors

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


@dataclass
class Stream:
    received_bytes: int = 0
    sent_bytes: int = 0


def task(name: str = "local_train", round_number: int = 1) -> Task:
    return Task(ExchangeId("run-1", round_number, 0, name, 0), Tensors(Schema([])))


@pytest.fixture
def metrics() -> ClientMetrics:
    return ClientMetrics("site-a")


def value(metrics: ClientMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def states(metrics: ClientMetrics) -> str:
    found = {state: value(metrics, "feddkd_client_state", state=state) for state in ("connecting", "waiting", "working")}
    assert sorted(found.values()) == [0, 0, 1]  # type: ignore[type-var]
    return max(found, key=found.__getitem__)  # type: ignore[arg-type]


def test_a_client_goes_through_its_states(metrics: ClientMetrics) -> None:
    assert states(metrics) == "connecting"
    metrics.connected("run-1", Stream())
    assert states(metrics) == "waiting"
    metrics.began(task())
    assert states(metrics) == "working"
    metrics.disconnected()
    assert states(metrics) == "working", "it goes on while its connection is broken"
    metrics.computed(task(), None)
    assert states(metrics) == "connecting"


def test_bytes_go_on_over_connections_and_are_those_of_this_moment(metrics: ClientMetrics) -> None:
    first = Stream()
    metrics.connected("run-1", first)
    first.received_bytes, first.sent_bytes = 100, 10
    assert value(metrics, "feddkd_client_wire_bytes_total", direction="down") == 100
    metrics.disconnected()
    metrics.connected("run-1", Stream(received_bytes=7, sent_bytes=1))
    assert value(metrics, "feddkd_client_wire_bytes_total", direction="down") == 107
    assert value(metrics, "feddkd_client_wire_bytes_total", direction="up") == 11
    assert value(metrics, "feddkd_client_connections_total") == 2


def test_time_is_either_computing_or_waiting() -> None:
    now = 100.0
    activity = _Activity(lambda: now)
    registry = CollectorRegistry()
    registry.register(activity)

    def times() -> tuple[float | None, ...]:
        return tuple(registry.get_sample_value(f"feddkd_client_{kind}_seconds_total") for kind in ("computing", "waiting"))

    now = 103.0
    assert times() == (0, 3)
    activity.began()
    now = 105.0
    assert times() == (2, 3), "also in the middle of a computation"
    activity.ended()
    now = 110.0
    assert times() == (2, 8)


def test_work_is_counted_and_what_a_reply_says_is_shown(metrics: ClientMetrics) -> None:
    assert math.isnan(value(metrics, "feddkd_client_loss") or 0.0)
    metrics.began(task(round_number=3))
    metrics.computed(task(), Reply(loss=0.5, evaluation=Evaluation(10, 7, 9.0)))
    metrics.began(task("dkd_step", 3))
    metrics.computed(task("dkd_step"), None)
    assert value(metrics, "feddkd_client_exchanges_total", exchange="local_train", result="computed") == 1
    assert value(metrics, "feddkd_client_exchanges_total", exchange="dkd_step", result="failed") == 1
    assert value(metrics, "feddkd_client_loss") == 0.5
    assert value(metrics, "feddkd_client_accuracy_ratio") == 0.7
    assert value(metrics, "feddkd_client_round") == 3


def test_only_the_run_of_now_is_named(metrics: ClientMetrics) -> None:
    for run_id in ("run-1", "run-2"):
        metrics.connected(run_id, Stream())
    assert value(metrics, "feddkd_client_info", client="site-a", run_id="run-1") is None
    assert value(metrics, "feddkd_client_info", client="site-a", run_id="run-2") == 1


def test_the_end_of_a_certificate_is_read_again_at_every_scrape(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    expiry = CertificateExpiry(registry, ("server", "client_ca"))
    ends = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    def read(file: Path) -> Certificate:
        return Certificate(ends, ends)

    monkeypatch.setattr(Certificate, "read", read)
    expiry.watch({"server": Path("server.pem"), "client_ca": None})

    def end_of(role: str) -> float:
        found = registry.get_sample_value("feddkd_certificate_expiry_time_seconds", {"role": role})
        assert found is not None
        return found

    assert end_of("server") == ends.timestamp()
    ends += datetime.timedelta(days=90)
    assert end_of("server") == ends.timestamp()
    assert math.isnan(end_of("client_ca"))

    def damaged(file: Path) -> Certificate:
        raise ConfigError(f"{file} holds no certificate")

    monkeypatch.setattr(Certificate, "read", damaged)
    assert math.isnan(end_of("server"))


def test_the_documentation_lists_exactly_the_metrics_of_a_client(metrics: ClientMetrics) -> None:
    metrics.has_examples(ExampleCounts(3, 2))
    metrics.connected("run-1", Stream())
    metrics.computed(task(), None)
    suffix = {"counter": "_total"}
    registered = {
        family.name + suffix.get(family.type, ""): (family.type, {label for sample in family.samples for label in sample.labels})
        for family in metrics.registry.collect()
        if family.name.startswith("feddkd_")
    }
    section = DOCS.read_text().split("## Metrics of a client")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(feddkd_\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", section, flags=re.MULTILINE)
    assert {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows} == registered
