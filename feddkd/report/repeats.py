"""Finds records of one configuration with one seed: copies of a run, and runs that should agree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from feddkd.observability.run_folder import RunFolder
from feddkd.report.groups import SEED, settings_of

SHORT_HASH = 12


def without_copies(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[str]]:
    """Keep one record of each seed and final model, so that a copy does not count as a repetition.

    Returns:
        The runs that are kept, and for each other one what it is a copy of.
    """
    kept: dict[tuple[str, str], RunFolder] = {}
    copies: list[str] = []
    for number, run in enumerate(runs):
        key = _setting(run), _model(run) or f"run {number}"
        first = kept.setdefault(key, run)
        if first is not run:
            copies.append(f"{run.path} has seed {run.config.seed} and the model of {first.path}, and is counted once")
    return list(kept.values()), copies


def contradictions(runs: Sequence[RunFolder]) -> Iterator[str]:
    """Name the runs of one configuration and seed whose models differ."""
    first: dict[str, RunFolder] = {}
    for run in runs:
        other = first.setdefault(_setting(run), run)
        if other is not run:
            models = " and ".join(f"{(_model(each) or 'none yet')[:SHORT_HASH]} in {each.path}" for each in (other, run))
            yield f"seed {run.config.seed} is counted twice, its models differ: {models}"


def _setting(run: RunFolder) -> str:
    """Everything that was configured, the seed included."""
    return json.dumps({**settings_of(run.config), SEED: run.config.seed}, sort_keys=True)


def _model(run: RunFolder) -> str | None:
    return run.summary.model_sha256 if run.summary else None
