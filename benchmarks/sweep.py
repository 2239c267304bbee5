"""Run one configuration with several algorithms and seeds, and keep what came of it in one result file and one picture.

    python benchmarks/sweep.py digits_default --algorithms feddkd fedavg_sgd fedavg --seeds 0 1 2
    python benchmarks/sweep.py mnist_one_class --config examples/mnist_one_class.toml -o data.root=/path/to/mnist

Every run is a `feddkd run` of its own, over gRPC. A run whose record is complete is not run again, so a sweep
that was cut off goes on where it stopped; delete its folder below runs/ to measure it anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from feddkd.bench.environment import environment

ROOT = Path(__file__).resolve().parent.parent
COLORS = {"feddkd": "#0072b2", "fedavg_sgd": "#e69f00", "fedavg": "#666666"}
LABELS = {"feddkd": "FedDKD", "fedavg_sgd": "control: hard labels", "fedavg": "FedAvg"}


def run_one(options: argparse.Namespace, algorithm: str, seed: int) -> dict[str, Any]:
    """One run's summary and rounds, from its record if it is complete."""
    out = ROOT / "runs" / options.name / f"{algorithm}-{seed}"
    if not (out / "summary.json").exists():
        if out.exists():
            raise SystemExit(f"{out} holds the record of a run that did not finish; delete it to run it again")
        overrides = [f"algorithm.name={algorithm}", f"seed={seed}", *options.override]
        command = [sys.executable, "-m", "feddkd", "run", *([str(options.config)] if options.config else [])]
        command += [text for override in overrides for text in ("-o", override)]
        subprocess.run([*command, "--out", str(out)], check=True)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "algorithm": algorithm,
        "seed": seed,
        "accuracy": [line["accuracy"] for line in rounds],
        "cumulative_wire_bytes": [line["cumulative_wire_bytes"] for line in rounds],
        **{key: summary[key] for key in ("final_accuracy", "best_accuracy", "seconds", "model_sha256")},
    }


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Final and best accuracy of each algorithm over its seeds: mean, lowest, highest."""
    table: dict[str, Any] = {}
    for algorithm in dict.fromkeys(run["algorithm"] for run in runs):
        own = [run for run in runs if run["algorithm"] == algorithm]
        table[algorithm] = {
            f"{kind}_accuracy": {
                "mean": round(statistics.fmean(run[f"{kind}_accuracy"] for run in own), 4),
                "min": round(min(run[f"{kind}_accuracy"] for run in own), 4),
                "max": round(max(run[f"{kind}_accuracy"] for run in own), 4),
            }
            for kind in ("final", "best")
        }
    return table


def draw(runs: list[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy by round and by bytes, one thin line a seed and a marker where it ends."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (by_round, by_bytes) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for run in runs:
        color, label = COLORS.get(run["algorithm"], "#009e73"), LABELS.get(run["algorithm"], run["algorithm"])
        rounds = range(1, len(run["accuracy"]) + 1)
        percent = [100 * accuracy for accuracy in run["accuracy"]]
        by_round.plot(rounds, percent, color=color, linewidth=1.4, alpha=0.85, label=label)
        by_bytes.plot([size / 1e6 for size in run["cumulative_wire_bytes"]], percent, color=color, linewidth=1.4, alpha=0.85)
        by_bytes.plot(run["cumulative_wire_bytes"][-1] / 1e6, percent[-1], "o", color=color, markersize=4)
    by_round.set(xlabel="round", ylabel="test accuracy (%)", ylim=(0, 100))
    by_bytes.set(xlabel="bytes on the wire so far (MB, all clients, both directions)", xscale="log")
    for axes in (by_round, by_bytes):
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = by_round.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    by_round.legend(unique.values(), unique.keys(), loc="center right", frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=160)


def main() -> None:
    """Run what has not been run, then write the result file and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the result: benchmarks/results/NAME.json and docs/NAME.png")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--algorithms", nargs="+", default=["feddkd", "fedavg_sgd", "fedavg"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--title", default="", help="of the picture")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    runs = [run_one(options, algorithm, seed) for seed in options.seeds for algorithm in options.algorithms]
    document = {
        "command": shlex.join(["python", "benchmarks/sweep.py", *sys.argv[1:]]),
        **environment(flower_python=None),
        "summary": summarize(runs),
        "runs": runs,
    }
    (ROOT / "benchmarks" / "results" / f"{options.name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(runs, options.title or options.name, ROOT / "docs" / f"{options.name}.png")
    print(json.dumps(document["summary"], indent=2))


if __name__ == "__main__":
    main()
