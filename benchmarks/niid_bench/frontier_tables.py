"""Write docs/frontier.md and its pictures from the results; `--check` fails if the page is not what the results say.

python benchmarks/niid_bench/frontier_tables.py [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench.cells import FRONTIER, FRONTIER_TIERS, ROOT, Cell
from niid_bench.frontier import FRESH_RESULT, GRPC_RESULT, RESULT, SEEDS, is_comparison
from niid_bench.frontier_outcomes import REFERENCE, UNIT_ROW, Frontier
from niid_bench.frontier_verdicts import (
    BUDGETS,
    FRESH_PARTITIONS,
    SPENT,
    against_rival,
    codec_time,
    fresh_targets,
    least_bytes,
    mini_targets,
    sampled_targets,
    thrown_away,
    verdict_table,
)
from niid_bench.grid import RESULTS, read_lines
from niid_bench.markdown import MISSING, accuracy, table
from niid_bench.pages import write
from niid_bench.tables import notes

PAGE = ROOT / "docs" / "frontier.md"
SUMMARY = ROOT / "docs" / "results.md"
SUMMARY_ROWS = ("feddkd_fp32", "feddkd_balanced", "feddkd_frugal", "fedavg_coded", "fedavg_piggyback")
SCRIPT = "benchmarks/niid_bench/frontier_tables.py"
TARGETS = (0.95, 0.97)
NO_RESULTS = "No results yet: `python benchmarks/niid_bench/frontier.py`."

Cells = Callable[[str, str], str]
"""What a table says of a row on a partition."""


def picture_name(tier: str) -> str:
    return f"frontier_{tier}.png"


def picture(found: Frontier) -> str:
    return f"![Test accuracy by bytes in units of a round of FedAvg, one panel a partition]({picture_name(found.tier)})"


def verdicts_section(mini: Frontier, sampled: Frontier) -> str:
    """Everything that was asked, and what was measured."""
    return "\n\n".join(
        [
            verdict_table(mini_targets(mini), ("c1", "c2", "dir0.1")),
            *(text for text in (least_bytes(mini), codec_time(mini), thrown_away(mini)) if text),
            "With sampled cohorts:",
            verdict_table(sampled_targets(sampled), ("c2",)),
        ]
    )


def fresh_section(lines: Sequence[dict[str, Any]], fresh_lines: Sequence[dict[str, Any]]) -> str:
    """The piggyback against its rival on other seeds; the unit is that of the main results."""
    if not fresh_lines:
        return NO_RESULTS
    unit = [line for line in lines if line["algorithm"] == UNIT_ROW]
    return verdict_table(fresh_targets(Frontier("mini", [*unit, *fresh_lines])), FRESH_PARTITIONS)


def rows_section() -> str:
    """What each row is."""
    return table(["row", ""], [[f"`{row}`", str(settings["what"])] for row, settings in FRONTIER.items()])


def tier_section(found: Frontier, *, comparison: bool = False) -> str:
    """Accuracy and bytes of the rows of a tier, as the verdicts have them."""
    rows = [row for row in found.algorithms if is_comparison(row) == comparison]
    if found.unit_bytes is None or not rows:
        return NO_RESULTS
    parts = [
        "**Bytes a round** in units; in brackets, the delivery of the final model to every client:",
        _by_partition(found, rows, partial(_units, found)),
        "**Final accuracy** in %, mean ± std over seeds:",
        _by_partition(found, rows, lambda row, partition: accuracy(found.final(row, partition), seeds=len(SEEDS))),
        f"**Difference to `{REFERENCE}`** at the end, in points, seed by seed, and the mean:",
        _by_partition(found, [row for row in rows if row != REFERENCE], lambda row, partition: _differences(found, row, partition)),
    ]
    for target in TARGETS:
        parts.append(f"**To {target:.0%}**: mean units, and how many times fewer than `{REFERENCE}`:")
        parts.append(_by_partition(found, rows, partial(_to_target, found, target)))
    return "\n\n".join([*parts, *filter(None, [notes(found)])])


def curves_section(found: Frontier) -> str:
    """Accuracy at equal bytes: picture, sentences, and a table for each partition."""
    if found.unit_bytes is None:
        return NO_RESULTS
    parts = [picture(found), against_rival(found)]
    for partition in found.partitions:
        rows = [row for row in found.algorithms if found.of(row, partition)]
        cells = [[f"`{row}`", *(_at_units(found, row, partition, units) for units in BUDGETS)] for row in rows]
        cells = [row for row in cells if set(row[1:]) != {MISSING}]
        parts.append(f"**{partition}**, accuracy in % by units; without rows whose first round takes more than the last column:")
        parts.append(table(["row", *(f"{units:g}" for units in BUDGETS)], cells))
    return "\n\n".join(parts)


def bytes_section(found: Frontier) -> str:
    """What codecs save in each direction, and what they take."""
    rows = [row for row in found.algorithms if (share := found.codec_share(row)) and share.mean > 0]
    if not rows:
        return NO_RESULTS
    cells = []
    for row in rows:
        lines = [own.line for own in found.all if own.cell.algorithm == row]
        share = found.codec_share(row)
        snapshots = [value.mean for part in found.partitions if (value := found.snapshot_share(row, part))]
        cells.append(
            [
                f"`{row}`",
                *(f"{_saving(lines, direction):.1f}" for direction in ("up", "down")),
                f"{statistics.fmean(snapshots):.0%}",
                MISSING if share is None else f"{share.mean:.1%}",
            ]
        )
    return table(["row", "times fewer bytes up", "down", "of all bytes, whole models", "codecs' share of the time"], cells)


def grpc_section(lines: Sequence[dict[str, Any]], grpc_lines: Sequence[dict[str, Any]]) -> str:
    """Whether cells that also ran over gRPC ended in the same model for the same bytes."""
    own = {Cell.of_line(line): line for line in lines}
    pairs = [(line, own[cell]) for line in grpc_lines if (cell := Cell.of_line(line)) in own]
    if not pairs:
        return "No cell has run over gRPC yet: `python benchmarks/niid_bench/frontier.py --engine grpc`."
    same = sum(line["model_sha256"] == other["model_sha256"] for line, other in pairs)
    gap = max(abs(line["cumulative_wire_bytes"][-1] / other["cumulative_wire_bytes"][-1] - 1) for line, other in pairs)
    cells = ", ".join(f"`{line['algorithm']}` on {line['partition']} seed {line['seed']}" for line, _ in pairs)
    what = f"{same} ended in the very same model; their bytes differ by at most {gap:.2%}"
    return f"Of {len(pairs)} cells that also ran over gRPC, {what}: {cells}."


def summary_section(found: Frontier) -> str:
    """Show the few rows that a reader needs first."""
    rows = [row for row in SUMMARY_ROWS if found.final(row, "c1")]
    if not rows:
        return NO_RESULTS
    partitions = [partition for partition in ("c1", "c2", "dir0.1") if partition in found.partitions]
    cells = [
        [
            f"{FRONTIER[row]['what']}",
            _rounds(found, row),
            _units(found, row, "c1").partition(" ")[0],
            *(accuracy(found.final(row, partition), seeds=len(SEEDS)) for partition in partitions),
        ]
        for row in rows
    ]
    return table(["12,000 MNIST images, ten clients", "rounds", "bytes a round", *(f"`{name}`" for name in partitions)], cells)


def _rounds(found: Frontier, row: str) -> str:
    """How many rounds a row has; where a partition has others, the fewest and the most."""
    counts = sorted({len(own.curve.rounds) for own in found.all if own.cell.algorithm == row})
    return " to ".join(map(str, counts[:1] + counts[1:][-1:]))


def _by_partition(found: Frontier, rows: Sequence[str], cell: Cells) -> str:
    return table(["row", *found.partitions], [[f"`{row}`", *(cell(row, partition) for partition in found.partitions)] for row in rows])


def _units(found: Frontier, row: str, partition: str) -> str:
    a_round, delivery = found.units_a_round(row, partition), found.delivery_units(row, partition)
    return MISSING if a_round is None or delivery is None else f"{a_round.mean:.3f} ({delivery.mean:.2f})"


def _differences(found: Frontier, row: str, partition: str) -> str:
    values = list(found.differences(row, partition).values())
    return f"{', '.join(f'{value:+.2f}' for value in values)}: **{statistics.fmean(values):+.2f}**" if values else MISSING


def _to_target(found: Frontier, target: float, row: str, partition: str) -> str:
    units = found.units_to(row, partition, target)
    reached = [value for value in units if value is not None]
    if not units:
        return MISSING
    if len(reached) < len(units):
        return f"n/a ({len(reached)} of {len(units)})"
    factors = found.times_fewer(row, partition, target)
    fewer = f" ({statistics.fmean(factors):.0f}x)" if factors and row != REFERENCE else ""
    return f"{statistics.fmean(reached):.2f}{fewer}"


def _at_units(found: Frontier, row: str, partition: str, units: float) -> str:
    """In brackets where the row's runs have ended for less than that."""
    text = accuracy(found.at_units(row, partition, units), seeds=len(SEEDS))
    ended = (found.units_in_all(row, partition) or 0.0) * SPENT < units
    return f"({text})" if ended and text != MISSING else text


def _saving(lines: Sequence[dict[str, Any]], direction: str) -> float:
    dense, sent = (sum(sum(line["traffic"][f"{kind}_bytes_{direction}"]) for line in lines) for kind in ("dense", "payload"))
    return dense / sent


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page and draw the pictures, or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the pictures go beside it")
    parser.add_argument("--summary", type=Path, default=SUMMARY, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=f"folder of {RESULT} and {GRPC_RESULT}")
    options = parser.parse_args(arguments)
    lines = read_lines(options.results / RESULT)
    mini, sampled = (Frontier(tier, lines) for tier in FRONTIER_TIERS)
    sections = {
        "frontier:verdicts": verdicts_section(mini, sampled),
        "frontier:fresh": fresh_section(lines, read_lines(options.results / FRESH_RESULT)),
        "frontier:rows": rows_section(),
        "frontier:mini": tier_section(mini),
        "frontier:curves": curves_section(mini),
        "frontier:comparison": tier_section(mini, comparison=True),
        "frontier:sampled": "\n\n".join([*([picture(sampled)] if sampled.unit_bytes else []), tier_section(sampled)]),
        "frontier:bytes": bytes_section(mini),
        "frontier:bytes_sampled": bytes_section(sampled),
        "frontier:grpc": grpc_section(lines, read_lines(options.results / GRPC_RESULT)),
    }
    summary = {"results:frontier": summary_section(mini)}
    up_to_date = write(options.page, sections, check=options.check, script=SCRIPT)
    up_to_date &= write(options.summary, summary, check=options.check, script=SCRIPT)
    if not options.check:
        from niid_bench.frontier_figure import draw

        for found in (mini, sampled):
            if found.unit_bytes is not None:
                draw(found, options.page.parent / picture_name(found.tier))
    return int(not up_to_date)


if __name__ == "__main__":
    sys.exit(main())
