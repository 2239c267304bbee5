"""A real Prometheus scrapes real runs: it answers every query of the project, and its alerts fire.

Three servers run beside each other. `done` completes its rounds, is scraped, and ends. `killed` is killed amid its run. `long` loses a
site, pauses without its second one, and fails. Everything that Prometheus says meanwhile is kept for the tests.
"""

from __future__ import annotations

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
from prometheus_server import PrometheusServer, Sample, hurried, needs_prometheus
from promql import RULES, Expression, alerts, all_expressions, of_pages, of_panels, of_recordings
from served import ENDLESS, Served

from feddkd.observability.metrics import DURATION_BUCKETS_S
from feddkd.observability.run_folder import EXCHANGES, ROUNDS

pytestmark = [needs_prometheus, pytest.mark.timeout(300)]

ONLY_WITH_A_CAUSE = {"panel Which site is lost", "panel Outliers"}
"""What is empty as long as nothing is wrong."""


@dataclass
class Watched:
    """What Prometheus said.

    Attributes:
        exchanges, rounds: the record of `done`.
        done: recorded values of `done`, when its run was completed.
        instances: the address of each run's metrics.
        refused: what Prometheus found wrong with expressions.
        answers: to each expression while `long` ran with all of its sites.
        lost: by query, when `long` had lost one.
        fired: by alert, the labels of everything that it ever fired for.
        firing: the same of what it fired for in the end.
    """

    instances: dict[str, str] = field(default_factory=dict)
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[Expression, str] = field(default_factory=dict)
    answers: dict[Expression, list[Sample]] = field(default_factory=dict)
    done: dict[str, list[Sample]] = field(default_factory=dict)
    lost: dict[str, list[Sample]] = field(default_factory=dict)
    fired: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)
    firing: Mapping[str, list[dict[str, str]]] = field(default_factory=dict)

    def instance_of(self, run: Served) -> str:
        return self.instances[run.folder.name]

    def runs(self, found: list[dict[str, str]]) -> set[str]:
        """Name the runs of labels."""
        names = {instance: name for name, instance in self.instances.items()}
        return {names[labels["instance"]] for labels in found}


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    done = Served(folder / "done", 1, "rounds=3")
    killed = Served(folder / "killed", 1, f"rounds={ENDLESS}")
    long = Served(folder / "long", 3, f"rounds={ENDLESS}", "scheduler.min_clients=2")
    found = Watched()
    with ExitStack() as stack:
        for run in (done, killed, long):
            stack.callback(run.close)
            port = str(free_port())
            found.instances[run.folder.name] = f"127.0.0.1:{port}"
            run.start_server("--metrics-port", port, "--metrics-linger", "60")
        clients = {site: str(free_port()) for site in long.sites}
        for run in (done, killed, long):
            for site in run.sites:
                run.start_site(site, *(["--metrics-port", clients[site]] if run is long else []))
        targets = {"feddkd-server": [*found.instances.values()], "feddkd-client": [f"127.0.0.1:{port}" for port in clients.values()]}
        prometheus = stack.enter_context(PrometheusServer(folder / "prometheus", targets))
        kill_a_server(prometheus, killed, found)
        complete(prometheus, done, found)
        ask_everything(prometheus, long, found)
        lose_sites(prometheus, long, found)
        found.fired = {name: prometheus.fired(name) for name in alerts()}
        found.firing = {name: prometheus.fires(name) for name in alerts()}
        yield found


def kill_a_server(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Let a server die amid its rounds."""
    prometheus.wait_for(f'feddkd_run_state{{instance="{found.instance_of(run)}", state="running"}} == 1')
    run.kill("server")
    run.kill("site-a")


def complete(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Wait for the end of a run, ask about it, and end its process."""
    prometheus.wait_for(f'feddkd_run_state{{instance="{found.instance_of(run)}", state="completed"}} == 1')
    prometheus.wait_for_alert("FeddkdRunCompleted")
    for recording in of_recordings():
        # Rules are evaluated after scrapes: what is recorded has to be of the last one.
        newest = f'{recording.where}{{instance="{found.instance_of(run)}"}} == ({recording.text})'
        if recording.where in ("exchange:feddkd_wire_bytes:per_round", "run:feddkd_round_duration_seconds:p95"):
            found.done[recording.where] = prometheus.wait_for(newest)
    found.exchanges, found.rounds = run.record(EXCHANGES), run.record(ROUNDS)
    run.processes["server"].signal(signal.SIGTERM)
    prometheus.wait_for(f'up{{instance="{found.instance_of(run)}"}} == 0')


def ask_everything(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Ask every expression of the project while a run is well."""
    prometheus.wait_for(f'feddkd_rounds_total{{instance="{found.instance_of(run)}", outcome="completed"}} > 3')
    needed = {expression for expression in (*of_recordings(), *of_panels()) if expression.where not in ONLY_WITH_A_CAUSE}
    for expression in all_expressions():
        try:
            found.answers[expression] = prometheus.query(expression.text)
        except AssertionError as error:
            found.refused[expression] = str(error)
            continue
        if expression in needed:
            found.answers[expression] = prometheus.wait_for(expression.text)


def lose_sites(prometheus: PrometheusServer, run: Served, found: Watched) -> None:
    """Take two of three sites away, one after the other."""
    run.kill("site-c")
    prometheus.wait_for_alert("FeddkdClientLost")
    for query in ("feddkd_site_state", "feddkd_clients"):
        found.lost[query] = prometheus.query(f'{query}{{instance="{found.instance_of(run)}", state="lost"}}')
    found.lost["panel"] = next(prometheus.query(panel.text) for panel in of_panels() if panel.where == "panel Which site is lost")
    run.kill("site-b")
    for alert in ("FeddkdRunFailed", "FeddkdServerDown", "FeddkdManyClientsLost"):
        prometheus.wait_for_alert(alert)


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
    assert not watched.refused


def test_prometheus_refuses_an_expression_with_an_error(tmp_path: Path) -> None:
    with PrometheusServer(tmp_path / "prometheus", {}) as prometheus, pytest.raises(AssertionError, match="parse error"):
        prometheus.query("rate(feddkd_rounds_total)[5m")


def test_every_recording_and_every_panel_has_data_of_a_run_that_is_well(watched: Watched) -> None:
    empty = {expression.where for expression, answer in watched.answers.items() if not answer}
    assert not empty & {expression.where for expression in of_recordings()}
    assert empty & {expression.where for expression in of_panels()} <= ONLY_WITH_A_CAUSE


def test_the_queries_of_the_pages_have_answers_unless_they_look_for_what_is_wrong(watched: Watched) -> None:
    for expression in of_pages():
        assert watched.answers[expression] or re.search(r"[<>=]=|[<>]", re.sub(r"\{[^}]*\}", "", expression.text))


def test_a_lost_site_is_counted_and_named(watched: Watched) -> None:
    assert by_label(watched.lost["feddkd_site_state"], "client") == {"site-a": 0, "site-b": 0, "site-c": 1}
    assert by_label(watched.lost["feddkd_clients"], "state") == {"lost": 1}
    assert [(labels["client"], value) for labels, value in watched.lost["panel"]] == [("site-c", 1)]
    lost = {labels["client"] for labels in watched.fired["FeddkdClientLost"]}
    assert "site-c" in lost
    assert "site-a" not in lost


def test_a_killed_server_raises_its_alert_and_one_that_was_done_does_not(watched: Watched) -> None:
    assert watched.runs(watched.firing["FeddkdServerDown"]) == {"killed"}


def test_a_run_that_paused_and_failed_raises_both_alerts(watched: Watched) -> None:
    paused = [labels for labels in watched.fired["FeddkdRunPaused"] if labels["state"] == "paused"]  # all waited for their sites
    assert watched.runs(paused) == {"long"}
    assert watched.runs(watched.fired["FeddkdRunFailed"]) == {"long"}


def test_a_completed_run_is_said(watched: Watched) -> None:
    assert watched.runs(watched.fired["FeddkdRunCompleted"]) == {"done"}


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
