"""MLflow: a run on the server or in the database that `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from feddkd.observability.trackers.tracker import TrackedRun, Tracker
from feddkd.registry import TRACKERS

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "feddkd"
"""Where `MLFLOW_EXPERIMENT_NAME` says nothing."""

MOST_PARAMETERS = 100
"""In one request."""


@TRACKERS.register("mlflow")
class Mlflow(Tracker):
    """Writes metrics whose step is the round, those below `by_bytes/` with the bytes as their step, and the configuration."""

    extra: ClassVar[str] = "mlflow"
    modules: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")

    _client: MlflowClient
    _run: str

    def begin(self, run: TrackedRun) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it creates
        self._client = MlflowClient()
        if run.known_as and self._goes_on(run.known_as):
            return self._run
        made = self._client.create_run(self._experiment(), run_name=run.run_id, tags=dict(run.tags))
        self._run = made.info.run_id
        parameters = [Param(name, value) for name, value in run.parameters.items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=parameters[start : start + MOST_PARAMETERS])
        return self._run

    def log(self, round_number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        metrics = [Metric(name, value, now_ms, round_number) for name, value in values.items()]
        metrics += [Metric(f"by_bytes/{name}", value, now_ms, wire_bytes) for name, value in by_bytes.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, *, completed: bool, model: Path | None) -> None:
        if model is not None:
            self._client.set_tag(self._run, "feddkd.model", str(model))
        self._client.set_terminated(self._run, "FINISHED" if completed else "FAILED")

    def _goes_on(self, run: str) -> bool:
        """Go on with the run of an earlier process, unless somebody deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run, status="RUNNING")
        except MlflowException:
            return False
        self._run = run
        return True

    def _experiment(self) -> str:
        """Return the id of the experiment, which is created if there is none."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))
