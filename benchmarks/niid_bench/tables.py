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


from feddkd.observability.budgets import Spread
from niid_bench.ablate import LONGER_RESULT as LONGER_ABLATION
from niid_bench.ablate import RESULT as ABLATION
from niid_bench.ablate import STEP_SCALE_RESULT as STEP_SCALE
from niid_bench.ablation_table import ablation_table
from niid_bench.cells import DATA_SETS, ROOT, TIERS, read_toml
from niid_bench.grid import RESULTS, read_lines
from niid_bench.markdown import MISSING, accuracy, commands, table
from niid_bench.outcomes import LONGER, CostOf, Outcomes
from niid_bench.pages import write
from niid_bench.step_scale_table import step_scale_table
from niid_bench.tune import RESULT as TUNING
from niid_bench.tuning_table import tuning_table
from niid_bench.verdicts import verdicts

DOCS = ROOT / "docs"
SCRIPT = "benchmarks/niid_bench/tables.py"
PAGE, ABLATION_PAGE = "benchmarks.md", "ablation.md"
TARGETS = {"mini": (0.9, 0.95), "exact": (0.9, 0.95, 0.98)}
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "svhn": "SVHN", "cifar10_jpeg": "CIFAR-10 as JPEG"}

IN_BRACKETS = "In brackets: runs that end earlier, with the share of the budget that they spend:"
SPENT = 0.99
"""Runs that have spent this share of a budget count as having spent it: headers differ by less."""

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
        "**Final accuracy** in %, mean ± std over seeds:",
        accuracy_table(outcomes, outcomes.final),
        "**Best accuracy** of all rounds in %, which is what most papers report:",
        accuracy_table(outcomes, outcomes.best),
        published_table(outcomes),
        "**Cost of a run** (the largest of all runs):",
        cost_table(outcomes),
        "**Accuracy at FedDKD's bytes** in %: the last round within what FedDKD's runs move. " + IN_BRACKETS,
        budget_table(outcomes, lambda curve: curve.wire_bytes),
        "**Accuracy at FedDKD's gradient evaluations** in %, likewise:",
        budget_table(outcomes, lambda curve: curve.gradient_evaluations),
        *(text for target in TARGETS[outcomes.tier] for text in (f"**To {target:.0%}**: rounds, bytes.", target_table(outcomes, target))),
        notes(outcomes),
        commands([each.command for name in outcomes.algorithms for part in outcomes.partitions for each in outcomes.of(name, part)]),
    ]
    return "\n\n".join(part for part in parts if part)


def picture_name(outcomes: Outcomes) -> str:
    return f"benchmarks_{outcomes.tier}_{outcomes.data}.png"


def accuracy_table(outcomes: Outcomes, number: Number) -> str:
    """Algorithms by partitions; bold is the best mean among those that run the same rounds and miss no seed."""
    rivals = same_rounds(outcomes)
    best = {partition: best_mean([number(name, partition) for name in rivals]) for partition in outcomes.partitions}
    rows = []
    for algorithm in outcomes.algorithms:
        cells = []
        for partition in outcomes.partitions:
            found = number(algorithm, partition)
            cells.append(accuracy(found, bold=algorithm in rivals and is_best(found, best[partition])))
        rows.append([f"`{algorithm}`", *cells])
    return table(["algorithm", *outcomes.partitions], rows)


def budget_table(outcomes: Outcomes, cost: CostOf) -> str:
    """Accuracy when what FedDKD spends is spent; bold among the runs that spend it and miss no seed."""
    rows = {algorithm: [f"`{algorithm}`"] for algorithm in outcomes.algorithms}
    for partition in outcomes.partitions:
        found = {name: outcomes.within_budget(name, partition, cost) for name in outcomes.algorithms}
        shares = {name: outcomes.share_spent(name, partition, cost) or 0.0 for name in outcomes.algorithms}
        best = best_mean([found[name] for name in outcomes.algorithms if shares[name] > SPENT])
        for name, cells in rows.items():
            spends = found[name] is None or shares[name] > SPENT
            text = accuracy(found[name], bold=spends and is_best(found[name], best))
            cells.append(text if spends else f"({text}; {shares[name]:.0%})")
    return table(["algorithm", *outcomes.partitions], list(rows.values()))


def best_mean(rivals: Sequence[Spread | None]) -> tuple[float, int] | None:
    """The best mean as it is printed, and the number of seeds that a rival must have; None unless two have as many."""
    seeds = max((found.count for found in rivals if found), default=0)
    means = [_printed(found) for found in rivals if found and found.count == seeds]
    return (max(means), seeds) if len(means) > 1 else None


def is_best(found: Spread | None, best: tuple[float, int] | None) -> bool:
    return found is not None and (_printed(found), found.count) == best


def _printed(found: Spread) -> float:
    return round(100 * found.mean, 2)


def cost_table(outcomes: Outcomes) -> str:
    """Rounds, bytes and gradient evaluations of a run of each algorithm."""
    rows = []
    for algorithm in outcomes.algorithms:
        curves = [outcome.curve for outcome in outcomes.all if outcome.cell.algorithm == algorithm]
        rounds = sorted({len(curve.rounds) for curve in curves})
        size = f"{max(curve.wire_bytes[-1] for curve in curves) / 1e6:,.0f} MB"
        work = f"{max(curve.gradient_evaluations[-1] for curve in curves):,}"
        rows.append([f"`{algorithm}`", " or ".join(map(str, rounds)), size, work])
    return table(["algorithm", "rounds", "bytes", "gradient evaluations"], rows)


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
    return f"Run with settings that have changed since: {', '.join(cells)}."


def _protocol(outcomes: Outcomes) -> str:
    tier = read_toml(f"{outcomes.tier}.toml")
    images = f"{tier['data']['subset']:,} training images" if "subset" in tier["data"] else "All training images"
    return (
        f"{images}, {tier['partition']['clients']} parties, {tier['training']['epochs']} local epochs, {_rounds(outcomes)}, "
        f"SGD at {tier['training']['lr']} with momentum {tier['training']['momentum']}, batches of {tier['training']['batch_size']}, "
        f"`{tier['model']['name']}`. `{LONGER}` has as many exchanges as `feddkd` and so more rounds; it is never bold at equal rounds."
    )


def _rounds(outcomes: Outcomes) -> str:
    """How many rounds the algorithms ran, if all ran as many."""
    found = {len(outcome.curve.rounds) for outcome in outcomes.all if outcome.cell.algorithm != LONGER}
    return f"{found.pop()} rounds" if len(found) == 1 else "different numbers of rounds (see the cost table; so no final accuracy is bold)"


def same_rounds(outcomes: Outcomes) -> list[str]:
    """The algorithms that may be compared by their last round: all but the longer one, or nobody where rounds differ."""
    rivals = [name for name in outcomes.algorithms if name != LONGER]
    return rivals if len({len(outcome.curve.rounds) for outcome in outcomes.all if outcome.cell.algorithm != LONGER}) == 1 else []


def _published(value: Sequence[float] | None) -> str:
    return MISSING if value is None else " ± ".join(f"{number:.1f}" for number in value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages and draw the pictures, or compare the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="DIR", help="folder of the pages and the pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of niid_bench_TIER.jsonl")
    options = parser.parse_args(arguments)
    files = {tier: options.results / f"niid_bench_{tier}.jsonl" for tier in TIERS}
    pages = {
        options.docs / PAGE: {
            "niid_bench:tuning": tuning_table(read_lines(options.results / TUNING)),
            **{f"niid_bench:{tier}": section(tier, path) for tier, path in files.items()},
        },
        options.docs / ABLATION_PAGE: {
            "niid_bench:ablation": ablation_table(read_lines(options.results / ABLATION)),
            "niid_bench:ablation_15": ablation_table(read_lines(options.results / LONGER_ABLATION)),
            "niid_bench:step_scale": step_scale_table(read_lines(options.results / STEP_SCALE)),
        },
    }
    up_to_date = [write(path, sections, check=options.check, script=SCRIPT) for path, sections in pages.items()]
    if not options.check:
        draw_all(files, options.docs)
    return int(not all(up_to_date))


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
