"""The `exact` tier of docs/labels.md: NIID-Bench's whole protocol on CIFAR-10 as JPEG, with all labels."""

from __future__ import annotations

import statistics

from niid_bench.cells import published
from niid_bench.frontier_verdicts import NOT_MEASURED, Target, verdict_table
from niid_bench.labels import EXACT, SINGLE_SEEDS
from niid_bench.labels_names import row_name
from niid_bench.labels_outcomes import LabelOutcomes
from niid_bench.labels_verdicts import OURS, no_collapse_target
from niid_bench.markdown import MISSING, accuracy, table

CASE = "all"
ASKED = {"c1": 55.0, "c2": 60.0, "dir0.5": 72.0}
"""Percent at the best round that FedDKD was asked to reach, by partition."""

PUBLISHED_OF = "cifar10"
"""The data set that others publish numbers of: the original, not the JPEG files."""


def exact_section(found: LabelOutcomes) -> str:
    """What was asked of the whole protocol, and what every row reached."""
    return f"{verdict_table(exact_targets(found), tuple(ASKED))}\n\n{_rows_table(found)}"


def exact_targets(found: LabelOutcomes) -> list[Target]:
    """An accuracy by partition, and no collapse."""
    asked = ", ".join(f"{percent:g} % on {partition}" for partition, percent in ASKED.items())
    return [
        Target(f"{row_name(OURS)} at its best round: {asked}", tuple(ASKED), lambda partition: _accuracy_verdict(found, partition)),
        no_collapse_target(found, tuple(ASKED)),
    ]


def _accuracy_verdict(found: LabelOutcomes, partition: str) -> str:
    best = found.best(CASE, OURS, partition)
    if best is None:
        return NOT_MEASURED
    is_met = round(100 * best.mean, 2) >= ASKED[partition]
    percent, _, _ = _best_published(partition)
    seeds = len(SINGLE_SEEDS)
    return f"{'met' if is_met else 'missed'}: {accuracy(best, seeds=seeds)}; best published of the original CIFAR-10: {percent:.1f}"


def _rows_table(found: LabelOutcomes) -> str:
    """Every row that is planned or has run, and the best that is published."""
    names = list(dict.fromkeys([*EXACT.rows, *found.by_case[CASE].algorithms]))
    rows = []
    for partition in ASKED:
        rows += [[partition, row_name(name), *_reached(found, name, partition)] for name in names]
        percent, name, source = _best_published(partition)
        best = f"{percent:.1f} (`{name}`, {source})"
        rows.append([partition, "best published, of the original CIFAR-10", MISSING, MISSING, best, MISSING, MISSING])
    header = ["partition", "row", "rounds", "last round", "best round", "MB on the wire", "thousand gradient evaluations"]
    return table(header, rows)


def _reached(found: LabelOutcomes, row: str, partition: str) -> list[str]:
    curves = [own.curve for own in found.of(CASE, row, partition)]
    if not curves:
        return [NOT_MEASURED, *[MISSING] * 4]
    seeds = len(SINGLE_SEEDS)
    return [
        str(len(curves[0].rounds)),
        accuracy(found.final(CASE, row, partition), seeds=seeds),
        accuracy(found.best(CASE, row, partition), seeds=seeds),
        f"{statistics.fmean(curve.wire_bytes[-1] for curve in curves) / 1e6:,.0f}",
        f"{statistics.fmean(curve.gradient_evaluations[-1] for curve in curves) / 1e3:,.0f}",
    ]


def _best_published(partition: str) -> tuple[float, str, str]:
    """The highest of all sources: percent, the algorithm and the source."""
    return max((values[partition][0], name, source) for source, name, values in published(PUBLISHED_OF) if partition in values)
