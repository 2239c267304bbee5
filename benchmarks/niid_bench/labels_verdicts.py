"""What was asked where labels are few or wrong, and whether the numbers show it: met, level, missed or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from niid_bench.cells import TITLES
from niid_bench.frontier_verdicts import NOT_MEASURED, Target
from niid_bench.labels import FEW, MILD, SEEDS, SKEWED, WRONG
from niid_bench.labels_outcomes import LabelOutcomes, Lead
from niid_bench.markdown import MISSING, table

OURS = "feddkd"
TEACHERS = "feddkd_teachers"
AUTO = "feddkd_auto"
CONTROL = "control"
CONTROLS = (CONTROL, "control_slow", "control_bootstrap")
"""The control as it is, and what a user would try against wrong labels."""

SELF_TRAINING = ("self_training", "self_training_all")
RIVALS = (*CONTROLS, *SELF_TRAINING, "fedavg_x20", "semifl")
CHOICES_OF_AUTO = ("feddkd_holdout", "self_training", CONTROL)

OVER_CONTROL = {"3%": 7.0, "10%": 2.5}
"""Points above the control's best round that were asked for, by case."""

OVER_CONTROL_CIFAR = {"10%": 5.0}
TO_ALL_LABELS = 1.3
"""Points below FedDKD with all labels that were allowed."""

AUTO_TOLERANCE = 1.0
"""Points that count as noise between two runs where clients hold out other examples."""

COLLAPSED = 0.5
"""A run has collapsed if its last round has less than this share of its best round's accuracy."""

BOUNDARIES = (
    *((case, partition) for partition in MILD for case in (*FEW, "noise40")),
    *((case, partition) for case in ("1%", "noise20", "own20", "own30") for partition in SKEWED),
)
"""Cases and partitions of which nothing was asked but to say what happens."""


def few_targets(found: LabelOutcomes) -> list[Target]:
    """What was asked of few labels on MNIST."""
    return [
        *(_control_target(found, case, points) for case, points in OVER_CONTROL.items()),
        *(_all_labels_target(found, case) for case in OVER_CONTROL),
        *(_rivals_target(found, case, RIVALS, OURS) for case in OVER_CONTROL),
    ]


def wrong_targets(found: LabelOutcomes) -> list[Target]:
    """What was asked of wrong labels on MNIST."""
    return [_rivals_target(found, case, CONTROLS, row) for case in WRONG for row in (OURS, TEACHERS)]


def cifar_targets(found: LabelOutcomes) -> list[Target]:
    """What was asked on CIFAR-10 as JPEG."""
    return [*(_control_target(found, case, points) for case, points in OVER_CONTROL_CIFAR.items()), _no_collapse_target(found)]


def auto_targets(found: LabelOutcomes) -> list[Target]:
    """What was asked of the choice of teachers."""
    return [_auto_target(found, case) for case in ("1%", *FEW)]


def _control_target(found: LabelOutcomes, case: str, points: float) -> Target:
    text = f"{case_title(case)}: `{OURS}` at least {points:g} points above the best round of every control"
    return _lead_target(text, SKEWED, lambda partition: found.least_lead(case, OURS, partition, CONTROLS), points, names_rival=True)


def _all_labels_target(found: LabelOutcomes, case: str) -> Target:
    text = f"{case_title(case)}: `{OURS}` within {TO_ALL_LABELS:g} points of itself with all labels"
    return _lead_target(
        text, SKEWED, lambda partition: found.lead(case, OURS, partition, OURS, at_best=False, rival_case="all"), -TO_ALL_LABELS
    )


def _rivals_target(found: LabelOutcomes, case: str, rivals: Sequence[str], row: str) -> Target:
    who = "control" if rivals == CONTROLS else "rival"
    text = f"{case_title(case)}: `{row}` at or above the best round of every {who}"
    return _lead_target(text, SKEWED, lambda partition: found.least_lead(case, row, partition, rivals), 0.0, names_rival=True)


def _auto_target(found: LabelOutcomes, case: str) -> Target:
    choices = ", ".join(f"`{row}`" for row in CHOICES_OF_AUTO)
    text = f"{case_title(case)}: `{AUTO}` within {AUTO_TOLERANCE:g} point of the best of {choices} at the end"
    judged = SKEWED if case == "1%" else (*SKEWED, *MILD)
    return _lead_target(
        text,
        judged,
        lambda partition: found.least_lead(case, AUTO, partition, CHOICES_OF_AUTO, at_best=False),
        -AUTO_TOLERANCE,
        names_rival=True,
    )


def _lead_target(
    text: str, partitions: Sequence[str], lead_on: Callable[[str], Lead | None], points: float, *, names_rival: bool = False
) -> Target:
    """A target that is met where the mean lead is at least so many points."""

    def judge(partition: str) -> str:
        lead = lead_on(partition)
        if lead is None:
            return NOT_MEASURED
        rival = f" to `{lead.rival}`" if names_rival else ""
        return f"{_verdict(lead, points)}: {said_lead(lead)}{rival}"

    return Target(text, partitions, judge)


def _verdict(lead: Lead, points: float) -> str:
    """Level is said only where no lead was asked for: there the sign of a seed decides nothing."""
    if lead.mean >= points:
        return "met"
    return "level" if points == 0 and lead.is_level else "missed"


def said_lead(lead: Lead) -> str:
    """For instance "+8.31 points (worst +7.90)"."""
    count = len(lead.points)
    note = f" (worst {lead.worst:+.2f})" if count > 1 else ""
    return f"{lead.mean:+.2f} points{note}{'' if count == len(SEEDS) else f' (n={count})'}"


def _no_collapse_target(found: LabelOutcomes) -> Target:
    def judge(partition: str) -> str:
        runs = [own for own in found.all if own.cell.partition == partition and own.cell.algorithm in (OURS, TEACHERS, CONTROL)]
        if not runs:
            return NOT_MEASURED
        fallen = sum((own.curve.final_accuracy or 0.0) < COLLAPSED * (own.curve.best_accuracy or 0.0) for own in runs)
        return f"{'missed' if fallen else 'met'}: {fallen} of {len(runs)} runs"

    return Target(f"all cases: no run of FedDKD or the control ends below {COLLAPSED:.0%} of its best round", SKEWED, judge)


def boundaries(found: LabelOutcomes) -> str:
    """Where nothing was asked: FedDKD beside the best round of the strongest other row, and what that comes to."""
    rows, ahead, behind = [], 0, 0
    for case, partition in BOUNDARIES:
        forms = [row for row in (OURS, TEACHERS) if found.final(case, row, partition)]
        leads = {row: found.least_lead(case, row, partition, RIVALS) for row in forms}
        for row, lead in leads.items():
            if lead is not None:
                ahead, behind = ahead + (lead.mean > 0), behind + (lead.mean < 0)
                rows.append(
                    [
                        TITLES[partition],
                        case_title(case),
                        f"`{row}`",
                        *_beside(found, case, row, partition),
                        f"`{lead.rival}`",
                        said_lead(lead),
                    ]
                )
    if not rows:
        return "Not measured yet."
    header = ["partition", "labels", "row", "its last round", "best round of `control`", "strongest other row", "lead over its best round"]
    return f"{table(header, rows)}\n\n**Of these {len(rows)}, FedDKD is above every other row in {ahead}, and below one in {behind}.**"


def _beside(found: LabelOutcomes, case: str, row: str, partition: str) -> list[str]:
    values = (found.final(case, row, partition), found.best(case, CONTROL, partition))
    return [MISSING if value is None else f"{100 * value.mean:.2f}" for value in values]


def case_title(case: str) -> str:
    """A case in words."""
    if case == "all":
        return "all labels"
    if case.endswith("%"):
        return f"{case[:-1]} % of the labels"
    if case.startswith("own"):
        return f"{case[3:]} % wrong, own classes"
    return f"{case[5:]} % wrong"
