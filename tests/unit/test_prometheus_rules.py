"""The rules, alerts, dashboard and runbook that the project ships: complete, and about metrics that exist."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml
from doc_pages import ROOT, text_of
from prometheus_client import Metric
from promql import PROMETHEUS, RULE_TESTS, RUNBOOK, Expression, alerts, all_expressions, dashboard, metrics_in, panels, rules

from feddkd.config import Config
from feddkd.observability.client_metrics import ClientMetrics
from feddkd.observability.prometheus import PrometheusMetrics

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus")


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


@needs_promtool
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_and_stay_silent_as_their_unit_tests_say(file: Any) -> None:
    promtool("test", "rules", str(file))


def unit_test_cases() -> list[tuple[str, bool]]:
    """List the alert of each case of the unit tests, and whether it fires there."""
    cases = [case for file in RULE_TESTS for case in yaml.safe_load(file.read_text())["tests"]]
    return [(asked["alertname"], bool(asked["exp_alerts"])) for case in cases for asked in case["alert_rule_test"]]


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_fires_in_one_unit_test_and_is_silent_in_another(alert: str) -> None:
    assert {fires for name, fires in unit_test_cases() if name == alert} == {True, False}


@pytest.mark.parametrize(("alert", "rule"), alerts().items())
def test_every_alert_says_how_bad_it_is_whom_it_is_about_and_what_to_do(alert: str, rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Feddkd([A-Z][a-z]+)+", alert)
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{alert.lower()}"
    if alert != "FeddkdNoTargets":  # nothing is there that could be named
        assert "{{ $labels." in rule["annotations"]["summary"]


def test_the_runbook_has_a_section_for_each_alert_and_an_alert_for_each_section() -> None:
    sections = re.findall(r"^### (Feddkd\w+)$", text_of(RUNBOOK), flags=re.MULTILINE)
    assert len(sections) == len(set(sections))
    assert set(sections) == set(alerts())


@pytest.mark.parametrize("alert", alerts())
def test_a_section_of_the_runbook_explains_confirms_and_helps(alert: str) -> None:
    section = re.split(r"^##", text_of(RUNBOOK).split(f"### {alert}\n")[1], flags=re.MULTILINE)[0]
    for part in ("**Meaning.**", "**Confirm.**", "**Do.**", "**If nothing is done.**"):
        assert section.count(part) == 1


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The names of all series: of the metrics, and of the recording rules."""

    def names(family: Metric) -> list[str]:
        ends = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
        return [family.name + end for end in ends.get(family.type, ("",))]

    registries = (PrometheusMetrics(Config()).registry, ClientMetrics("site-a").registry)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    return {name for registry in registries for family in registry.collect() for name in names(family)} | recorded


@pytest.mark.parametrize("expression", all_expressions(), ids=lambda expression: expression.where)
def test_every_expression_is_about_series_that_exist(expression: Expression, exported: set[str]) -> None:
    used = metrics_in(expression.text)
    assert used <= exported
    assert used or re.search(r"\b(up|ALERTS)\b", expression.text)


def test_the_dashboard_is_what_the_list_of_panels_says() -> None:
    command = [str(ROOT / "scripts" / "dashboard"), "--check"]
    subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, check=True, timeout=60)


def test_grafana_can_place_and_name_every_panel() -> None:
    found = dashboard()
    everything = found["panels"]
    assert found["uid"] == "feddkd"
    assert found["schemaVersion"] >= 36
    assert len({panel["id"] for panel in everything}) == len(everything)
    boxes = [panel["gridPos"] for panel in everything]
    assert all(box["x"] >= 0 and box["x"] + box["w"] <= 24 and box["h"] > 0 for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_has_a_unit_an_explanation_and_one_source(panel: dict[str, Any]) -> None:
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["description"].split()) >= 5
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    assert panel["targets"]
    assert all(target["datasource"] == source for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_source_and_the_server_are_variables_that_grafana_fills_in() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["instance"]["query"] == "label_values(feddkd_run_state, instance)"
    assert set(variables) == {"datasource", "instance"}


def test_the_provisioned_source_and_folder_are_those_that_the_dashboard_needs() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    (provider,) = yaml.safe_load((folder / "dashboards" / "feddkd.yml").read_text())["providers"]
    assert provider["type"] == "file"
