"""The numbers and words of a report that are not pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from feddkd.observability.run_folder import RunFolder
from feddkd.report import units
from feddkd.report.groups import ALGORITHM, SEED, Group, as_text, differing, settings_of

NOT_RECORDED = "not recorded"
SHORT_HASH = 12


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text below a header.

    Attributes:
        groups: to which group each row belongs, for its colour.
        strong: row and column of the cells that stand out.
        caption: what the page says of it.
    """

    header: list[str]
    rows: list[list[str]]
    groups: list[int]
    strong: frozenset[tuple[int, int]] = frozenset()
    caption: str = ""


def title(groups: Sequence[Group]) -> str:
    """The page's title when the user gives none."""
    first = groups[0].runs[0].config
    if len({(run.config.model.name, run.config.data.name) for group in groups for run in group.runs}) > 1:
        return f"{len(groups)} configurations compared"
    names = list(dict.fromkeys(group.runs[0].config.algorithm.name for group in groups))
    listed = ", ".join(names) if len(names) <= 4 else f"{len(names)} algorithms"
    return f"{listed}: {first.model.name} on {first.data.name}"


def subtitle(groups: Sequence[Group]) -> str:
    """How many runs the page is about, or which one."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) > 1:
        labels = f"{len(groups)} configurations" if len(groups) > 1 else "the same configuration"
        unfinished = sum(run.summary is None for run in runs)
        return f"{len(runs)} runs of {labels}" + (f", {unfinished} not finished" if unfinished else "")
    (run,) = runs
    state = "" if run.summary else f", not finished: {len(run.rounds)} of {run.config.rounds} rounds recorded"
    clients = f", {len(run.partition)} clients" if run.partition else ""
    return f"Run {run.path.resolve().name}{clients}{state}"


def headlines(run: RunFolder) -> list[tuple[str, str, str]]:
    """A single run's main numbers: name, value, and a word on it."""
    down, up = wire_bytes(run)
    digest = run.summary.model_sha256 if run.summary else None
    return [
        ("final accuracy", _text(final_accuracy(run), units.percent), ""),
        ("best accuracy", _text(best_accuracy(run), units.percent), "of any round"),
        ("rounds", str(len(run.rounds)), f"of {run.config.rounds}"),
        ("time", units.duration(seconds(run)), ""),
        ("on the wire", units.size(down + up), f"{units.size(down)} down, {units.size(up)} up"),
        ("gradient evaluations", _text(gradient_evaluations(run), units.count), "computed by all clients"),
        ("algorithm", run.config.algorithm.name, f"seed {run.config.seed}"),
        ("model", run.config.model.name, f"sha256 {digest[:SHORT_HASH]}" if digest else f"sha256 {NOT_RECORDED}"),
    ]


def runs(groups: Sequence[Group]) -> Table:
    """One row for each run."""
    header = ["run", "folder", "seed", "rounds", "final", "best", "down", "up", "time", "gradient evaluations", "model sha256"]
    rows = []
    for group in groups:
        for run in group.runs:
            down, up = wire_bytes(run)
            rows.append(
                [
                    group.label,
                    run.path.resolve().name,
                    str(run.config.seed),
                    f"{len(run.rounds)}" if run.summary else f"{len(run.rounds)} of {run.config.rounds}",
                    _text(final_accuracy(run), units.percent),
                    _text(best_accuracy(run), units.percent),
                    units.size(down),
                    units.size(up),
                    units.duration(seconds(run)),
                    _text(gradient_evaluations(run), units.count),
                    _text(run.summary and run.summary.model_sha256, lambda digest: digest[:SHORT_HASH]),
                ]
            )
    return Table(header, rows, [index for index, group in enumerate(groups) for _ in group.runs])


def summary(groups: Sequence[Group]) -> Table:
    """One row for each group: means over its runs, and the range of its accuracy."""
    header = ["configuration", "rounds", "final accuracy", "best accuracy", "on the wire", "time", "gradient evaluations", "runs"]
    rows = [
        [
            group.label,
            " or ".join(map(str, sorted({len(run.rounds) for run in group.runs}))),
            _spread([final_accuracy(run) for run in group.runs]),
            _spread([best_accuracy(run) for run in group.runs]),
            _mean([float(sum(wire_bytes(run))) for run in group.runs], units.size),
            _mean([seconds(run) for run in group.runs], units.duration),
            _mean([gradient_evaluations(run) for run in group.runs], units.count),
            str(len(group.runs)),
        ]
        for group in groups
    ]
    return Table(header, rows, list(range(len(groups))))


def differences(groups: Sequence[Group]) -> Table | None:
    """The settings that differ between groups, one column for each group; None if there is nothing to compare."""
    settings = [settings_of(group.runs[0]) for group in groups]
    keys = [key for key in differing(settings) if key not in (ALGORITHM, SEED)]
    rows = [[key, *(as_text(own[key]) if key in own else "" for own in settings)] for key in keys]
    return Table(["setting", *(group.label for group in groups)], rows, [0] * len(rows)) if rows else None


def configurations(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Label and resolved configuration of each group, from its first run."""
    return [(_with_seeds(group), group.runs[0].config.to_toml()) for group in groups]


def versions(groups: Sequence[Group]) -> Table | None:
    """Versions of what the results depend on, each with the labels of the runs that used it if not all did."""
    found: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for run in group.runs:
            for name, version in (run.summary.versions if run.summary else {}).items():
                found.setdefault(name, {}).setdefault(version, []).append(f"{group.label}, seed {run.config.seed}")
    rows = [
        [name, "; ".join(version if len(used) == 1 else f"{version} ({', '.join(who)})" for version, who in used.items())]
        for name, used in found.items()
    ]
    return Table(["package", "version"], rows, [0] * len(rows)) if rows else None


def final_accuracy(run: RunFolder) -> float | None:
    """Of the model that the run ended with, or of the newest one that was evaluated."""
    if run.summary and run.summary.final_accuracy is not None:
        return run.summary.final_accuracy
    found = _accuracies(run)
    return found[-1] if found else None


def best_accuracy(run: RunFolder) -> float | None:
    """The greatest accuracy of any round."""
    if run.summary and run.summary.best_accuracy is not None:
        return run.summary.best_accuracy
    return max(_accuracies(run), default=None)


def wire_bytes(run: RunFolder) -> tuple[int, int]:
    """Down and up, of the whole run so far."""
    if run.summary:
        return run.summary.total_wire_bytes_down, run.summary.total_wire_bytes_up
    return sum(line.wire_bytes_down for line in run.exchanges), sum(line.wire_bytes_up for line in run.exchanges)


def seconds(run: RunFolder) -> float:
    """Of the whole run so far."""
    recorded = run.summary.seconds if run.summary else None
    return recorded or math.fsum(line.seconds for line in run.rounds)


def gradient_evaluations(run: RunFolder) -> float | None:
    """Gradient evaluations that all clients computed, or None for a record that does not say."""
    if run.summary and run.summary.gradient_evaluations is not None:
        return float(run.summary.gradient_evaluations)
    found = [line.gradient_evaluations for line in run.exchanges if line.gradient_evaluations is not None]
    return float(sum(found)) if found else None


def _accuracies(run: RunFolder) -> list[float]:
    """On the test set, or on what the clients hold out where there is none."""
    return run.accuracy or [line.client_accuracy for line in run.rounds if line.client_accuracy is not None]


def _with_seeds(group: Group) -> str:
    return f"{group.label}, {'seeds' if len(group.runs) > 1 else 'seed'} {group.seeds}"


def _text(value: Any, write: Callable[[Any], str]) -> str:
    return NOT_RECORDED if value is None else write(value)


def _mean(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return write(statistics.fmean(known)) if known else NOT_RECORDED


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NOT_RECORDED
    mean = units.percent(statistics.fmean(known))
    return mean if len(known) == 1 else f"{mean} ({units.percent(min(known))} to {units.percent(max(known))})"
