"""A real Prometheus scrapes real runs: it answers every query of the project, and its alerts fire.

Three servers run beside each other. `done` completes its rounds, is scraped, and ends. `killed` is killed amid its run. `long` loses a
site, pauses without its second one, and fails. Everything that Prometheus says meanwhile is kept for the tests.
"""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from federation import free_port
from processes import Process
from prometheus_server import PrometheusServer, Sample, hurried, needs_prometheus
from promql import RULES, Expression, all_expressions, of_pages, of_panels, of_recordings

from feddkd.config import Config
from feddkd.observability.metrics import DURATION_BUCKETS_S
from feddkd.observability.run_folder import EXCHANGES, ROUNDS

pytestmark = needs_prometheus

ENDLESS = 100_000
SMALL = (
    "data.subset=200",
    "partition.name=iid",
    "training.epochs=1",
    "dkd.steps=1",
    "runtime.threads=1",
    "scheduler.reconnect_grace_s=0",
    "scheduler.pause_timeout_s=4",
    "scheduler.keep_checkpoints=0",
)
ONLY_WITH_A_CAUSE = {"panel Which site is lost", "panel Outliers"}
"""What is empty as long as nothing is wrong."""


class Served:
    """A server, its sites, and where they are."""

    def __init__(self, folder: Path, name: str, sites: int, *overrides: str) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        config = Config.load(overrides=[*SMALL, f"partition.clients={sites}", f"scheduler.clients={sites}", *overrides])
        (self.folder / "config.toml").write_text(config.to_toml())
        self.instance = f"127.0.0.1:{free_port()}"
        self._address = f"127.0.0.1:{free_port()}"
        self._sites = sites
        self.processes: dict[str, Process] = {}

    def start(self) -> None:
        port = self.instance.rpartition(":")[2]
        watched = ["--metrics-port", port, "--metrics-linger", "60"]
        self._start("server", "server", "config.toml", "--listen", self._address, "--state", "state", "--no-report", *watched)
        for index in range(self._sites):
            site = f"site-{'abc'[index]}"
            where = ["--server", self._address, "--id", site, "--state", site]
            self._start(site, "client", "config.toml", *where, "--partition-index", str(index))

    def kill(self, name: str) -> None:
        self.processes[name].kill()

    def record(self, name: str) -> list[dict[str, Any]]:
        """Read the lines of a file of the record."""
        (file,) = self.folder.glob(f"state/*/{name}")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()

    def _start(self, name: str, *arguments: str) -> None:
        self.processes[name] = Process(name, arguments, self.folder)


@dataclass
class Watched:
    """What Prometheus said.

    Attributes:
        exchanges, rounds: the record of `done`.
        done: recorded values of `done`, when its run was completed.
        answers: to each expression while `long` ran with all of its sites.
        lost: by query, when `long` had lost one.
        firing: by alert, the labels of everything that it ever fired for.
    """

    instances: dict[str, str] = field(default_factory=dict)
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[Expression, list[Sample]] = field(default_factory=dict)
    done: dict[str, list[Sample]] = field(default_factory=dict)
    lost: dict[str, list[Sample]] = field(default_factory=dict)
    firing: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)

    def instances_of(self, alert: str) -> set[str]:
        """Name the runs that an alert fired for."""
        names = {instance: name for name, instance in self.instances.items()}
        return {names[labels["instance"]] for labels in self.firing[alert]}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    done = Served(folder, "done", 1, "rounds=3")
    killed = Served(folder, "killed", 1, f"rounds={ENDLESS}")
    long = Served(folder, "long", 3, f"rounds={ENDLESS}", "scheduler.min_clients=2")
    runs = (done, killed, long)
    found = Watched({run.name: run.instance for run in runs})
    with ExitStack() as stack:
        for run in runs:
            run.start()
            stack.callback(run.close)
        targets = {"feddkd-server": [*found.instances.values()]}
        prometheus = stack.enter_context(PrometheusServer(folder / "prometheus", targets))
        kill_a_server(prometheus, killed)
        complete(prometheus, done, found)
        ask_everything(prometheus, long, found)
        lose_sites(prometheus, long, found)
        found.firing = everything_that_fired(prometheus)
        yield found


def kill_a_server(prometheus: PrometheusServer, run: Served) -> None:
    """Let a server die amid its rounds."""
    prometheus.wait_for(f'feddkd_run_state{{instance="{run.instance}", state="running"}} == 1')
    run.kill("server")
    run.kill("site-a")


def complete(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Wait for the end of a run, ask about it, and end its process."""
    prometheus.wait_for(f'feddkd_run_state{{instance="{run.instance}", state="completed"}} == 1')
    prometheus.wait_for_alert("FeddkdRunCompleted")
    for recording in of_recordings():
        # Rules are evaluated after scrapes: what is recorded has to be of the last one.
        newest = f'{recording.where}{{instance="{run.instance}"}} == ({recording.text})'
        if recording.where in ("exchange:feddkd_wire_bytes:per_round", "run:feddkd_round_duration_seconds:p95"):
            found.done[recording.where] = prometheus.wait_for(newest)
    found.exchanges, found.rounds = run.record(EXCHANGES), run.record(ROUNDS)
    run.processes["server"].signal(signal.SIGTERM)
    prometheus.wait_for(f'up{{instance="{run.instance}"}} == 0')


def ask_everything(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Ask every expression of the project while a run is well."""
    prometheus.wait_for(f'feddkd_rounds_total{{instance="{run.instance}", outcome="completed"}} > 3')
    needed = {expression for expression in (*of_recordings(), *of_panels()) if expression.where not in ONLY_WITH_A_CAUSE}
    for expression in all_expressions():
        ask = prometheus.wait_for if expression in needed else prometheus.query
        found.answers[expression] = ask(expression.text)


def lose_sites(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Take two of three sites away, one after the other."""
    run.kill("site-c")
    prometheus.wait_for_alert("FeddkdClientLost")
    for query in ("feddkd_site_state", "feddkd_clients"):
        found.lost[query] = prometheus.query(f'{query}{{instance="{run.instance}", state="lost"}}')
    found.lost["panel"] = next(prometheus.query(panel.text) for panel in of_panels() if panel.where == "panel Which site is lost")
    run.kill("site-b")
    for alert in ("FeddkdRunPaused", "FeddkdRunFailed", "FeddkdServerDown", "FeddkdManyClientsLost"):
        prometheus.wait_for_alert(alert)


def everything_that_fired(prometheus: PrometheusServer) -> dict[str, list[dict[str, str]]]:
    names = ("FeddkdRunFailed", "FeddkdServerDown", "FeddkdRunPaused", "FeddkdRunCompleted", "FeddkdClientLost")
    return {name: prometheus.fired(name) for name in names}


def by_label(samples: list[Sample], label: str) -> dict[str, float]:
    return {labels[label]: value for labels, value in samples}


def test_bytes_a_round_by_exchange_are_those_of_the_record(watched: Watched) -> None:
    recorded: Counter[str] = Counter()
    for line in watched.exchanges:
        recorded[line["exchange"]] += line["wire_bytes_down"] + line["wire_bytes_up"]
    answer = by_label(watched.done["exchange:feddkd_wire_bytes:per_round"], "exchange")
    assert set(answer) == {"local_train", "dkd_step", "deliver"}
    assert answer == pytest.approx({exchange: count / 3 for exchange, count in recorded.items()})


def test_p95_of_the_rounds_is_in_the_bucket_of_the_longest_of_three(watched: Watched) -> None:
    ((_, p95),) = watched.done["run:feddkd_round_duration_seconds:p95"]
    longest = max(line["seconds"] for line in watched.rounds)
    above = next(index for index, edge in enumerate(DURATION_BUCKETS_S) if longest <= edge)
    assert DURATION_BUCKETS_S[above - 1] < p95 <= DURATION_BUCKETS_S[above]


def test_prometheus_takes_every_expression_of_the_project(watched: Watched) -> None:
    assert set(watched.answers) == set(all_expressions())


def test_every_recording_and_every_panel_has_data_of_a_run_that_is_well(watched: Watched) -> None:
    empty = {expression.where for expression, answer in watched.answers.items() if not answer}
    assert not empty & {expression.where for expression in of_recordings()}
    assert empty & {expression.where for expression in of_panels()} == ONLY_WITH_A_CAUSE


def test_the_queries_of_the_pages_have_answers_unless_they_look_for_what_is_wrong(watched: Watched) -> None:
    for expression in of_pages():
        assert watched.answers[expression] or re.search(r"[<>=]=|[<>]", re.sub(r"\{[^}]*\}", "", expression.text))


def test_a_lost_site_is_counted_and_named(watched: Watched) -> None:
    assert by_label(watched.lost["feddkd_site_state"], "client") == {"site-a": 0, "site-b": 0, "site-c": 1}
    assert by_label(watched.lost["feddkd_clients"], "state") == {"lost": 1}
    assert [(labels["client"], value) for labels, value in watched.lost["panel"]] == [("site-c", 1)]
    lost = {labels["client"] for labels in watched.firing["FeddkdClientLost"]}
    assert "site-c" in lost
    assert "site-a" not in lost


def test_a_killed_server_raises_its_alert_and_one_that_was_done_does_not(watched: Watched) -> None:
    assert watched.instances_of("FeddkdServerDown") == {"killed"}


def test_a_run_that_paused_and_failed_raises_both_alerts(watched: Watched) -> None:
    assert watched.instances_of("FeddkdRunPaused") == {"long"}
    assert watched.instances_of("FeddkdRunFailed") == {"long"}


def test_a_completed_run_is_said(watched: Watched) -> None:
    assert watched.instances_of("FeddkdRunCompleted") == {"done"}


def test_only_the_delays_of_alerts_are_shortened() -> None:
    rules = yaml.safe_load(RULES.read_text())
    faster = hurried(rules, 600)
    assert {rule["for"] for group in faster["groups"] for rule in group["rules"] if "for" in rule} == {
        "100ms",
        "200ms",
        "500ms",
        "1000ms",
        "1500ms",
    }
    for group in (*rules["groups"], *faster["groups"]):
        for rule in group["rules"]:
            rule.pop("for", None)
    assert faster == rules
