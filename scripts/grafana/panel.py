"""What a panel of the Grafana dashboard consists of."""

from __future__ import annotations

from dataclasses import dataclass

RUN = 'instance=~"$instance"'
"""Selects the runs that the dashboard's variable names."""


OF_CLIENT = "* on (job, instance) group_left (client) feddkd_client_info"
"""Gives a client's series its id."""

STATE_COLORS = (
    ("waiting", "blue"),
    ("running", "green"),
    ("paused", "orange"),
    ("completed", "green"),
    ("failed", "red"),
    ("stopped", "yellow"),
)


@dataclass(frozen=True, slots=True)
class Query:
    """An expression, and what the legend calls its series.

    Attributes:
        expression: PromQL; `{RUN}` stands for the selection of runs.
    """

    expression: str
    legend: str = "{{instance}}"

    @property
    def promql(self) -> str:
        return self.expression.replace("RUN", RUN)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        kind: `stat`, `gauge`, `bars` and `table` show the newest value, `lines` its course.
        unit: by Grafana's name: `bytes`, `s`, `percentunit`, `short`, `none`.
        width: of the 24 columns of the dashboard.
        limits: values from which the panel turns yellow and red.
        worse_below: whether values below the limits are the bad ones.
        colors: of single series, by their legend.
    """

    title: str
    kind: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    width: int = 8
    limits: tuple[float, float] | None = None
    worse_below: bool = False
    colors: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]
