"""The numbers and words of a report that are not pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from feddkd.config import ACCURACY, MainMetric
from feddkd.config.main_metric import code_of, title_of
from feddkd.observability.budgets import Spread, spread
from feddkd.observability.run_folder import RunFolder
from feddkd.report import units
from feddkd.report.groups import ALGORITHM, SEED, Group, as_text, differing, settings_of
from feddkd.report.names import spoken_name
from feddkd.report.repeats import contradictions
from feddkd.report.table import NOT_RECORDED, Data, Table, Value, best_cells
from feddkd.text import shown_score

SHORT_HASH = 12

BYTES, EVALUATIONS = "bytes", "gradient evaluations"
"""Headers that several tables share."""

MOMENTS = ("mean", "sample_deviation", "min", "max")
"""What CSV says of a number over several runs."""

COSTS = "Bytes: on the wire, all clients. Time: all rounds together, without joining and delivery."
"""What the columns of these names count, in every table."""


def title(groups: Sequence[Group]) -> str:
    """The page's title when the user gives none."""
    first = groups[0].runs[0].config
    if len({(run.config.model.name, run.config.data.name) for group in groups for run in group.runs}) > 1:
        return f"{len(groups)} configurations compared"
    codes = dict.fromkeys(group.runs[0].config.algorithm.name for group in groups)
    names = [spoken_name(code) for code in codes]
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
    metric = run.metric
    digest = run.summary.model_sha256 if run.summary else None
    return [
        (f"final {metric.title}", _text(final_score(run), metric.text), ""),
        (f"best {metric.title}", _text(best_score(run), metric.text), "of any round"),
        *_other_headlines(run),
        ("rounds", str(len(run.rounds)), f"of {run.config.rounds}"),
        ("time", units.duration(seconds(run)), "of all rounds"),
        (BYTES, units.size(down + up), f"{units.size(down)} down, {units.size(up)} up"),
        (EVALUATIONS, _text(gradient_evaluations(run), units.count), "computed by all clients"),
        ("algorithm", spoken_name(run.config.algorithm.name), f"seed {run.config.seed}"),
        ("model", run.config.model.name, f"sha256 {digest[:SHORT_HASH]}" if digest else f"sha256 {NOT_RECORDED}"),
    ]


def _other_headlines(run: RunFolder) -> list[tuple[str, str, str]]:
    """The further metrics of the final model."""
    found = {name: other_score(run, name) for name in run.metric.others}
    return [(f"final {title_of(name)}", shown_score(name, score), "") for name, score in found.items() if score is not None]


def score_headers(metric: MainMetric) -> list[str]:
    """Heads of the columns of the final and the best value."""
    return [f"{which} {metric.title}{metric.unit}" for which in ("final", "best")]


def _other_headers(metric: MainMetric) -> list[str]:
    """Heads of the columns of further metrics of the final model."""
    others = [MainMetric(name) for name in metric.others]
    return [f"final {other.title}{other.unit}" for other in others]


def runs(groups: Sequence[Group]) -> Table:
    """One row for each run."""
    metric = groups[0].metric
    header = [
        *("configuration", "folder", "seed", "rounds", *score_headers(metric), *_other_headers(metric)),
        *("bytes down", "bytes up", "time", EVALUATIONS),
    ]
    pairs = [(group, run) for group in groups for run in group.runs]
    rows = [[group.label, *_run_cells(run)] for group, run in pairs]
    data = Data(_run_fields(metric), [[group.label, group.code, *_run_values(run)] for group, run in pairs])
    colors = [group.look.color for group, _ in pairs]
    caption = f"{COSTS} {_contradictions(groups)}".strip()
    return Table(header, rows, colors, caption=caption, data=data, name="runs", title="Every run")


def _run_fields(metric: MainMetric) -> list[str]:
    return [
        *("configuration", "name", "folder", "seed", "finished", "rounds", f"final_{metric.code}"),
        *(f"best_{metric.code}", "wire_bytes_down", "wire_bytes_up", "seconds", "gradient_evaluations"),
        *("model_sha256", *(f"final_{code_of(name)}" for name in metric.others)),
    ]


def _contradictions(groups: Sequence[Group]) -> str:
    return " ".join(f"{reason[0].upper()}{reason[1:]}." for group in groups for reason in contradictions(group.runs))


def _run_cells(run: RunFolder) -> list[str]:
    down, up = wire_bytes(run)
    return [
        run.path.resolve().name,
        str(run.config.seed),
        f"{len(run.rounds)}" if run.summary else f"{len(run.rounds)} of {run.config.rounds}",
        _text(final_score(run), run.metric.cell),
        _text(best_score(run), run.metric.cell),
        *(_text(other_score(run, name), MainMetric(name).cell) for name in run.metric.others),
        units.size(down),
        units.size(up),
        units.duration(seconds(run)),
        _text(gradient_evaluations(run), units.count),
    ]


def _run_values(run: RunFolder) -> list[Value]:
    return [
        run.path.resolve().name,
        run.config.seed,
        "yes" if run.summary else "no",
        len(run.rounds),
        final_score(run),
        best_score(run),
        *wire_bytes(run),
        seconds(run),
        gradient_evaluations(run),
        run.summary.model_sha256 if run.summary else None,
        *(other_score(run, name) for name in run.metric.others),
    ]


def summary(groups: Sequence[Group]) -> Table:
    """Make one row for each group: means over its runs, and the sample deviation of the metric."""
    metric = groups[0].metric
    header = [
        *("configuration", "rounds", *score_headers(metric), BYTES),
        *("time", EVALUATIONS, "n"),
    ]
    finals = [_spread(final_score(run) for run in group.runs) for group in groups]
    bests = [_spread(best_score(run) for run in group.runs) for group in groups]
    rows = [
        [
            group.label,
            " or ".join(map(str, sorted({len(run.rounds) for run in group.runs}))),
            score_text(final, metric),
            score_text(best, metric),
            _mean([float(sum(wire_bytes(run))) for run in group.runs], units.size),
            _mean([seconds(run) for run in group.runs], units.duration),
            _mean([gradient_evaluations(run) for run in group.runs], units.count),
            str(len(group.runs)),
        ]
        for group, final, best in zip(groups, finals, bests, strict=True)
    ]
    data = Data(_summary_fields(metric), list(map(_summary_values, groups, finals, bests)))
    strong = {*best_scores(2, finals, metric), *best_scores(3, bests, metric)}
    counts = [len(group.runs) for group in groups]
    caption = " ".join(filter(None, [score_caption(counts, metric), COSTS, _contradictions(groups)]))
    colors = [group.look.color for group in groups]
    return Table(header, rows, colors, frozenset(strong), caption, data, "results", "Whole runs")


def _summary_fields(metric: MainMetric) -> list[str]:
    return [
        *("configuration", "name", "algorithm", "seeds", "n", "rounds"),
        *(f"{which}_{metric.code}_{part}" for which in ("final", "best") for part in MOMENTS),
        *("wire_bytes_mean", "seconds_mean", "gradient_evaluations_mean"),
    ]


def _summary_values(group: Group, final: Spread | None, best: Spread | None) -> list[Value]:
    evaluations = _spread(gradient_evaluations(run) for run in group.runs)
    return [
        group.label,
        group.code,
        group.runs[0].config.algorithm.name,
        group.seeds,
        len(group.runs),
        statistics.mean(len(run.rounds) for run in group.runs),
        *spread_values(final),
        *spread_values(best),
        statistics.fmean(sum(wire_bytes(run)) for run in group.runs),
        statistics.fmean(seconds(run) for run in group.runs),
        evaluations.mean if evaluations else None,
    ]


def spread_values(found: Spread | None) -> list[Value]:
    """Return mean, sample deviation, lowest and highest, for CSV."""
    if found is None:
        return [None] * 4
    return [found.mean, found.deviation, found.lowest, found.highest]


def score_text(found: Spread | None, metric: MainMetric = ACCURACY) -> str:
    """Write the mean and, of several runs, the sample deviation; of a share of 1 in percent without its sign."""
    if found is None:
        return NOT_RECORDED
    deviation = "" if found.deviation is None else f" ± {metric.cell_of_deviation(found.deviation)}"
    return metric.cell(found.mean) + deviation


def best_scores(column: int, found: Sequence[Spread | None], metric: MainMetric = ACCURACY) -> set[tuple[int, int]]:
    """Find the cells of a column of `score_text` with the best mean, as it is printed."""
    texts = [metric.cell(spread.mean) if spread else "" for spread in found]
    means = [spread.mean if spread else None for spread in found]
    return set(best_cells(column, texts, means, min if metric.minimised else max))


def score_caption(counts: Sequence[int], metric: MainMetric = ACCURACY) -> str:
    """Say what the values of the metric in a table are, given the number of runs of each row."""
    which = ", the lowest" if metric.minimised else ""
    if max(counts) == 1:
        return f"One run each (n = 1). Bold: the best {metric.title}{which}."
    runs = f"n = {counts[0]} runs" if len(set(counts)) == 1 else "n runs"
    return (
        f"{metric.heading}: mean ± sample standard deviation over {runs} with different seeds; "
        f"other numbers are means. Bold: the best mean {metric.title}{which}."
    )


def differences(groups: Sequence[Group]) -> Table | None:
    """The settings that differ between groups, one column for each group; None if there is nothing to compare."""
    settings = [settings_of(group.runs[0].config) for group in groups]
    keys = [key for key in differing(settings) if key not in (ALGORITHM, SEED)]
    rows = [[key, *(as_text(own[key]) if key in own else "" for own in settings)] for key in keys]
    header = ["setting", *(group.label for group in groups)]
    data = Data(["setting", *(group.code for group in groups)], [list(row) for row in rows])
    return Table(header, rows, [], data=data, name="settings", title="Settings that differ") if rows else None


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
    title = "Versions of the packages that the results depend on"
    return Table(["package", "version"], rows, [], name="versions", title=title) if rows else None


def final_score(run: RunFolder) -> float | None:
    """Of the model that the run ended with, or of the newest one that was evaluated."""
    if run.summary and run.summary.final_score is not None:
        return run.summary.final_score
    return run.scores[-1] if run.scores else None


def best_score(run: RunFolder) -> float | None:
    """The best value of any round."""
    if run.summary and run.summary.best_score is not None:
        return run.summary.best_score
    return run.metric.best(run.scores)


def other_score(run: RunFolder, name: str) -> float | None:
    """A further metric of the model that the run ended with, or of the newest one that was evaluated."""
    if run.summary and name in run.summary.scores:
        return run.summary.scores[name]
    found = [line.client_score(name) if line.score(name) is None else line.score(name) for line in run.rounds]
    return next((score for score in reversed(found) if score is not None), None)


def wire_bytes(run: RunFolder) -> tuple[int, int]:
    """Down and up, of the whole run so far."""
    if run.summary:
        return run.summary.total_wire_bytes_down, run.summary.total_wire_bytes_up
    return sum(line.wire_bytes_down for line in run.exchanges), sum(line.wire_bytes_up for line in run.exchanges)


def seconds(run: RunFolder) -> float:
    """Of all rounds so far. What a run waits for clients says nothing of its algorithm."""
    return math.fsum(line.seconds for line in run.rounds)


def gradient_evaluations(run: RunFolder) -> float | None:
    """Gradient evaluations that all clients computed, or None for a record that does not say."""
    if run.summary and run.summary.gradient_evaluations is not None:
        return float(run.summary.gradient_evaluations)
    found = [line.gradient_evaluations for line in run.exchanges if line.gradient_evaluations is not None]
    return float(sum(found)) if found else None


def _with_seeds(group: Group) -> str:
    return f"{group.label}, {'seeds' if len(group.runs) > 1 else 'seed'} {group.seeds}"


def _text(value: Any, write: Callable[[Any], str]) -> str:
    return NOT_RECORDED if value is None else write(value)


def _mean(values: Sequence[float | None], write: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    return write(statistics.fmean(known)) if known else NOT_RECORDED


def _spread(values: Iterable[float | None]) -> Spread | None:
    """Over the runs that recorded a value; None if none did."""
    return spread(value for value in values if value is not None)
