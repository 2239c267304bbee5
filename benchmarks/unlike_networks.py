"""Measure federations whose sites train unlike networks, and write the table of docs/how-to/unlike-networks.md.

python benchmarks/unlike_networks.py [--data-root DIR] [--again] [--check]

Runs that are in the result file already are not repeated. With `--check` nothing runs; the page must be what the file says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # this file is run as a script
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "unlike_networks"))

import torch
from niid_bench.markdown import MISSING, table
from niid_bench.pages import write
from safetensors.torch import load_file

from feddkd.algorithms.own_teacher import OWN_TEACHER, build_teacher
from feddkd.bench.environment import environment, source_commit
from feddkd.config import Config
from feddkd.data.datasets import describe, load_test
from feddkd.engines.simulation import run_federation
from feddkd.evaluation import evaluate
from feddkd.scheduler.records import Observer, RoundRecord
from feddkd.tasks.chosen import task_of
from feddkd.tasks.metrics import TaskMetrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "unlike_networks.json"
PAGE = ROOT / "docs" / "how-to" / "unlike-networks.md"
CODE = ("feddkd", "benchmarks/unlike_networks.py", "examples/unlike_networks")

NETWORKS = ("perceptron", "convolutional", "residual", "recurrent", "attention")
SEEDS = (0, 1, 2)
COMMON = (
    "rounds=15",
    "data.name=mnist",
    "data.subset=12000",
    f"partition.clients={len(NETWORKS)}",
    "partition.labels=2",
    "model.name=niid_cnn",
    "training.epochs=2",
    "training.batch_size=64",
    "training.lr=0.01",
    "dkd.start=previous",
)
UNLIKE = (f"teacher.model={json.dumps([f'networks:{name}' for name in NETWORKS])}", "teacher.lr=0.05")
ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unlike": ("five networks", UNLIKE),
    "unlike_soft": ("five networks; outputs of the teachers alone", (*UNLIKE, "dkd.hard_label_weight=0")),
    "one": ("the same network", ()),
    "one_soft": ("the same network; outputs of the teachers alone", ("dkd.hard_label_weight=0",)),
}
"""What a row of the table is called, and its settings besides `COMMON`."""


class Rounds(Observer):
    """Keeps the records of all rounds."""

    def __init__(self) -> None:
        self.records: list[RoundRecord] = []

    def round_done(self, record: RoundRecord) -> None:
        self.records.append(record)


def config_of(row: str, seed: int, data_root: Path) -> Config:
    """The configuration of one run."""
    return Config.load(overrides=[*COMMON, *ROWS[row][1], f"seed={seed}", f"data.root={data_root / 'mnist'}"])


def measure(row: str, seed: int, data_root: Path) -> dict[str, Any]:
    """Run one federation; return its accuracy and bytes, and the accuracy of each site's own network on the same test set."""
    config, rounds = config_of(row, seed, data_root), Rounds()
    with tempfile.TemporaryDirectory() as folder:
        run_federation(config, "in-process", Path(folder), [rounds])
        teachers = {name: _accuracy_of_teacher(config, name, client, Path(folder)) for client, name in _own(config)}
    final = rounds.records[-1].evaluation
    assert final is not None
    return {
        "row": row,
        "seed": seed,
        "student": round(final.worth, 4),
        "teachers": teachers,
        "bytes_per_round": round(statistics.fmean(record.traffic.wire_bytes for record in rounds.records)),
        "overrides": [*COMMON, *ROWS[row][1], f"seed={seed}"],
    }


def _own(config: Config) -> list[tuple[str, str]]:
    return [(f"client-{number}", name.removeprefix("networks:")) for number, name in enumerate(config.teacher.own)]


def _accuracy_of_teacher(config: Config, name: str, client: str, run: Path) -> float:
    """Accuracy of a site's own network, as it takes it home, on the test split of all ten classes."""
    task = task_of(config)
    info = describe(config.data, task)
    module = build_teacher(config, f"networks:{name}", client, info).module
    module.load_state_dict(load_file(run / "clients" / client / f"{OWN_TEACHER}.safetensors"))
    metrics = TaskMetrics(task, info.num_classes, info.target_shape)
    examples = load_test(config.data, config.seed, task)
    return round(evaluate(module, examples, torch.device("cpu"), batch_size=512, metrics=metrics).worth, 4)


def page_sections(file: Mapping[str, Any]) -> dict[str, str]:
    """The table and its source by the names of their places."""
    runs = file["runs"]
    alone = {name: [run["teachers"][name] for run in runs if run["row"] == "unlike"] for name in NETWORKS}
    rows = [[f"`{name}` of one site, alone", _spread(found), "0"] for name, found in alone.items()]
    rows += [_student(row, [run for run in runs if run["row"] == row]) for row in ROWS]
    return {"unlike:table": table(["network", "accuracy", "bytes a round"], rows), "unlike:source": _source(file)}


def _student(row: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    size = f"{runs[0]['bytes_per_round'] / 1e6:.1f} MB" if runs else MISSING
    return [f"shared student; sites train {ROWS[row][0]}", _spread([run["student"] for run in runs]), size]


def _spread(accuracies: Sequence[float]) -> str:
    """Mean and lowest in percent."""
    return f"{100 * statistics.fmean(accuracies):.1f} ({100 * min(accuracies):.1f})" if accuracies else MISSING


def _source(file: Mapping[str, Any]) -> str:
    versions, path = file["versions"], RESULTS.relative_to(ROOT)
    seeds = ", ".join(map(str, sorted({run["seed"] for run in file["runs"]})))
    lines = [
        f"Seeds {seeds}; feddkd {versions['feddkd']} at commit {file['commit']}, torch {versions['torch']},",
        f"{file['cpu']} ({file['cpu_capability']}). From",
        f"[`{path}`](../../{path}):",
        f"`{file['command']}`.",
    ]
    return "\n".join(lines)


def run_missing(data_root: Path, *, again: bool) -> None:
    """Run what the result file does not have; it is replaced after every run."""
    about = {"command": "python benchmarks/unlike_networks.py", "commit": source_commit(ROOT, CODE), **environment()}
    file: dict[str, Any] = {"runs": []} if again or not RESULTS.exists() else json.loads(RESULTS.read_text(encoding="utf-8"))
    done = {(run["row"], run["seed"]) for run in file["runs"]}
    for seed in SEEDS:
        for row in ROWS:
            if (row, seed) in done:
                continue
            run = measure(row, seed, data_root)
            runs = sorted([*file["runs"], run], key=lambda each: (each["seed"], list(ROWS).index(each["row"])))
            file = {**about, "runs": runs}
            partial = RESULTS.with_suffix(".partial")
            partial.write_text(json.dumps(file, indent=1) + "\n", encoding="utf-8")
            partial.replace(RESULTS)
            print(f"{row}, seed {seed}: student {run['student']:.2%}, teachers {run['teachers']}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure unlike networks, and write docs/how-to/unlike-networks.md.")
    parser.add_argument("--data-root", type=Path, default=ROOT / "data", metavar="DIR", help="has a folder mnist; default: data")
    parser.add_argument("--again", action="store_true", help="run everything again")
    parser.add_argument("--check", action="store_true", help="only compare page and results")
    options = parser.parse_args()
    if not options.check:
        run_missing(options.data_root, again=options.again)
    sections = page_sections(json.loads(RESULTS.read_text(encoding="utf-8")))
    return int(not write(PAGE, sections, check=options.check, script="benchmarks/unlike_networks.py"))


if __name__ == "__main__":
    sys.exit(main())
