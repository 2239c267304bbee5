"""What was asked of the frontier, and whether the numbers show it: met, level, missed or not measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from niid_bench.cells import FRONTIER
from niid_bench.frontier import DEFAULT_PARTITIONS, SEEDS, is_comparison
from niid_bench.frontier_outcomes import REFERENCE, RIVAL, Frontier
from niid_bench.markdown import table

BUDGETS = (0.5, 1.0, 1.5, 2.5, 3.6, 5.0)
"""Units at which rows are read."""

SPENT = 1.03
"""A run that has spent nearly so much counts as having spent it."""

NOT_MEASURED = "not measured"
VERDICTS = ("met", "level", "missed", "undecided", NOT_MEASURED)
WIDEST_GAP = 1.5
"""The widest gap that a target allows: how far below its bytes one gets is said for this gap."""

PIGGYBACK = "fedavg_piggyback"
FRESH_PARTITIONS = ("c2", "dir0.1")
CODED = ("feddkd_balanced", "feddkd_frugal", "feddkd_quarter")
"""FedDKD's rows with codecs."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that was asked, on some partitions.

    Attributes:
        judge: returns what was measured on a partition, beginning with the verdict.
    """

    text: str
    partitions: Sequence[str]
    judge: Callable[[str], str]


def verdict_table(targets: Sequence[Target], partitions: Sequence[str]) -> str:
    """Targets by partitions, and in one sentence what they come to."""
    rows = []
    for target in targets:
        asked = {partition: target.judge(partition) for partition in partitions if partition in target.partitions}
        rows.append([target.text, *(asked.get(partition, "no target") for partition in partitions)])
    cells = [cell for row in rows for cell in row[1:]]
    counts = {verdict: sum(cell.startswith(verdict) for cell in cells) for verdict in VERDICTS}
    said = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items() if count or verdict in ("met", "missed"))
    return f"{table(['target', *partitions], rows)}\n\n**{sum(counts.values())} targets: {said}.**"


def mini_targets(found: Frontier) -> list[Target]:
    """What was asked with ten clients that all take part."""
    everywhere = DEFAULT_PARTITIONS["mini"]
    return [
        _bytes_target(found, "feddkd_balanced", 1.0, 0.5, everywhere),
        _bytes_target(found, "feddkd_frugal", 0.5, 0.7, everywhere),
        _bytes_target(found, "feddkd_quarter", 0.25, 1.5, ("c1", "c2")),
        *(_fewer_bytes_target(found, row, 20.0, 0.95) for row in CODED),
        _ahead_target(found, "feddkd_quarter", ("c1",)),
        _ahead_target(found, PIGGYBACK, ("c2", "dir0.1")),
    ]


def fresh_targets(found: Frontier) -> list[Target]:
    """What is asked again on seeds that the piggyback's rule was not changed after."""
    return [_ahead_target(found, PIGGYBACK, FRESH_PARTITIONS, units) for units in (1.0, 1.5, 2.5)]


def sampled_targets(found: Frontier) -> list[Target]:
    """What was asked where each round draws few of many clients."""
    rows = ("feddkd_balanced", "feddkd_balanced_int8", "feddkd_frugal", "feddkd_frugal_bf16")
    return [_bytes_target(found, row, 1.0, 1.0, DEFAULT_PARTITIONS["sampled"]) for row in rows]


def _bytes_target(found: Frontier, row: str, units: float, points: float, partitions: Sequence[str]) -> Target:
    def judge(partition: str) -> str:
        spent, differences = found.units_a_round(row, partition), found.differences(row, partition)
        if spent is None or not differences:
            return NOT_MEASURED
        mean = statistics.fmean(differences.values())
        is_met = round(spent.mean, 3) <= units and round(mean, 2) >= -points
        verdict, worst = "met" if is_met else "missed", min(differences.values())
        return f"{verdict}: {spent.mean:.3f} units, {mean:+.2f} points (worst {worst:+.2f}){_seeds(len(differences))}"

    return Target(f"`{row}`: at most {units:g}x FedAvg's bytes a round, within {_points(points)} of `{REFERENCE}`", partitions, judge)


def _points(points: float) -> str:
    return f"{points:g} point{'s' if points != 1 else ''}"


def _fewer_bytes_target(found: Frontier, row: str, times: float, accuracy: float) -> Target:
    def judge(partition: str) -> str:
        if not found.of(row, partition) or not found.of(REFERENCE, partition):
            return NOT_MEASURED
        factors = found.times_fewer(row, partition, accuracy)
        if factors is None:
            return f"missed: not every seed reaches {accuracy:.0%}"
        mean = statistics.fmean(factors)
        return f"{'met' if mean >= times else 'missed'}: {mean:.0f} times fewer (least {min(factors):.0f}){_seeds(len(factors))}"

    return Target(
        f"`{row}`: {accuracy:.0%} for {times:g} times fewer bytes than `{REFERENCE}`",
        DEFAULT_PARTITIONS["mini"],
        judge,
    )


def _ahead_target(found: Frontier, row: str, partitions: Sequence[str], units: float = 2.5) -> Target:
    def judge(partition: str) -> str:
        duel = found.duel(row, partition, units)
        if duel is None:
            return NOT_MEASURED
        verdict = {"ahead": "met", "behind": "missed"}.get(duel.outcome, duel.outcome)
        points = "no round done" if duel.points is None else f"{duel.points:+.2f} points"
        return f"{verdict}: {points}{_seeds(duel.theirs.count)}"

    return Target(f"`{row}`: ahead of `{RIVAL}` at {units:g} units", partitions, judge)


def _seeds(count: int) -> str:
    return "" if count == len(SEEDS) else f" (n={count})"


def against_rival(found: Frontier) -> str:
    """Where FedDKD's rows and the piggyback are ahead of FedAvg with its best codec, level and behind, at equal bytes."""
    lines = []
    for partition in found.partitions:
        said = [text for row in (*CODED, PIGGYBACK) if (text := _standing(found, row, partition))]
        if said:
            lines += [f"- **{partition}**{_end_of_rival(found, partition)}", *(f"  - {text}." for text in said)]
    return "\n".join(lines) or "Not measured yet."


def _standing(found: Frontier, row: str, partition: str) -> str:
    """For instance "`feddkd_frugal` is ahead at 2.5 (+3.10), level at 3.6 (+0.20)"."""
    by_outcome: dict[str, list[str]] = {}
    spent = found.units_in_all(row, partition) or 0.0
    for units in BUDGETS:
        duel = found.duel(row, partition, units) if units <= spent * SPENT else None
        if duel is not None:
            points = "no round done" if duel.points is None else f"{duel.points:+.2f}"
            by_outcome.setdefault(duel.outcome, []).append(f"{units:g} ({points})")
    said = [f"{outcome} at {', '.join(places)}" for outcome, places in by_outcome.items()]
    return f"`{row}` is {', '.join(said)}" if said else ""


def _end_of_rival(found: Frontier, partition: str) -> str:
    end = found.units_in_all(RIVAL, partition)
    return "" if end is None or end >= BUDGETS[-1] else f" (`{RIVAL}` ends at {end:.1f} units and is read there from then on)"


def least_bytes(found: Frontier) -> str:
    """The row of FedDKD with the fewest bytes a round that stays near FedDKD without codecs on c1 and c2."""
    candidates = []
    for row in FRONTIER:
        if is_comparison(row) or not row.startswith("feddkd"):
            continue
        gaps = [found.differences(row, partition) for partition in ("c1", "c2")]
        spent = found.units_a_round(row, "c1")
        if spent is not None and all(gaps) and all(statistics.fmean(gap.values()) >= -WIDEST_GAP for gap in gaps):
            candidates.append((spent.mean, row))
    if not candidates:
        return ""
    units, row = min(candidates)
    where = f"within {_points(WIDEST_GAP)} of `{REFERENCE}` on c1 and c2"
    return f"The fewest bytes {where}, of the rows measured: `{row}`, {units:.2f} units a round."


def codec_time(found: Frontier) -> str:
    """Which share of a round codecs take."""
    shares = {row: share for row in found.algorithms if (share := found.codec_share(row)) and share.mean > 0}
    if not shares:
        return "Codec time: not measured yet."
    said = ", ".join(f"`{row}` {share.mean:.0%}" for row, share in shares.items())
    worst = max(share.mean for share in shares.values())
    verdict = "met" if worst < 0.1 else "missed"
    asked = f"Target: codec time under 10 % of a round: **{verdict}**"
    return f"{asked}. Time of all clients' and the server's codecs, as a share of the run: {said}."


def thrown_away(found: Frontier) -> str:
    """How many rounds of FedDKD without codecs start over from the previous model, so that the uploads of models buy nothing."""
    said = []
    for partition in found.partitions:
        counts = [_rounds_started_over(own.line["metrics"]) for own in found.of(REFERENCE, partition)]
        if counts:
            rounds = len(found.of(REFERENCE, partition)[0].curve.rounds)
            said.append(f"{', '.join(map(str, counts))} of {rounds} on {partition}")
    return f"Rounds in which `{REFERENCE}` starts from the previous model and discards the average: {'; '.join(said)}." if said else ""


def _rounds_started_over(metrics: dict[str, list[float | None]]) -> int:
    return sum(value == 1.0 for value in metrics.get("started_over", []))
