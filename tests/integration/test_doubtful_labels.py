"""One site of a federation has wrong labels: the record names it, and no other."""

import json
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from feddkd import algorithms
from feddkd.client.state_dir import StateDir
from feddkd.client.worker import Worker
from feddkd.config import Config
from feddkd.data.datasets import describe, load_train
from feddkd.data.labels import add_label_noise
from feddkd.data.partitions import client_ids, partition
from feddkd.engines.in_process import InProcessEngine
from feddkd.engines.resolve import resolve
from feddkd.models.initial import build_initial
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.rounds import Scheduler

CONFIG = resolve(
    Config.load(
        overrides=[
            *("rounds=4", "data.test_set=false", "partition.clients=5", "partition.labels=4", "training.epochs=2", "dkd.steps=3"),
        ]
    )
)


def run(out: Path, noise: dict[str, float]) -> dict[str, Any]:
    """The summary of a federation on digits, with this share of wrong labels at some of the clients."""
    info, examples = describe(CONFIG.data), load_train(CONFIG.data, CONFIG.seed)
    parts = partition(CONFIG.partition, examples.labels, info.num_classes, CONFIG.seed)
    workers = {}
    for client, part in zip(client_ids(len(parts)), parts, strict=True):
        own = examples.subset(part)
        labels = add_label_noise(own.labels, noise.get(client, 0.0), "symmetric", info.num_classes, seed=7)
        workers[client] = Worker(CONFIG, client, own.with_labels(labels), StateDir(out / client, client), info)
    with closing(Ledger(out, CONFIG)) as ledger, InProcessEngine(workers, 1 << 20, holdout=CONFIG.data.holdout) as engine:
        scheduler = Scheduler(CONFIG, algorithms.build(CONFIG), engine, run_id="run", observers=[ledger])
        scheduler.run(build_initial(CONFIG).model)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def test_a_site_with_wrong_labels_is_named_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        summary = run(tmp_path, {"client-3": 0.4})
    assert summary["doubtful_labels"].keys() == {"client-3"}
    doubt = summary["doubtful_labels"]["client-3"]
    assert doubt["disagreement"] > 0.2 > 0.1 > doubt["median"]
    assert [message for message in caplog.messages if "client-3" in message and "labels" in message]


def test_honest_sites_are_not_in_doubt(tmp_path: Path) -> None:
    assert run(tmp_path, {})["doubtful_labels"] == {}
