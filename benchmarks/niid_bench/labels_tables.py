"""Write docs/labels.md and its picture from the results; `--check` fails if the page is not what the results say.

python benchmarks/niid_bench/labels_tables.py [--check]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from niid_bench import labels_bytes_figure, labels_figure
from niid_bench.cells import LABELS, ROOT
from niid_bench.frontier_verdicts import verdict_table
from niid_bench.grid import RESULTS, read_lines
from niid_bench.labels import CASES, FEW, MILD, RESULT, SEEDS, SKEWED
from niid_bench.labels_exact import exact_section
from niid_bench.labels_names import ROW_NAMES, row_name
from niid_bench.labels_outcomes import LabelOutcomes
from niid_bench.labels_verdicts import (
    AUTO,
    CIFAR_PARTITIONS,
    CONTROL,
    OURS,
    UNALIKE,
    auto_targets,
    boundaries,
    case_title,
    cifar_targets,
    few_targets,
    not_ahead,
    said_lead,
    sentence_case,
    wrong_targets,
)
from niid_bench.markdown import MISSING, accuracy, table
from niid_bench.pages import write

PAGE = ROOT / "docs" / "labels.md"
README = ROOT / "README.md"
PICTURE = "labels_few.png"
BYTES_PICTURE = "labels_cifar_bytes.png"
SCRIPT = "benchmarks/niid_bench/labels_tables.py"
NO_RESULTS = "No results yet: `python benchmarks/niid_bench/labels.py`."
NO_CIFAR_RESULTS = "No results yet: `python benchmarks/niid_bench/labels.py --data cifar10_jpeg`."

FEW_CASES = ("all", "10%", "3%", "1%")
WRONG_CASES = ("noise20", "noise40", "noise60", "own20", "own30")
JUDGED = "feddkd_holdout"
"""The row that says how good teachers are: of FedDKD, with examples held out."""


def verdicts_section(mnist: LabelOutcomes, cifar: LabelOutcomes) -> str:
    """Everything that was asked, and what was measured."""
    return "\n\n".join(
        [
            "MNIST:",
            verdict_table([*few_targets(mnist), *wrong_targets(mnist)], SKEWED),
            "CIFAR-10 as JPEG:",
            verdict_table(cifar_targets(cifar), CIFAR_PARTITIONS),
        ]
    )


def picture_section(found: LabelOutcomes) -> str:
    """The picture, if there is anything to draw."""
    if not labels_figure.has_points(found):
        return NO_RESULTS
    return f"![Test accuracy by the share of images that have a label, with two classes a client and with Dirichlet 0.1]({PICTURE})"


def bytes_section(found: LabelOutcomes) -> str:
    """The picture of CIFAR-10, if there is anything to draw."""
    if not labels_bytes_figure.has_points(found):
        return NO_CIFAR_RESULTS
    return f"![Test accuracy on CIFAR-10 as JPEG by bytes on the wire, with one class and with two classes a client]({BYTES_PICTURE})"


def rows_section() -> str:
    """What each row is."""
    rows = [[_with_code(row), str(settings["what"])] for row, settings in LABELS.items()]
    return table(["row", ""], rows)


def _with_code(row: str) -> str:
    """The name of a row, and the code name that result files and commands have."""
    return f"{ROW_NAMES[row]} (`{row}`)" if row in ROW_NAMES else f"`{row}`"


def cases_section(found: LabelOutcomes, cases: Sequence[str]) -> str:
    """One table a case: every row that has run, on every partition."""
    parts = [f"**{sentence_case(case_title(case))}**\n\n{_case_table(found, case)}" for case in cases if found.by_case[case].all]
    return "\n\n".join([*parts, *filter(None, [notes(found)])]) or NO_RESULTS


def _case_table(found: LabelOutcomes, case: str) -> str:
    outcomes = found.by_case[case]
    rows = [[row_name(row), *(_both(found, case, row, partition) for partition in outcomes.partitions)] for row in outcomes.algorithms]
    return table(["row", *outcomes.partitions], rows)


def _both(found: LabelOutcomes, case: str, row: str, partition: str) -> str:
    """The last round, and the best one after a slash."""
    final, best = found.final(case, row, partition), found.best(case, row, partition)
    if final is None or best is None:
        return MISSING
    deviation = "" if final.deviation is None else f" ± {100 * final.deviation:.2f}"
    note = "" if final.count == len(SEEDS) else f" (n={final.count})"
    return f"{100 * final.mean:.2f}{deviation} / {100 * best.mean:.2f}{note}"


def boundaries_section(mnist: LabelOutcomes, cifar: LabelOutcomes) -> str:
    """Where nothing was asked, on both data sets."""
    return f"MNIST:\n\n{boundaries(mnist)}\n\nCIFAR-10 as JPEG:\n\n{boundaries(cifar)}"


def teachers_section(found: LabelOutcomes) -> str:
    """The teachers beside the global model, and whether FedDKD is above the control where they are better than the control's model."""
    rows, held, judged = [], 0, 0
    for case in ("1%", *FEW):
        for partition in (*SKEWED, *MILD):
            teachers, control = found.teachers(case, JUDGED, partition), found.final(case, CONTROL, partition)
            lead = found.lead(case, JUDGED, partition, CONTROL, at_best=False)
            if teachers is None or control is None or lead is None:
                continue
            rule_holds = (teachers.mean > control.mean) == (lead.mean > 0)
            judged, held = judged + 1, held + rule_holds
            rows.append(
                [
                    case_title(case),
                    partition,
                    accuracy(teachers, seeds=len(SEEDS)),
                    accuracy(found.global_model(case, JUDGED, partition), seeds=len(SEEDS)),
                    accuracy(control, seeds=len(SEEDS)),
                    said_lead(lead),
                    "yes" if rule_holds else "no",
                ]
            )
    if not rows:
        return NO_RESULTS
    control_name, judged_name = row_name(CONTROL), row_name(JUDGED)
    header = [
        "labels",
        "partition",
        "teachers",
        "global model",
        f"{control_name}, test set",
        f"{judged_name} to {control_name}",
        "rule holds",
    ]
    return f"{table(header, rows)}\n\n**The rule holds in {held} of {judged}.**"


def choice_section(found: LabelOutcomes) -> str:
    """Whether the server's choice ends near the best, and what it chose."""
    places = [(case, partition) for case in ("1%", *FEW) for partition in (*SKEWED, *MILD)]
    counts = {(case, partition): found.chosen(case, AUTO, partition) for case, partition in places}
    rows = [[case_title(case), partition, *map(str, own.values())] for (case, partition), own in counts.items() if own]
    if not rows:
        return NO_RESULTS
    chosen = table(["labels", "partition", "rounds by teachers", "by own predictions", "by labels"], rows)
    return f"{verdict_table(auto_targets(found), (*SKEWED, *MILD))}\n\nWhat the steps used, in rounds over all seeds:\n\n{chosen}"


def costs_section(found: LabelOutcomes, case: str, partitions: Sequence[str]) -> str:
    """What each row spends in one case, as the mean over some partitions, and what it reaches on each."""
    rows = []
    for row in found.by_case[case].algorithms:
        curves = [own.curve for partition in partitions for own in found.of(case, row, partition)]
        if curves:
            rows.append(
                [
                    row_name(row),
                    str(len(curves[0].rounds)),
                    f"{statistics.fmean(curve.wire_bytes[-1] for curve in curves) / 1e6:,.0f}",
                    f"{statistics.fmean(curve.gradient_evaluations[-1] for curve in curves) / 1e3:,.0f}",
                    *(_both(found, case, row, partition) for partition in partitions),
                ]
            )
    reached = [f"{partition}, last round / best" for partition in partitions]
    header = ["row", "rounds", "MB on the wire", "thousand gradient evaluations", *reached]
    return f"{sentence_case(case_title(case))}:\n\n{table(header, rows)}" if rows else NO_RESULTS


README_ROWS = {"feddkd": False, "self_training": True, "control": True, "fedavg_x20": True}
"""The rows of the README's table, and whether the best round counts."""

README_COLUMNS = (("mnist", "3%"), ("cifar10_jpeg", "10%"))
DATA_TITLES = {"mnist": "MNIST", "cifar10_jpeg": "CIFAR-10 (JPEG)"}
PARTITION_TITLES = {"c2": "two classes a site", "dir0.1": "Dirichlet 0.1"}


def readme_section(sets: Mapping[str, LabelOutcomes]) -> str:
    """Show the few numbers that a reader needs first."""
    columns = [(data, case, partition) for data, case in README_COLUMNS for partition in SKEWED]
    rows = [
        [
            f"**{ROW_NAMES[row]}**" if row == OURS else ROW_NAMES[row],
            *(_readme_cell(sets[data], case, row, partition, at_best=at_best) for data, case, partition in columns),
        ]
        for row, at_best in README_ROWS.items()
    ]
    header = [
        "",
        *(f"{DATA_TITLES[data]}, {case.replace('%', ' %')}, {PARTITION_TITLES[part]}" for data, case, part in columns),
    ]
    return table(header, rows)


def _readme_cell(found: LabelOutcomes, case: str, row: str, partition: str, *, at_best: bool = False) -> str:
    return accuracy((found.best if at_best else found.final)(case, row, partition), seeds=len(SEEDS))


def notes(found: LabelOutcomes) -> str:
    """Which cells did not run as the files say today."""
    outdated = sorted(f"{outcome.cell} (`{outcome.outdated}`)" for outcome in found.all if outcome.outdated)
    return f"Run with settings that have changed since: {', '.join(outdated)}." if outdated else ""


def sections_of(mnist: LabelOutcomes, cifar: LabelOutcomes, exact: LabelOutcomes) -> dict[str, str]:
    """What stands between the marks of the page, by mark."""
    return {
        "labels:picture": picture_section(mnist),
        "labels:verdicts": verdicts_section(mnist, cifar),
        "labels:boundaries": boundaries_section(mnist, cifar),
        "labels:teachers": teachers_section(mnist),
        "labels:choice": choice_section(mnist),
        "labels:rows": rows_section(),
        "labels:few": cases_section(mnist, FEW_CASES),
        "labels:wrong": cases_section(mnist, WRONG_CASES),
        "labels:costs": costs_section(mnist, "3%", ("c2",)),
        "labels:cifar_standing": not_ahead(cifar),
        "labels:cifar": cases_section(cifar, tuple(CASES)),
        "labels:cifar_costs": "\n\n".join([costs_section(cifar, "all", UNALIKE), costs_section(cifar, "10%", SKEWED)]),
        "labels:cifar_bytes": bytes_section(cifar),
        "labels:exact": "\n\n".join([exact_section(exact), *filter(None, [notes(exact)])]),
    }


def draw_pictures(mnist: LabelOutcomes, cifar: LabelOutcomes, folder: Path) -> None:
    """Draw those that have anything to show."""
    if labels_figure.has_points(mnist):
        labels_figure.draw(mnist, folder / PICTURE)
    if labels_bytes_figure.has_points(cifar):
        labels_bytes_figure.draw(cifar, folder / BYTES_PICTURE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page and draw the picture, or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE", help="the picture goes beside it")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help=f"folder of {RESULT}")
    options = parser.parse_args(arguments)
    lines = read_lines(options.results / RESULT)
    sets = {data: LabelOutcomes(data, lines) for data in DATA_TITLES}
    sections = sections_of(sets["mnist"], sets["cifar10_jpeg"], LabelOutcomes("cifar10_jpeg", lines, "exact"))
    up_to_date = write(options.page, sections, check=options.check, script=SCRIPT)
    up_to_date &= write(options.readme, {"results:labels": readme_section(sets)}, check=options.check, script=SCRIPT)
    if not options.check:
        draw_pictures(sets["mnist"], sets["cifar10_jpeg"], options.page.parent)
    return int(not up_to_date)


if __name__ == "__main__":
    sys.exit(main())
