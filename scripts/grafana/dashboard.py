"""Writes deploy/grafana/dashboards/feddkd.json from the list of panels; with --check it compares."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panel import Panel, Query
from panels import ROWS

FILE = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards" / "feddkd.json"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TYPES = {"stat": "stat", "gauge": "gauge", "bars": "bargauge", "table": "table", "lines": "timeseries"}
NEWEST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": NEWEST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "gauge": {"reduceOptions": NEWEST},
    "bars": {"reduceOptions": NEWEST, "orientation": "horizontal", "displayMode": "gradient"},
    "table": {"showHeader": True},
    "lines": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "multi", "sort": "desc"}},
}
LINES = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 5, "showPoints": "never", "spanNulls": False}
HEIGHT = 7


def query_of(query: Query, ref_id: str, kind: str) -> Dataquery:
    """Ask for the course of an expression, or for its newest value alone."""
    made = Dataquery().expr(query.promql).legend_format(query.legend).ref_id(ref_id).datasource(SOURCE)
    if kind == "lines":
        return made.range()
    return made.instant().format(PromQueryFormat.TABLE if kind == "table" else PromQueryFormat.TIME_SERIES)


def thresholds_of(panel: Panel) -> builders.ThresholdsConfig:
    """Turn a panel green, yellow and red at its limits."""
    steps = [models.Threshold(color="green")]
    if panel.limits is not None:
        first, second = panel.limits
        if panel.worse_below:
            steps = [models.Threshold(color="red"), models.Threshold(second, "yellow"), models.Threshold(first, "green")]
        else:
            steps += [models.Threshold(first, "yellow"), models.Threshold(second, "red")]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def panel_of(panel: Panel, number: int) -> builders.Panel:
    """Build a panel; the dashboard places it."""
    made = builders.Panel().id(number).type(TYPES[panel.kind]).title(panel.title).description(panel.description)
    made.datasource(SOURCE).unit(panel.unit).height(HEIGHT).span(panel.width).thresholds(thresholds_of(panel))
    made.options(OPTIONS[panel.kind] | ({"textMode": "name"} if panel.colors else {}))
    if panel.kind == "lines":
        made.custom(LINES)
    if panel.unit == "percentunit":
        made.min(0)
    if panel.kind == "gauge":
        made.max(1)
    for index, query in enumerate(panel.queries):
        made.with_target(query_of(query, chr(ord("A") + index), panel.kind))
    for name, color in panel.colors:
        made.override_by_name(name, [models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": color})])
    if panel.kind == "table":
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True, "alertstate": True, "state": True}
        made.with_transformation(models.DataTransformerConfig("organize", options={"excludeByName": hidden}))
    return made


def dashboard() -> str:
    """Return the dashboard as Grafana imports it."""
    made = builders.Dashboard("feddkd").uid("feddkd").tags(["feddkd"]).refresh("10s").time("now-1h", "now").timezone("browser")
    made.description("A federation: progress, accuracy, what a round costs, and its sites.").editable()
    made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    instance = builders.QueryVariable("instance").label("Server").query("label_values(feddkd_run_state, instance)")
    instance.datasource(SOURCE).multi(True).include_all(True).all_value(".*").refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made.with_variable(instance.current(models.VariableOption(text=["All"], value=["$__all"])))
    number = 0
    for row in ROWS:
        number += 1
        made.with_row(builders.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made.with_panel(panel_of(panel, number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> None:
    """Write the file, or exit with a message if what is committed differs."""
    generated = dashboard()
    if sys.argv[1:] != ["--check"]:
        FILE.write_text(generated, encoding="utf-8")
        return
    committed = FILE.read_text(encoding="utf-8")
    if committed != generated:
        sys.stderr.writelines(difflib.unified_diff(committed.splitlines(True), generated.splitlines(True), "committed", "generated"))
        sys.exit(f"{FILE} is out of date: run scripts/dashboard")


if __name__ == "__main__":
    main()
