"""Every PromQL expression of the project: of the rules, the dashboard, and the pages of documentation."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml
from doc_pages import ALL_PAGES, ROOT, blocks_of, name_of

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "feddkd.rules.yml"
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "feddkd.json"
RUNBOOK = ROOT / "docs" / "runbook.md"


@dataclass(frozen=True, slots=True)
class Expression:
    """Where an expression stands, and the expression with the dashboard's variables filled in."""

    where: str
    text: str


def rules() -> list[dict[str, Any]]:
    """Read the recording rules and the alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[dict[str, Any]]:
    """Read the panels of the dashboard, without its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def of_recordings() -> list[Expression]:
    return [Expression(rule["record"], rule["expr"]) for rule in rules() if "record" in rule]


def of_alerts() -> list[Expression]:
    return [Expression(name, rule["expr"]) for name, rule in alerts().items()]


def of_panels() -> list[Expression]:
    return [
        Expression(f"panel {panel['title']}", target["expr"].replace("$instance", ".*"))
        for panel in panels()
        for target in panel["targets"]
    ]


def of_pages() -> list[Expression]:
    return [
        Expression(f"{name_of(page)}, query {number}", block.text)
        for page in ALL_PAGES
        for number, block in enumerate((block for block in blocks_of(page) if block.language == "promql"), start=1)
    ]


def all_expressions() -> list[Expression]:
    return [*of_recordings(), *of_alerts(), *of_panels(), *of_pages()]


def metrics_in(expression: str) -> set[str]:
    """Name the metrics that feddkd or its process has to export, and the recorded series, for an expression."""
    return set(re.findall(r"\b(?:(?:run|exchange|client):)?(?:feddkd|process)_[\w:]+", expression))
