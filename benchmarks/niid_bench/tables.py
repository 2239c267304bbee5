"""Write docs/benchmarks.md and docs/ablation.md from the results; `--check` fails if a page is not what the results say.

    python benchmarks/niid_bench/tables.py [--check]

Only what stands between marks like `<!-- niid_bench:mini -->` and `<!-- /niid_bench:mini -->` is written, so prose around
them stays. Cells that are missing show as -.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this file is run as a script

from feddkd.bench.budgets import Spread
from niid_bench.ablate import RESULT as ABLATION
from niid_bench.ablation_table import ablation_table
from niid_bench.cells import DATA_SETS, ROOT, TIERS, read_toml
from niid_bench.grid import RESULTS, read_lines
from niid_bench.markdown import MISSING, accuracy, table
from niid_bench.outcomes import LONGER, Outcomes
from niid_bench.verdicts import verdicts

DOCS = ROOT / "docs"
PAGE, ABLATION_PAGE = "benchmarks.md", "ablation.md"
TARGETS = {"mini": (0.9, 0.95), "exact": (0.9, 0.95, 0.98)}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN"}

Number = Callable[[str, str], Spread | None]
"""Of an algorithm on a partition."""


def section(tier: str, results: Path) -> str:
    """What the page says of a tier."""
    lines = read_lines(results)
    data_sets = [name for name in DATA_SETS if any(line["data"] == name for line in lines)]
    if not data_sets:
        return f"No results yet: `python benchmarks/niid_bench/run.py {tier}`."
    return "\n\n".join(data_section(Outcomes(tier, name, lines)) for name in data_sets)


def data_section(outcomes: Outcomes) -> str:
    """Verdicts, tables and the picture of one data set."""
    title = f"{TITLES[outcomes.data]}, {outcomes.tier}"
    parts = [
        f"### {title}",
        _protocol(outcomes),
        verdicts(outcomes),
        f"![Test accuracy by round and by bytes on the wire for each partition]({picture_name(outcomes)})",
        "**Final accuracy** in %, mean ± deviation over the seeds:",
        accuracy_table(outcomes, outcomes.final),
        "**Best accuracy** of all rounds in %, which is what most papers report:",
        accuracy_table(outcomes, outcomes.best),
        published_table(outcomes),
        "**What a run costs** at most, and the command that runs a row again:",
        cost_table(outcomes),
        "One cell of the row: add `--partition P --seed S`.",
        "**Accuracy at FedDKD's bytes** in %: the last round within what FedDKD's runs move. "
        "In brackets: runs that end before they have spent it, and the share that they spend:",
        bytes_table(outcomes),
        "**Accuracy at equal gradient evaluations** in %: the last round within the most that all algorithms reach:",
        accuracy_table(outcomes, outcomes.at_gradients, comparable=outcomes.algorithms),
        *(text for target in TARGETS[outcomes.tier] for text in (f"**To {target:.0%}**: rounds, bytes.", target_table(outcomes, target))),
        notes(outcomes),
    ]
    return "\n\n".join(part for part in parts if part)


def picture_name(outcomes: Outcomes) -> str:
    return f"benchmarks_{outcomes.tier}_{outcomes.data}.png"


def accuracy_table(outcomes: Outcomes, number: Number, comparable: Sequence[str] | None = None) -> str:
    """Algorithms by partitions; the best cell of a partition is bold, and so are those that print the same mean.

    Args:
        comparable: which algorithms may be bold; without it, all that run the same rounds, if all do.
    """
    may_win = comparable if comparable is not None else same_rounds(outcomes)
    best = {}
    for partition in outcomes.partitions:
        means = [round(100 * found.mean, 2) for name in may_win if (found := number(name, partition))]
        best[partition] = max(means, default=None)
    rows = []
    for algorithm in outcomes.algorithms:
        cells = []
        for partition in outcomes.partitions:
            found = number(algorithm, partition)
            wins = found is not None and algorithm in may_win and round(100 * found.mean, 2) == best[partition]
            cells.append(accuracy(found, bold=wins))
        rows.append([f"`{algorithm}`", *cells])
    return table(["algorithm", *outcomes.partitions], rows)


def bytes_table(outcomes: Outcomes) -> str:
    """Accuracy at FedDKD's bytes; bold among the runs that spend them."""
    spends = {
        (name, partition): share is not None and share > 0.9
        for name in outcomes.algorithms
        for partition in outcomes.partitions
        for share in [outcomes.share_of_bytes(name, partition)]
    }
    rows = []
    for algorithm in outcomes.algorithms:
        cells = []
        for partition in outcomes.partitions:
            found, share = outcomes.at_bytes(algorithm, partition), outcomes.share_of_bytes(algorithm, partition)
            rivals = [other for name in outcomes.algorithms if spends[name, partition] and (other := outcomes.at_bytes(name, partition))]
            wins = found is not None and all(round(100 * found.mean, 2) >= round(100 * rival.mean, 2) for rival in rivals)
            text = accuracy(found, bold=wins and spends[algorithm, partition])
            cells.append(text if found is None or spends[algorithm, partition] else f"({text}; {share:.0%})")
        rows.append([f"`{algorithm}`", *cells])
    return table(["algorithm", *outcomes.partitions], rows)


def cost_table(outcomes: Outcomes) -> str:
    """Rounds, bytes, gradient evaluations and time of a run of each algorithm, and its command."""
    rows = []
    for algorithm in outcomes.algorithms:
        curves = [outcome.curve for outcome in outcomes.all if outcome.cell.algorithm == algorithm]
        rounds = sorted({len(curve.rounds) for curve in curves})
        rows.append(
            [
                f"`{algorithm}`",
                " or ".join(map(str, rounds)),
                f"{max(curve.wire_bytes[-1] for curve in curves) / 1e6:,.0f} MB",
                f"{max(curve.gradient_evaluations[-1] for curve in curves):,}",
                f"{max(curve.seconds[-1] for curve in curves):,.0f} s",
                "<br>".join(f"`{command}`" for command in outcomes.commands(algorithm)),
            ]
        )
    return table(["algorithm", "rounds", "bytes", "gradient evaluations", "time", "command"], rows)


def target_table(outcomes: Outcomes, target: float) -> str:
    """Mean rounds and bytes until an accuracy is reached, where all seeds reach it."""
    rows = []
    for algorithm in outcomes.algorithms:
        cells = []
        for partition in outcomes.partitions:
            seeds = len(outcomes.of(algorithm, partition))
            reached, rounds, wire_bytes = outcomes.to_target(algorithm, partition, target)
            if not seeds:
                cells.append(MISSING)
            elif rounds is None or wire_bytes is None:
                cells.append(f"n/a ({reached} of {seeds})")
            else:
                cells.append(f"{rounds.mean:.1f}, {wire_bytes.mean / 1e6:,.0f} MB")
        rows.append([f"`{algorithm}`", *cells])
    return table(["algorithm", *outcomes.partitions], rows)


def published_table(outcomes: Outcomes) -> str:
    """Published numbers beside the best rounds of ours; only the exact tier runs their protocol."""
    sources = [source for source in read_toml("published.toml")["source"] if outcomes.data in source]
    if outcomes.tier != "exact" or not sources:
        return ""
    algorithms = list(dict.fromkeys(name for source in sources for name in source[outcomes.data]))
    rows = []
    for algorithm in dict.fromkeys([*outcomes.algorithms, *algorithms]):
        ours = [accuracy(outcomes.best(algorithm, partition)) for partition in outcomes.partitions]
        rows.append([f"`{algorithm}`", "here", *ours])
        for number, source in enumerate(sources, start=1):
            values = source[outcomes.data].get(algorithm)
            if values:
                rows.append(["", f"[{number}]", *(_published(values.get(partition)) for partition in outcomes.partitions)])
    legend = "; ".join(f"[{number}] {source['name']} ({source['where']}): {source['note']}" for number, source in enumerate(sources, 1))
    note = f"**Beside published numbers**, best accuracy of all rounds in %. {legend}."
    return f"{note}\n\n{table(['algorithm', 'source', *outcomes.partitions], rows)}"


def notes(outcomes: Outcomes) -> str:
    """Which cells did not run as the files say today."""
    outdated = [outcome for outcome in outcomes.all if outcome.outdated]
    if not outdated:
        return ""
    cells = (
        f"{outcome.cell.algorithm} {outcome.cell.partition} seed {outcome.cell.seed} (`{outcome.outdated}`)"
        for outcome in sorted(outdated, key=lambda outcome: str(outcome.cell))
    )
    return f"Run with other settings than `{outcomes.tier}.toml` and `algorithms.toml` say today: {', '.join(cells)}."


def _protocol(outcomes: Outcomes) -> str:
    tier = read_toml(f"{outcomes.tier}.toml")
    images = f"{tier['data']['subset']:,} training images" if "subset" in tier["data"] else "All training images"
    return (
        f"{images}, {tier['partition']['clients']} parties, {tier['training']['epochs']} local epochs, {_rounds(outcomes)}, "
        f"SGD at {tier['training']['lr']} with momentum {tier['training']['momentum']}, batches of {tier['training']['batch_size']}, "
        f"`{tier['model']['name']}`. `{LONGER}` has as many exchanges as `feddkd`, so more rounds, and is not bold where rounds are equal."
    )


def _rounds(outcomes: Outcomes) -> str:
    """How many rounds the algorithms ran, if all ran as many."""
    found = {len(outcome.curve.rounds) for outcome in outcomes.all if outcome.cell.algorithm != LONGER}
    return f"{found.pop()} rounds" if len(found) == 1 else "rounds as the table of costs says, so no row is bold for its final accuracy"


def same_rounds(outcomes: Outcomes) -> list[str]:
    """The algorithms that may be compared by their last round: all but the longer one, or nobody where rounds differ."""
    rivals = [name for name in outcomes.algorithms if name != LONGER]
    return rivals if len({len(outcome.curve.rounds) for outcome in outcomes.all if outcome.cell.algorithm != LONGER}) == 1 else []


def _published(value: Sequence[float] | None) -> str:
    return MISSING if value is None else " ± ".join(f"{number:.1f}" for number in value)


def fill(page: str, sections: dict[str, str]) -> str:
    """The page with its sections written anew, each between its two marks."""
    for tier, text in sections.items():
        start, end = f"<!-- niid_bench:{tier} -->", f"<!-- /niid_bench:{tier} -->"
        before, opening, rest = page.partition(start)
        _, closing, after = rest.partition(end)
        if not (opening and closing):
            raise SystemExit(f"there is no place {start} ... {end}")
        page = f"{before}{start}\n{text}\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages and draw the pictures, or compare the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="folder of the pages and the pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of niid_bench_TIER.jsonl")
    options = parser.parse_args(arguments)
    files = {tier: options.results / f"niid_bench_{tier}.jsonl" for tier in TIERS}
    pages = {
        options.docs / PAGE: {tier: section(tier, path) for tier, path in files.items()},
        options.docs / ABLATION_PAGE: {"ablation": ablation_table(read_lines(options.results / ABLATION))},
    }
    outdated = [path for path, sections in pages.items() if not write(path, sections, check=options.check)]
    for path in outdated:
        print(f"{path} is not what the results say: run benchmarks/niid_bench/tables.py", file=sys.stderr)
    if not options.check:
        draw_all(files, options.docs)
    return int(bool(outdated))


def write(path: Path, sections: dict[str, str], *, check: bool) -> bool:
    """Fill a page, or only say whether it is filled already."""
    page = path.read_text(encoding="utf-8")
    filled = fill(page, sections)
    if not check:
        path.write_text(filled, encoding="utf-8")
    return filled == page or not check


def draw_all(files: dict[str, Path], folder: Path) -> None:
    """One picture for each tier and data set that has results."""
    from niid_bench.figures import draw

    for tier, path in files.items():
        lines = read_lines(path)
        for name in DATA_SETS:
            outcomes = Outcomes(tier, name, lines)
            if outcomes.all:
                draw(outcomes, folder / picture_name(outcomes))


if __name__ == "__main__":
    sys.exit(main())
