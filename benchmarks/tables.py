"""Write the README's tables from the files in benchmarks/results/; `--check` fails if they are not what the files say.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def accuracy_table(name: str, what: str) -> str:
    """Final accuracy of every algorithm of a sweep, over its seeds."""
    result = _load(name)
    seeds = sorted({run["seed"] for run in result["runs"]})
    lines = [f"{what}, {len(result['runs'][0]['accuracy'])} rounds, seeds {', '.join(map(str, seeds))}:", ""]
    lines += ["| algorithm | final test accuracy: mean (lowest to highest) | bytes on the wire |", "|---|---|---|"]
    for algorithm, numbers in result["summary"].items():
        final = numbers["final_accuracy"]
        size = next(run["cumulative_wire_bytes"][-1] for run in result["runs"] if run["algorithm"] == algorithm)
        lines.append(f"| `{algorithm}` | {final['mean']:.1%} ({final['min']:.1%} to {final['max']:.1%}) | {size / 1e6:,.0f} MB |")
    return "\n".join([*lines, "", _source(name, result)])


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
        "mnist": accuracy_table("mnist_one_class", "MNIST (12,000 training images, NIID-Bench's CNN), ten clients with one class each"),
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
