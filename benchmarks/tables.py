"""Write the README's tables from the files in benchmarks/results/; `--check` fails if they are not what the files say.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script

from niid_bench.grid import RESULTS, read_lines
from niid_bench.markdown import accuracy
from niid_bench.outcomes import CONTROL, DKD, LONGER, Outcomes

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


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


PARTITIONS = {"c1": "one class each", "c2": "two classes each", "dir0.1": "Dirichlet 0.1", "dir0.5": "Dirichlet 0.5"}


def grid_table() -> str:
    """FedDKD, its controls and the best of all others in the mini tier of NIID-Bench's grid."""
    found = Outcomes("mini", "mnist", read_lines(RESULTS / "niid_bench_mini.jsonl"))
    partitions = [name for name in PARTITIONS if name in found.partitions]
    others = [name for name in found.algorithms if name not in (*DKD, CONTROL, LONGER)]
    rows = {
        "FedDKD (default: half true labels)": [accuracy(found.final("feddkd", partition)) for partition in partitions],
        "FedDKD, the teachers alone": [accuracy(found.final("feddkd_pure", partition)) for partition in partitions],
        "control: the same exchanges, true labels alone": [accuracy(found.final(CONTROL, partition)) for partition in partitions],
        "FedAvg, the same rounds": [accuracy(found.final("fedavg", partition)) for partition in partitions],
        "FedAvg, the same rounds, tuned rate": [accuracy(found.final("fedavg_tuned", partition)) for partition in partitions],
        f"best of the {len(others)} one-exchange algorithms run so far, the same rounds": [
            _best(found, partition) for partition in partitions
        ],
    }
    if LONGER in found.algorithms:
        rows["FedAvg, the same bytes (21 times the rounds)"] = [accuracy(found.at_bytes(LONGER, partition)) for partition in partitions]
    lines = ["| MNIST, ten parties | " + " | ".join(PARTITIONS[name] for name in partitions) + " |", "|---" * (len(partitions) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    what = "Final test accuracy in %, mean ± deviation over three seeds (n: fewer), 12,000 images, 2 local epochs, 15 rounds"
    return "\n".join([f"{what}:", "", *lines])


def exact_table() -> str:
    """FedDKD under NIID-Bench's exact protocol beside the best published numbers."""
    found = Outcomes("exact", "mnist", read_lines(RESULTS / "niid_bench_exact.jsonl"))
    lines = ["| MNIST, NIID-Bench's protocol | rounds | best accuracy: mean ± deviation (lowest seed) | published |", "|---|---|---|---|"]
    published = {
        ("feddkd", "c1"): "68.9 (FedAdagrad, best of nine algorithms, 50 rounds)",
        ("feddkd", "c2"): "97.8 (FedYogi, best of nine algorithms, 50 rounds)",
        ("fedavg", "c2"): "96.9 ± 0.3 (50 rounds)",
    }
    for partition in [name for name in PARTITIONS if name in found.partitions]:
        for algorithm in found.algorithms:
            best = found.best(algorithm, partition)
            if best is None:
                continue
            rounds = len(found.of(algorithm, partition)[0].curve.rounds)
            beside = published.get((algorithm, partition), "-")
            lines.append(f"| `{algorithm}`, {PARTITIONS[partition]} | {rounds} | {accuracy(best)} ({100 * best.lowest:.2f}) | {beside} |")
    return "\n".join(lines)


def _best(found: Outcomes, partition: str) -> str:
    name = found.best_other(partition)
    return "-" if name is None else f"{accuracy(found.final(name, partition))} (`{name}`)"


def transport_table() -> str:
    """One exchange on feddkd and on Flower, by model size."""
    result = _load("transport")
    lines = ["One exchange (down, up, reduced) with four client processes and nobody computing, on two cores:", ""]
    lines += ["| model | feddkd: median (server's peak memory) | Flower over gRPC | Flower's time over feddkd's |", "|---|---|---|---|"]
    measured = {(entry["system"], entry["megabytes"]): entry for entry in result["results"]}
    for (system, size), ours in measured.items():
        if system == "feddkd" and (theirs := measured.get(("flower", size))):
            label = "40 bytes" if size < 0.001 else f"{size:g} MiB"
            ratio = theirs["median_s"] / ours["median_s"]
            lines.append(f"| {label} | {_cell(ours)} | {_cell(theirs)} | {ratio:.1f} |")
    versions = result["versions"]
    note = f"Flower {versions['flwr']}, grpcio {versions['grpcio']}; in turn in one sitting, load average {result['load_average_1min']}."
    return "\n".join([*lines, "", note, _source("transport", result)])


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['median_s'] * 1e3:,.0f} ms ({entry['server_peak_bytes'] / 1e6:,.0f} MB)"


def _load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return result


def _source(name: str, result: dict[str, Any]) -> str:
    return f"From [`benchmarks/results/{name}.json`](benchmarks/results/{name}.json): `{result['command']}`."


def fill(text: str) -> str:
    """The README with its tables written anew, each between its two marks."""
    tables = {
        "digits": accuracy_table("digits_default", "scikit-learn's digits, ten clients with one class each (`feddkd run`)"),
        "grid": grid_table(),
        "exact": exact_table(),
        "transport": transport_table(),
    }
    for name, table in tables.items():
        start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        before, opening, rest = text.partition(start)
        _, closing, after = rest.partition(end)
        if not (opening and closing):
            raise SystemExit(f"{README} has no place {start} ... {end}")
        text = f"{before}{start}\n{table}\n{end}{after}"
    return text


def main() -> int:
    """Rewrite the README, or compare."""
    text = README.read_text(encoding="utf-8")
    filled = fill(text)
    if "--check" in sys.argv[1:]:
        if filled != text:
            print("README.md is not what benchmarks/results/ says: run benchmarks/tables.py", file=sys.stderr)
        return int(filled != text)
    README.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
