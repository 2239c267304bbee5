"""What a command shows to other programs, and for how long."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from feddkd.cli import publishing as module
from feddkd.cli.endpoints import Endpoints, Port
from feddkd.cli.publishing import Publishing
from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine
from feddkd.errors import CommandInterruptedError, ConfigError, RunError, StoppedError
from feddkd.observability import metrics_file
from feddkd.observability.health import Health
from feddkd.observability.host_names import checked_on_this_machine
from feddkd.observability.metrics_file import MetricsFile
from feddkd.observability.prometheus import PrometheusMetrics
from feddkd.observability.web import Request, WebServer, text_response
from feddkd.scheduler.engine import ClientStates
from feddkd.scheduler.observers import Observers

RUN_ID = "0123456789ab"


class FakeEngine(InProcessEngine):
    """Nobody takes part; the states are what the test says."""

    def __init__(self, states: ClientStates) -> None:
        super().__init__({}, chunk_bytes=1024)
        self.client_states = states

    def states(self) -> ClientStates:
        return self.client_states


class Waits:
    """Stands in the place of the wait for the last scrapes, and does what a test wants meanwhile."""

    def __init__(self) -> None:
        self.waited_s: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def wait(self, timeout: float) -> None:
        self.waited_s.append(timeout)
        self.meanwhile()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    found = Waits()
    monkeypatch.setattr(module, "_stay", found.wait)
    return found


def state_in(text: str) -> str:
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples if sample.name == "feddkd_run_state"]
    (state,) = (sample.labels["state"] for sample in samples if sample.value == 1)
    return state


def read(port: int, path: str = "/metrics") -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}") as response:
        text: str = response.read().decode()
    return text


def nothing() -> None:
    pass


def end_by(error: BaseException, endpoints: Endpoints, begun: Callable[[], None] = nothing, was_stopped: Callable[[], bool] = bool) -> None:
    """Carry out a run that raises `error`."""
    with Publishing(endpoints) as publishing:
        observers = Observers(publishing.begin(Config()), was_stopped)
        begun()
        with observers.told_of_failure():
            raise error


def port_in(said: str) -> int:
    return int(re.findall(r":(\d+)/metrics", said)[0])


@pytest.mark.parametrize("error", [RunError("too few clients"), ValueError("a fault"), ConfigError("of an algorithm")])
def test_a_failed_run_can_still_be_scraped(error: Exception, waits: Waits, capsys: pytest.CaptureFixture[str]) -> None:
    states: list[str] = []

    def begun() -> None:
        port = port_in(capsys.readouterr().err)
        waits.meanwhile = lambda: states.append(state_in(read(port)))

    with pytest.raises(type(error)):
        end_by(error, Endpoints(metrics=Port(0), linger_s=60.0), begun)
    assert (waits.waited_s, states) == ([60.0], ["failed"])
    said = " ".join(capsys.readouterr().err.split())
    assert str(error) in said
    assert "the metrics stay for 60 s" in said


def test_a_completed_run_stays_and_then_frees_its_port(waits: Waits, capsys: pytest.CaptureFixture[str]) -> None:
    with Publishing(Endpoints(metrics=Port(0), linger_s=1.0)) as publishing:
        publishing.begin(Config())
        port = port_in(capsys.readouterr().err)
    assert waits.waited_s == [1.0]
    WebServer({}, port).close()


@pytest.mark.parametrize(
    "error", [StoppedError("stopped by SIGTERM", "record/", "again"), CommandInterruptedError("left", "again"), KeyboardInterrupt()]
)
def test_a_run_that_was_stopped_leaves_at_once(error: BaseException, waits: Waits) -> None:
    with pytest.raises(type(error)):
        end_by(error, Endpoints(metrics=Port(0), linger_s=60.0))
    assert waits.waited_s == []


def test_without_a_wish_to_linger_nothing_is_waited_for(waits: Waits) -> None:
    with Publishing(Endpoints(metrics=Port(0))) as publishing:
        publishing.begin(Config())
    assert waits.waited_s == []


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
@pytest.mark.parametrize(("host", "status"), [("evil.example", 421), ("localhost", 200), ("127.0.0.1:80", 200), ("[::1]:80", 200)])
def test_on_this_machine_a_browser_is_answered_under_known_names_alone(path: str, host: str, status: int) -> None:
    answer = text_response("all is well")
    route = checked_on_this_machine({path: lambda _: answer}, "127.0.0.1")[path]
    assert route(Request(path, {"host": host})).status == status


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "server"])
def test_on_a_network_prometheus_asks_by_any_name(address: str) -> None:
    routes = {"/metrics": lambda _: text_response("all is well")}
    assert checked_on_this_machine(routes, address)["/metrics"](Request("/metrics", {"host": "feddkd.monitoring.svc"})).status == 200


def test_the_server_of_the_metrics_checks_names(waits: Waits, capsys: pytest.CaptureFixture[str]) -> None:
    with Publishing(Endpoints(metrics=Port(0))) as publishing:
        publishing.begin(Config())
        address = f"http://127.0.0.1:{port_in(capsys.readouterr().err)}/metrics"
        with pytest.raises(HTTPError, match="421"):
            urlopen(HTTPRequest(address, headers={"Host": "evil.example"}))
    assert waits.waited_s == []


@pytest.mark.parametrize("error", [None, RunError("too few clients")])
def test_a_signal_ends_the_lingering_and_changes_nothing(error: Exception | None, waits: Waits) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    waits.meanwhile = interrupt
    ended: list[BaseException] = []
    try:
        with Publishing(Endpoints(metrics=Port(0), linger_s=60.0)) as publishing:
            publishing.begin(Config())
            if error is not None:
                raise error
    except RunError as raised:
        ended.append(raised)
    assert ended == ([] if error is None else [error])


def test_a_run_that_never_began_writes_nothing(waits: Waits, tmp_path: Path) -> None:
    file = tmp_path / "feddkd.prom"
    with pytest.raises(ConfigError), Publishing(Endpoints(Port(0), linger_s=60.0, metrics_textfile=file)):
        raise ConfigError("rounds = 0")
    assert waits.waited_s == []
    assert not file.exists()


@pytest.mark.parametrize(("stopped", "outcome"), [(False, "failed"), (True, "stopped")])
def test_the_file_outlives_the_run(stopped: bool, outcome: str, tmp_path: Path) -> None:
    file = tmp_path / "feddkd.prom"
    states: list[str] = []
    with pytest.raises(RunError):
        end_by(
            RunError("for a reason"), Endpoints(metrics_textfile=file), lambda: states.append(state_in(file.read_text())), lambda: stopped
        )
    assert states == ["waiting"]
    assert state_in(file.read_text()) == outcome
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_holds_nothing_that_node_exporter_has_itself(tmp_path: Path) -> None:
    file = tmp_path / "feddkd.prom"
    MetricsFile(PrometheusMetrics(Config()).registry, file).close()
    names = {line.split("{")[0].split()[0] for line in file.read_text().splitlines() if not line.startswith("#")}
    assert names
    assert all(name.startswith("feddkd_") for name in names)


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write --metrics-textfile .*/nowhere/x.prom: No such file"):
        MetricsFile(PrometheusMetrics(Config()).registry, tmp_path / "nowhere" / "x.prom")


def test_a_disk_that_fills_later_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = threading.Semaphore(0)

    def full(*_: object) -> None:
        writes.release()
        raise OSError(28, "No space left on device")

    file = MetricsFile(PrometheusMetrics(Config()).registry, tmp_path / "x.prom", every_s=0.0)
    monkeypatch.setattr(metrics_file, "write_to_textfile", full)
    for _ in range(3):
        assert writes.acquire(timeout=30)
    file.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write {tmp_path}/x.prom: No space left on device; it is tried again"
    ]


def test_health_follows_the_run() -> None:
    health = Health()
    engine = FakeEngine(ClientStates(2, 1, 0))
    pages: list[tuple[int, str]] = []

    def look() -> None:
        response = health.ready(Request("/readyz"))
        assert isinstance(response.body, bytes)
        pages.append((response.status, json.loads(response.body)["state"]))

    look()
    events: list[Callable[[], None]] = [
        lambda: health.engine_ready(engine),
        lambda: health.run_started(RUN_ID, 3),
        lambda: health.paused("too few"),
        lambda: health.round_started(2, 0, 3),
        lambda: health.run_failed("of some reason"),
    ]
    for event in events:
        event()
        look()
    assert pages == [(503, "starting"), (200, "waiting"), (200, "running"), (200, "paused"), (200, "running"), (503, "failed")]
    body = health.ready(Request("/readyz")).body
    assert isinstance(body, bytes)
    assert json.loads(body) == {
        "ready": False,
        "state": "failed",
        "run_id": RUN_ID,
        "round": 2,
        "rounds": 3,
        "clients": {"connected": 2, "working": 1, "lost": 0},
    }


@pytest.mark.parametrize(("answers", "status"), [(True, 200), (False, 503)])
def test_a_process_whose_loop_is_stuck_is_not_alive(answers: bool, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    health = Health()
    assert health.alive(Request("/healthz")).status == 200, "before there is an engine"
    engine = FakeEngine(ClientStates())
    monkeypatch.setattr(engine, "answers", lambda _: answers)
    health.engine_ready(engine)
    assert health.alive(Request("/healthz")).status == status


def test_the_pages_are_on_the_port_of_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    with Publishing(Endpoints(metrics=Port(0))) as publishing:
        publishing.begin(Config())
        port = port_in(capsys.readouterr().err)
        assert json.loads(read(port, "/healthz")) == {"alive": True}
        with pytest.raises(HTTPError, match="503"):
            read(port, "/readyz")
        assert read(port, "/").split() == ["/healthz", "/metrics", "/readyz"]
