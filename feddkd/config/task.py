"""The table `[task]`: what a prediction, a loss and a metric are.

The settings of a task are in its own file in `feddkd/tasks`; `name` chooses their class.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from feddkd.config.named import ChosenByName, NamedTable
from feddkd.config.table import ImportPath
from feddkd.registry import TASKS

MetricName = Annotated[str, StringConstraints(strict=True, pattern=r"^[a-z][a-z0-9_]{0,63}$")] | ImportPath
"""A metric of `feddkd/tasks/metrics.py`, or `package.module:function`."""


LOWER_IS_BETTER = frozenset({"loss", "mae", "mse", "rmse", "mape"})
"""Metrics of which a smaller value is better; of all others a larger one is."""


class TaskTable(NamedTable):
    """What all tasks have in common."""

    metric: MetricName = Field(
        "loss",
        description="the metric that decides which round is the best, and that stop_at and patience follow; loss is always there",
    )
    metrics: Annotated[tuple[MetricName, ...], Field(max_length=50, fail_fast=True, strict=False)] = Field(
        (),
        description='further metrics of every evaluation, by torchmetrics: "f1", "auroc", ..., or package.module:function for your own',
    )
    lower_is_better: bool | None = Field(
        None,
        description="whether a smaller value of `metric` is better; default: true for loss, mae, mse, rmse and mape",
    )

    @model_validator(mode="after")
    def _metrics_are_named_once(self) -> Self:
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics = {list(self.metrics)}: a metric is named twice")
        return self

    @property
    def minimised(self) -> bool:
        """Whether a smaller value of `metric` is better."""
        return self.metric in LOWER_IS_BETTER if self.lower_is_better is None else self.lower_is_better


class CustomTaskConfig(TaskTable):
    """A task of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides those of every task, as the TOML file has them."""
        return dict(self.model_extra or {})


TaskConfig = Annotated[NamedTable, ChosenByName(TASKS, CustomTaskConfig, default="classification")]
"""The settings of one task; a table without a name is that of classification."""
