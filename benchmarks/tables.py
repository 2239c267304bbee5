"""Write the tables of docs/results.md from the files in benchmarks/results/; `--check` fails if they are not what the files say.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from niid_bench.cells import ALGORITHMS, TITLES, published, read_toml
from niid_bench.grid import RESULTS, read_lines
from niid_bench.markdown import MISSING, accuracy, table
from niid_bench.outcomes import CONTROL, DKD, LONGER, Outcomes
from niid_bench.pages import write
from niid_bench.verdicts import against_control

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results.md"


def accuracy_table(name: str, what: str) -> str:
    """Final accuracy of every row of a comparison that `feddkd compare --save` wrote, over its seeds."""
    result = _load(name)
    seeds = sorted({run["seed"] for run in result["runs"]})
    lines = [f"{what}, {len(result['runs'][0]['accuracy'])} rounds, seeds {', '.join(map(str, seeds))}:", ""]
    lines += ["| algorithm | final test accuracy: mean (lowest to highest) | bytes on the wire |", "|---|---|---|"]
    for algorithm, numbers in result["summary"].items():
        final = numbers["final_accuracy"]
        size = next(run["cumulative_wire_bytes"][-1] for run in result["runs"] if run["algorithm"] == algorithm)
        lines.append(f"| `{algorithm}` | {final['mean']:.1%} ({final['min']:.1%} to {final['max']:.1%}) | {size / 1e6:,.0f} MB |")
    return "\n".join([*lines, "", _source(name, result)])


def grid_table() -> str:
    """FedDKD, its controls and the best of all others in the mini tier of NIID-Bench's grid."""
    found = Outcomes("mini", "mnist", read_lines(RESULTS / "niid_bench_mini.jsonl"))
    rows = {
        "feddkd": "FedDKD (default: half of its labels true, half the teachers')",
        "feddkd_pure": "FedDKD, the teachers alone",
        "feddkd_ntd": "FedDKD with FedNTD's local loss and corrected teachers",
        CONTROL: "control: the same exchanges, true labels alone",
        "fedavg": "FedAvg, the same rounds",
        "fedavg_tuned": "FedAvg, the same rounds, rate tuned on two classes each",
        LONGER: "FedAvg, that rate, 21 times the rounds: FedDKD's bytes",
    }
    lines = [
        [f"{what}: `{name}`", *(accuracy(found.final(name, part)) for part in found.partitions), _megabytes(found, name)]
        for name, what in rows.items()
    ]
    best = [_best(found, partition) for partition in found.partitions]
    lines.insert(-1, ["best algorithm of one exchange a round, the same rounds, tuned likewise", *best, "-"])
    what = "Final test accuracy in %, mean ± deviation over three seeds (n: fewer), 12,000 images, 2 local epochs, 15 rounds"
    header = ["MNIST, ten parties", *(f"{TITLES[name]} (`{name}`)" for name in found.partitions), "on the wire"]
    return "\n".join([f"{what}:", "", table(header, lines), "", f"{against_control(found)} {_grid_source('mini')}"])


def exact_table() -> str:
    """FedDKD under NIID-Bench's exact protocol beside the best published numbers."""
    found = Outcomes("exact", "mnist", read_lines(RESULTS / "niid_bench_exact.jsonl"))
    rows = []
    for partition in found.partitions:
        for algorithm in sorted(found.algorithms, key=lambda name: name not in DKD):
            best = found.best(algorithm, partition)
            if best is not None:
                rounds = len(found.of(algorithm, partition)[0].curve.rounds)
                ours = [
                    f"`{algorithm}`, {TITLES[partition]}",
                    str(rounds),
                    f"{accuracy(best)} ({100 * best.lowest:.2f})",
                    _megabytes(found, algorithm),
                ]
                rows.append([*ours, _published(algorithm, partition)])
    header = ["MNIST, NIID-Bench's protocol", "rounds", "best accuracy: mean ± deviation (lowest seed)", "on the wire", "published"]
    sources = {source["short"]: source["note"] for source in read_toml("published.toml")["source"] if "mnist" in source}
    legend = "; ".join(f"{name}: {note}" for name, note in sources.items())
    control = "" if CONTROL in found.algorithms else " The control has not run under this protocol yet."
    return "\n".join([table(header, rows), "", f"Published: {legend}.{control} {_grid_source('exact')}"])


def _published(algorithm: str, partition: str) -> str:
    """What each source publishes of the same algorithm on MNIST, or the best of any for one that has nothing published."""
    numbers = [(values[partition], name, source) for source, name, values in published("mnist") if partition in values]
    if not numbers:
        return MISSING
    own = [f"{' ± '.join(f'{number:.1f}' for number in value)} ({source})" for value, name, source in numbers if name == algorithm]
    value, best, source = max(numbers)
    return "; ".join(own) or f"{value[0]:.1f} (`{best}`, {source}; the best of {len({name for _, name, _ in numbers})} algorithms)"


def _best(found: Outcomes, partition: str) -> str:
    """The best of the baselines, once there is more than one."""
    name, others = found.best_other(partition), {ALGORITHMS[name]["algorithm"]["name"] for name in found.others(partition)}
    return MISSING if name is None or len(others) < 2 else f"{accuracy(found.final(name, partition))} (`{name}`, of {len(others)})"


def _megabytes(found: Outcomes, algorithm: str) -> str:
    sizes = [outcome.curve.wire_bytes[-1] for outcome in found.all if outcome.cell.algorithm == algorithm]
    return f"{max(sizes) / 1e6:,.0f} MB" if sizes else MISSING


def _grid_source(tier: str) -> str:
    path = f"benchmarks/results/niid_bench_{tier}.jsonl"
    return f"From [`{path}`](../{path}), which has the command of every run: `python benchmarks/niid_bench/run.py {tier}`."


def transport_table() -> str:
    """One exchange on feddkd, over gRPC streams of raw bytes, and on Flower, by model size."""
    result = _load("transport")
    lines = ["One exchange (down, up, reduced) with four client processes and nobody computing, on two cores:", ""]
    lines += ["| model | feddkd: median (server's peak memory) | raw bytes over gRPC | Flower over gRPC | feddkd : raw | Flower : feddkd |"]
    lines += ["|---|---|---|---|---|---|"]
    measured = {(entry["system"], entry["megabytes"]): entry for entry in result["results"]}
    for (system, size), ours in measured.items():
        if system == "feddkd":
            raw, flower = measured["raw gRPC", size], measured["flower", size]
            label = "40 bytes" if size < 0.001 else f"{size:g} MiB"
            ratios = f"{ours['median_s'] / raw['median_s']:.1f} | {flower['median_s'] / ours['median_s']:.1f}"
            lines.append(f"| {label} | {_cell(ours)} | {_cell(raw)} | {_cell(flower)} | {ratios} |")
    versions = result["versions"]
    load = f"in turn in one sitting; load average {result['load_average_1min']}, with the benchmark itself"
    note = f"Flower {versions['flwr']}, grpcio {versions['grpcio']}; {load}."
    return "\n".join([*lines, "", note, _source("transport", result)])


def cohort_table() -> str:
    """The same cohort among few and among many clients, on every engine."""
    result = _load("cohort_memory")
    rows = result["results"]
    lines = [f"FedAvg on MNIST, {rows[0]['cohort']} clients a round, two processes that compute for them over gRPC and on Ray:", ""]
    lines += ["| engine | clients | peak memory of all processes | a round |", "|---|---|---|---|"]
    lines += [f"| {row['engine']} | {row['clients']:,} | {row['peak_pss_mib']:,} MiB | {row['round_s']:.2f} s |" for row in rows]
    note = "Memory counts a page that processes share once. The final model of a seed is the same on all engines."
    return "\n".join([*lines, "", note, _source("cohort_memory", result)])


def local_table() -> str:
    """A client's computing beside a bare PyTorch loop that computes the same bits."""
    result = _load("local_training")
    lines = [f"Ratio of feddkd's time to the bare loop's, median of {result['repeats']} pairs, one thread:", ""]
    lines += ["| work | model | processor time (lowest to highest) | wall clock |", "|---|---|---|---|"]
    for row in result["rows"]:
        low, high = row["cpu_ratio_spread"]
        lines.append(f"| {row['part']} | {row['case']} | {row['cpu_ratio']:.2f} ({low:.2f} to {high:.2f}) | {row['wall_ratio']:.2f} |")
    return "\n".join([*lines, "", _source("local_training", result)])


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['median_s'] * 1e3:,.0f} ms ({entry['server_peak_bytes'] / 1e6:,.0f} MB)"


def _load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return result


def _source(name: str, result: dict[str, Any]) -> str:
    return f"From [`benchmarks/results/{name}.json`](../benchmarks/results/{name}.json): `{result['command']}`."


def main() -> int:
    """Rewrite the page, or compare."""
    tables = {
        "results:digits": accuracy_table("digits_default", "scikit-learn's digits, ten clients with one class each (`feddkd run`)"),
        "results:grid": grid_table(),
        "results:exact": exact_table(),
        "results:transport": transport_table(),
        "results:local": local_table(),
        "results:cohort": cohort_table(),
    }
    return int(not write(PAGE, tables, check="--check" in sys.argv[1:], script="benchmarks/tables.py"))


if __name__ == "__main__":
    sys.exit(main())
