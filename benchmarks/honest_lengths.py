"""Measure how much the contributions of honest clients differ in length: the limits of the default rule follow from it.

python benchmarks/honest_lengths.py [--seeds 1] [--data-root DIR] [--save benchmarks/results/honest_lengths.json]

Ten clients on digits, FedDKD over 8 rounds and FedAvg over 10, eight partitions. A ratio is a length in
median lengths, divided by the root of the client's size in median sizes if that is above 1. An excess is
what a client's ratios are above the usual limit of the exchange, multiplied up; ratios below it pay it
back. What a new client begins with is left out. A client is an outlier where its excess is above
`allowed`, or a single ratio above `longest`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from feddkd import algorithms
from feddkd.aggregator.history import LEEWAY, LengthLimits
from feddkd.bench.environment import environment
from feddkd.client.simulated import simulated_workers
from feddkd.config import Config
from feddkd.engines.in_process import InProcessEngine, InProcessExchange
from feddkd.engines.resolve import resolve
from feddkd.exchange import Exchange, Outcome
from feddkd.models.initial import build_initial
from feddkd.scheduler.rounds import Scheduler

PARTITIONS = {
    "IID": ["partition.name=iid"],
    "one class each": ["partition.name=labels_per_client", "partition.labels=1"],
    "two classes each": ["partition.name=labels_per_client", "partition.labels=2"],
    "shards": ["partition.name=shards"],
    "Dirichlet 0.1": ["partition.name=dirichlet", "partition.alpha=0.1"],
    "Dirichlet 0.5": ["partition.name=dirichlet", "partition.alpha=0.5"],
    "sizes by Dirichlet 0.1": ["partition.name=quantity_dirichlet", "partition.alpha=0.1"],
    "sizes by Dirichlet 0.5": ["partition.name=quantity_dirichlet", "partition.alpha=0.5"],
}
ROUNDS = {"feddkd": 8, "fedavg": 10}


class WatchedExchange:
    """An exchange whose outcome is handed on."""

    def __init__(self, inner: InProcessExchange, exchange: Exchange, lengths: Lengths) -> None:
        self._inner, self._exchange, self._lengths = inner, exchange, lengths

    def waits_for(self, client: str) -> bool:
        return self._inner.waits_for(client)

    def outcome(self) -> Outcome:
        found = self._inner.outcome()
        self._lengths.add(self._exchange.id.name, found.ratios)
        return found

    def acknowledge(self) -> None:
        self._inner.acknowledge()


class WatchingEngine(InProcessEngine):
    """Hands every outcome on."""

    lengths: Lengths

    def begin(self, exchange: Exchange) -> Any:
        return WatchedExchange(super().begin(exchange), exchange, self.lengths)


class Lengths:
    """The largest ratios and excesses of one run, by the name of the exchange."""

    def __init__(self, config: Config, kinds: Mapping[str, Any]) -> None:
        usual, single = config.aggregation.outlier_ratio, getattr(config.aggregation.rule, "longest")  # noqa: B009
        self._limits = {name: LengthLimits(usual, single).of(kind.contribution) for name, kind in kinds.items()}
        self._excess: dict[tuple[str, str], float] = {}
        self.largest: dict[str, dict[str, float]] = {}

    def add(self, name: str, ratios: Mapping[str, float]) -> None:
        for client, ratio in ratios.items():
            excess = self._limits[name].excess(self._excess.get((name, client), 0.0), ratio)
            self._excess[name, client] = excess
            known = self.largest.setdefault(name, {"ratio": 0.0, "excess": 0.0})
            known["ratio"] = max(known["ratio"], ratio)
            known["excess"] = max(known["excess"], math.exp(excess))


def run(algorithm: str, partition: str, seed: int, more: list[str]) -> dict[str, Any]:
    """Run a federation; returns what was longest in it."""
    own = [f"algorithm.name={algorithm}", f"rounds={ROUNDS[algorithm]}", "data.name=digits", "partition.clients=10", f"seed={seed}"]
    config = resolve(Config.load(overrides=[*own, *PARTITIONS[partition], *more]))
    algorithm_found = algorithms.build(config)
    with tempfile.TemporaryDirectory() as folder:
        workers = simulated_workers(config, Path(folder))
        with WatchingEngine(workers, config.transport.chunk_bytes, holdout=config.data.holdout) as engine:
            engine.lengths = Lengths(config, algorithm_found.exchanges(config))
            summary = Scheduler(config, algorithm_found, engine, run_id="lengths").run(build_initial(config).model)
    sizes = [worker.counts.total for worker in workers.values()]
    return {
        "algorithm": algorithm,
        "partition": partition,
        "seed": seed,
        "largest_size": round(max(sizes) / statistics.median(sizes), 2),
        "outliers": sorted(summary.outliers),
        **{
            name: {key: round(value, 2) for key, value in found.items()}
            for name, found in engine.lengths.largest.items()
            if any(found.values())
        },
    }


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the largest of all runs, by algorithm and exchange."""
    largest: dict[str, Any] = {"size": max(line["largest_size"] for line in runs)}
    for line in runs:
        for name in ("local_train", "dkd_step"):
            if name in line:
                known = largest.setdefault(f"{line['algorithm']} {name}", {"ratio": 0.0, "excess": 0.0})
                for key, value in line[name].items():
                    known[key] = max(known[key], value)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--save", type=Path, help="JSON file")
    options, more = parser.parse_known_args()
    torch.set_num_threads(1)
    logging.getLogger("feddkd").setLevel(logging.ERROR)
    runs = []
    for seed in range(options.seeds):
        for algorithm in ROUNDS:
            for partition in PARTITIONS:
                runs.append(run(algorithm, partition, seed, more))
                print(json.dumps(runs[-1]), flush=True)
    result = {"allowed": LEEWAY, "largest": summed_up(runs), "runs": runs, "environment": environment()}
    print(json.dumps(result["largest"], indent=1))
    if options.save:
        options.save.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
