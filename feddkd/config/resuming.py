"""Decides which settings may differ when a run goes on: at the server that resumes it, and at a client that joins it again."""

from __future__ import annotations

from feddkd.config import Config
from feddkd.config.table import flatten

FREE_KEYS = ("rounds", "data.root", "scheduler.durability", "scheduler.resume_grace_s")
"""Settings that may differ when a run goes on; so may all of `[runtime]`. None of them changes a round's model, but for
`rounds` where the schedule of the learning rate ends with the last one."""


def settings_that_stay(config: Config) -> dict[str, object]:
    """Return the settings of a run that must stay equal while it goes on, by dotted key."""
    found = flatten(config.model_dump(mode="json", exclude_none=True))
    free = set(FREE_KEYS) - ({"rounds"} if config.training.depends_on_rounds else set())
    return {key: value for key, value in found.items() if key not in free and not key.startswith("runtime.")}
