"""Weights & Biases: a run of the project that `WANDB_PROJECT` names; offline where no key is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from feddkd.observability.trackers.tracker import TrackedRun, Tracker
from feddkd.registry import TRACKERS

if TYPE_CHECKING:
    from wandb import Run

PROJECT = "feddkd"
"""Where `WANDB_PROJECT` says nothing."""

INIT_TIMEOUT_S = 20.0


@TRACKERS.register("wandb")
class Wandb(Tracker):
    """Writes metrics with `round` as their axis, those below `by_bytes/` with `bytes/total`, and the configuration.

    The run has the id of feddkd's run, so a resumed one goes on there.
    """

    extra: ClassVar[str] = "wandb"
    modules: ClassVar[tuple[str, ...]] = ("wandb",)

    _run: Run

    def begin(self, run: TrackedRun) -> str:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # its own words would stand inside the table of rounds
        # Without a key, and without a word of the user's, it would ask for one on the terminal.
        is_mute = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.run_id,
            name=os.environ.get("WANDB_NAME") or run.run_id,
            resume="allow",
            dir=str(run.folder),
            mode="offline" if is_mute else None,
            config=dict(run.parameters),
            tags=[run.tags[name][-64:] for name in ("algorithm", "model", "data")],
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, init_timeout=INIT_TIMEOUT_S
            ),
        )
        self._run.define_metric("*", step_metric="round")
        self._run.define_metric("by_bytes/*", step_metric="bytes/total")
        return run.run_id

    def log(self, round_number: int, wire_bytes: int, values: Mapping[str, float], by_bytes: Mapping[str, float]) -> None:
        self._run.log({"round": round_number, **values, **{f"by_bytes/{name}": value for name, value in by_bytes.items()}})

    def end(self, *, completed: bool, model: Path | None) -> None:
        if model is not None:
            self._run.summary["model"] = str(model)
        self._run.finish(exit_code=0 if completed else 1)
