"""Early stopping and the best model, the same bits on both engines."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from feddkd.config import Config
from feddkd.engines.simulation import run_federation
from feddkd.observability.ledger import Ledger
from feddkd.scheduler.records import RunRecord

OPTIONS = [
    *("algorithm.name=fedavg", "rounds=6", "partition.clients=2", "partition.labels=5", "training.epochs=1", "training.lr=1.5"),
    *("data.subset=200", "runtime.client_processes=1", "communication.down=int8"),
    *("scheduler.deliver=best", "scheduler.patience=1"),
]


def run(engine: str, out: Path) -> RunRecord:
    config = Config.load(overrides=OPTIONS)
    ledger = Ledger(out, config)
    try:
        return run_federation(config, engine, out, [ledger])  # type: ignore[arg-type]
    finally:
        ledger.close()


def test_both_engines_stop_at_the_same_round_and_deliver_the_same_model(tmp_path: Path) -> None:
    here, there = (run(engine, tmp_path / engine) for engine in ("in-process", "grpc"))
    assert here.stopped
    assert here.delivered_round == here.rounds - 1
    assert (here.rounds, here.stopped, here.delivered_round) == (there.rounds, there.stopped, there.delivered_round)
    assert here.model.sha256() == there.model.sha256()
    for engine in ("in-process", "grpc"):
        summary = json.loads((tmp_path / engine / "summary.json").read_text())
        assert summary["final_accuracy"] == summary["best_accuracy"]
        delivered = load_file(tmp_path / engine / "model.safetensors")
        for client in ("client-0", "client-1"):
            received = load_file(tmp_path / engine / "clients" / client / "model.safetensors")
            assert all(received[name].equal(delivered[name]) for name in delivered)
