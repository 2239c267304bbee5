"""What was asked where labels are few or wrong, and whether the numbers show it: met, level, missed or not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from niid_bench.cells import LABELS, TITLES
from niid_bench.frontier_verdicts import NOT_MEASURED, Target
from niid_bench.labels import CASES, FEW, MILD, SEEDS, SKEWED, WRONG, case_of
from niid_bench.labels_names import row_name
from niid_bench.labels_outcomes import LabelOutcomes, Lead
from niid_bench.markdown import MISSING, table
from niid_bench.outcomes import Outcome

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

AT_CHANCE = 0.15
"""A run has also collapsed if it ends below this: of ten classes, chance is 10 %."""

STEPPING = (*(row for row in LABELS if row.startswith("feddkd")), *CONTROLS)
"""The rows whose steps may fail: all of FedDKD, and the controls."""

ONE_EXCHANGE = ("fedavg", "fedavg_tuned", "fedavgm", "fedadagrad")
"""Algorithms of one exchange a round, in as many rounds as FedDKD."""

FRUGAL, CODED = "feddkd_frugal", "fedavg_coded"
"""FedDKD and FedAvg with the same codecs."""

UNALIKE = ("c1", "c2")
CIFAR_PARTITIONS = ("c1", *SKEWED, *MILD)

BOUNDARIES = (
    *((case, partition) for partition in MILD for case in (*FEW, "noise40")),
    *((case, partition) for case in ("1%", "noise20", "own20", "own30") for partition in SKEWED),
)
"""Cases and partitions of which nothing was asked but to say what happens."""

UNKNOWN_BOUNDARIES = (
    "Not measured on this data set: 1 % of the labels, 20 % wrong labels, labels that are wrong among a client's own classes, "
    "and few or wrong labels with Dirichlet 0.5 or equal shares. What was measured has tables of its own."
)


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
    return [
        *(_control_target(found, case, points) for case, points in OVER_CONTROL_CIFAR.items()),
        _one_exchange_target(found),
        _equal_bytes_target(found),
        no_collapse_target(found, CIFAR_PARTITIONS),
    ]


def auto_targets(found: LabelOutcomes) -> list[Target]:
    """What was asked of the choice of teachers."""
    return [_auto_target(found, case) for case in ("1%", *FEW)]


def _control_target(found: LabelOutcomes, case: str, points: float) -> Target:
    text = f"{case_title(case)}: {row_name(OURS)} at least {points:g} points above the best round of every control"
    return _lead_target(text, SKEWED, lambda partition: found.least_lead(case, OURS, partition, CONTROLS), points, names_rival=True)


def _all_labels_target(found: LabelOutcomes, case: str) -> Target:
    text = f"{case_title(case)}: {row_name(OURS)} within {TO_ALL_LABELS:g} points of itself with all labels"
    return _lead_target(
        text, SKEWED, lambda partition: found.lead(case, OURS, partition, OURS, at_best=False, rival_case="all"), -TO_ALL_LABELS
    )


def _rivals_target(found: LabelOutcomes, case: str, rivals: Sequence[str], row: str) -> Target:
    who = "control" if rivals == CONTROLS else "rival"
    text = f"{case_title(case)}: {row_name(row)} at or above the best round of every {who}"
    return _lead_target(text, SKEWED, lambda partition: found.least_lead(case, row, partition, rivals), 0.0, names_rival=True)


def _auto_target(found: LabelOutcomes, case: str) -> Target:
    choices = ", ".join(row_name(row) for row in CHOICES_OF_AUTO)
    text = f"{case_title(case)}: {row_name(AUTO)} within {AUTO_TOLERANCE:g} point of the best of {choices} at the end"
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
        rival = f" to {row_name(lead.rival)}" if names_rival else ""
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
    where = "" if lead.megabytes is None else f" at {lead.megabytes:,.0f} MB"
    return f"{lead.mean:+.2f} points{where}{note}{'' if count == len(SEEDS) else f' (n={count})'}"


def _one_exchange_target(found: LabelOutcomes) -> Target:
    """Not measured before every rival has run; what has run is said then, too."""

    def judge(partition: str) -> str:
        lead = found.least_lead("all", OURS, partition, ONE_EXCHANGE)
        if lead is None:
            return NOT_MEASURED
        missing = [row_name(row) for row in ONE_EXCHANGE if found.lead("all", OURS, partition, row) is None]
        verdict = f"{NOT_MEASURED} beside {', '.join(missing)}" if missing else _ahead_verdict(lead)
        return f"{verdict}: {said_lead(lead)} to {row_name(lead.rival)}"

    return Target(f"all labels: {row_name(OURS)} above the best round of every algorithm of one exchange, at equal rounds", UNALIKE, judge)


def _equal_bytes_target(found: LabelOutcomes) -> Target:
    def judge(partition: str) -> str:
        lead = found.lead_at_equal_bytes("all", FRUGAL, partition, CODED)
        return NOT_MEASURED if lead is None else f"{_ahead_verdict(lead)}: {said_lead(lead)}"

    return Target(f"all labels: {row_name(FRUGAL)} above the best round of {row_name(CODED)}, at equal bytes", UNALIKE, judge)


def _ahead_verdict(lead: Lead) -> str:
    """To be above is more than to be as good."""
    if lead.mean > 0:
        return "met"
    return "level" if lead.standing == "level" else "missed"


def no_collapse_target(found: LabelOutcomes, partitions: Sequence[str]) -> Target:
    """All that has run of FedDKD and the controls, in all cases."""

    def judge(partition: str) -> str:
        runs = [own for own in found.all if own.cell.partition == partition and own.cell.algorithm in STEPPING]
        if not runs:
            return NOT_MEASURED
        collapsed = [own for own in runs if _has_collapsed(own)]
        fallen = [f"{row_name(own.cell.algorithm)} ({case_title(case_of(own.cell))}, seed {own.cell.seed})" for own in collapsed]
        named = f": {', '.join(fallen)}" if fallen else ""
        return f"{'missed' if fallen else 'met'}: {len(fallen)} of {len(runs)} runs{named}"

    what = f"below {COLLAPSED:.0%} of its best round, or below {AT_CHANCE:.0%}"
    return Target(f"all cases: no run of a row of FedDKD or a control ends {what}", partitions, judge)


def _has_collapsed(outcome: Outcome) -> bool:
    final, best = outcome.curve.final_score or 0.0, outcome.curve.best_score or 0.0
    return final < max(COLLAPSED * best, AT_CHANCE)


def not_ahead(found: LabelOutcomes) -> str:
    """Where FedDKD is level with another row or behind it, in plain words; at equal rounds, and with codecs at equal bytes."""
    lines, leads = [], []
    for case in CASES:
        for partition in CIFAR_PARTITIONS:
            others = {row_name(row): found.lead(case, OURS, partition, row) for row in (*RIVALS, *ONE_EXCHANGE)}
            coded = {row_name(row): found.lead_at_equal_bytes(case, FRUGAL, partition, row) for row in (CODED, *ONE_EXCHANGE)}
            leads += [lead for lead in (*others.values(), *coded.values()) if lead is not None]
            said = [f"{row_name(row)} is {text}" for row, own in ((OURS, others), (FRUGAL, coded)) if (text := _not_ahead(own))]
            if said:
                lines.append(f"- **{sentence_case(case_title(case))}, {partition}:** {'; '.join(said)}.")
    if not leads:
        return "No two of these rows have been measured."
    counts = {standing: sum(lead.standing == standing for lead in leads) for standing in ("ahead", "level", "behind")}
    sums = ", ".join(f"{standing} in {count}" for standing, count in counts.items())
    return "\n".join([*lines, *([""] if lines else []), f"**Of these {len(leads)} comparisons: {sums}.**"])


def _not_ahead(leads: Mapping[str, Lead | None]) -> str:
    """For instance "behind control (SGD on labels): -0.51 points (n=1), level with `fedavg`: +0.02 points (worst -0.10)"."""
    words = {"behind": "behind", "level": "level with"}
    found = [(words.get(lead.standing), rival, lead) for rival, lead in leads.items() if lead is not None]
    return ", ".join(f"{word} {rival}: {said_lead(lead)}" for word, rival, lead in sorted(found, key=lambda each: str(each[0])) if word)


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
                        row_name(row),
                        *_beside(found, case, row, partition),
                        row_name(lead.rival),
                        said_lead(lead),
                    ]
                )
    if not rows:
        return UNKNOWN_BOUNDARIES
    best = f"best round of {row_name(CONTROL)}"
    header = ["partition", "labels", "row", "its last round", best, "strongest other row", "lead over its best round"]
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


def sentence_case(text: str) -> str:
    """With a capital letter, as a heading has it."""
    return text[0].upper() + text[1:]
