"""Records of runs that never ran, for what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feddkd.config import Config
from feddkd.observability.run_folder import CONFIG, EXCHANGES, PARTITION, ROUNDS, SUMMARY

CLIENTS = 4
CLASSES = 3
STEPS = 2


def write_record(
    out: Path,
    *,
    algorithm: str = "feddkd",
    seed: int = 0,
    rounds: int = 2,
    settings: Mapping[str, Any] | None = None,
    step: str | None = "dkd_step",
    finished: bool = True,
    tested: bool = True,
    old: bool = False,
    codec: bool = False,
    sites: bool = False,
) -> Path:
    """Write the record of a run into `out`.

    Args:
        settings: tables of the configuration.
        step: name of the exchanges that follow local training; None for none.
        finished: whether there is a summary.
        tested: whether the server had a test set.
        old: leave out what the first version did not record.
        codec: whether every exchange but the delivery had codecs in both directions.
        sites: whether clients measured their teachers, had unlabelled examples, and one had doubtful labels.
    """
    out.mkdir(parents=True)
    config = Config.parse({"seed": seed, "rounds": max(rounds, 1), **(settings or {}), "algorithm": {"name": algorithm}})
    exchanges = [line for number in range(1, rounds + 1) for line in _exchanges(number, step, last=number == rounds)]
    lines = [_round(number, exchanges, seed if tested else None) for number in range(1, rounds + 1)]
    if codec:
        for line in exchanges:
            if line["exchange"] != "deliver":
                _encode(line)
    if sites:
        for line in exchanges:
            line["by_client"] = _by_client(line)
    if old:
        for line in (*exchanges, *lines):
            for key in ("gradient_evaluations", "client_seconds", "metrics", "class_accuracy"):
                line.pop(key, None)
    else:
        (out / PARTITION).write_text(json.dumps({f"client-{k}": [10 * (k == c) for c in range(CLASSES)] for k in range(CLIENTS)}))
    (out / CONFIG).write_text(config.to_toml())
    (out / EXCHANGES).write_text("".join(json.dumps(line) + "\n" for line in exchanges))
    (out / ROUNDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (out / SUMMARY).write_text(json.dumps(_summary(config, exchanges, lines, old) | (_label_fields() if sites else {})))
    return out


def _exchanges(number: int, step: str | None, *, last: bool) -> list[dict[str, Any]]:
    names = [("local_train", 0), *((step, index) for index in range(STEPS) if step), *([("deliver", 0)] if last else [])]
    return [
        {
            "round": number,
            "attempt": 0,
            "exchange": name,
            "step": index,
            "clients_selected": CLIENTS,
            "clients_reported": CLIENTS,
            "clients_missing": {},
            "payload_bytes_down": 1000,
            "payload_bytes_up": 900,
            "wire_bytes_down": 1100,
            "wire_bytes_up": 1000,
            "seconds": 0.5,
            "loss": None if name == "deliver" else 2.0 / number - 0.1 * index,
            "client_accuracy": None,
            "client_loss": None,
            "gradient_evaluations": 50,
            "client_seconds": 1.0,
            "metrics": {"drift_diversity": 3.0 / number} if name == "local_train" else {},
        }
        for name, index in names
    ]


def _by_client(line: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Client-1 has a teacher that is no better than the global model and contradicts its labels."""
    clients = [f"client-{k}" for k in range(CLIENTS)]
    if line["exchange"] == "deliver":
        return {"client_accuracy": dict.fromkeys(clients, 1.0)}
    if line["exchange"] == "local_train":
        told = 0.25 * line["round"]
        return {
            "teacher_accuracy": {client: told if client == "client-1" else 0.875 for client in clients},
            "client_accuracy": dict.fromkeys(clients, told),
            "loss": dict.fromkeys(clients, 1.0),
        }
    return {"label_disagreement": {client: 0.375 if client == "client-1" else 0.0 for client in clients}} if not line["step"] else {}


def _label_fields() -> dict[str, Any]:
    return {
        "examples": {f"client-{k}": {"labelled": 10 + k, "unlabelled": 2000} for k in range(CLIENTS)},
        "doubtful_labels": {"client-1": {"disagreement": 0.375, "median": 0.0, "round": 2}},
        "outliers": {"client-1": 1},
    }


def _encode(line: dict[str, Any]) -> None:
    """An exchange whose tensors would be four and ten times as large without codecs."""
    line["dense_bytes_down"], line["dense_bytes_up"], line["snapshot_bytes_down"] = 4000, 9000, 250
    line["metrics"] |= {"codec_s_down": 0.01, "codec_s_up": 0.02, "codec_error_down": 0.25, "codec_error_up": 0.5 / line["round"]}


def _round(number: int, exchanges: list[dict[str, Any]], seed: int | None) -> dict[str, Any]:
    own = [line for line in exchanges if line["round"] == number]
    so_far = [line for line in exchanges if line["round"] <= number]
    return {
        "round": number,
        "accuracy": None if seed is None else 0.5 + 0.1 * number / len(exchanges) + 0.01 * seed,
        "loss": None if seed is None else 1.0,
        "client_accuracy": 0.4,
        "client_loss": 1.1,
        "wire_bytes_down": sum(line["wire_bytes_down"] for line in own),
        "wire_bytes_up": sum(line["wire_bytes_up"] for line in own),
        "cumulative_wire_bytes": sum(line["wire_bytes_down"] + line["wire_bytes_up"] for line in so_far),
        "seconds": 0.25 + sum(line["seconds"] for line in own),
        "clients_reported": CLIENTS,
        "class_accuracy": None if seed is None else [0.5, 0.25, None],
        "gradient_evaluations": sum(line["gradient_evaluations"] for line in own),
        "metrics": {name: value for line in own for name, value in line["metrics"].items()},
    }


def _summary(config: Config, exchanges: list[dict[str, Any]], lines: list[dict[str, Any]], old: bool) -> dict[str, Any]:
    accuracy = [line["accuracy"] for line in lines if line["accuracy"] is not None]
    return {
        "algorithm": config.algorithm.name,
        "rounds": len(lines),
        "final_accuracy": accuracy[-1] if accuracy else None,
        "best_accuracy": max(accuracy, default=None),
        "total_wire_bytes_up": sum(line["wire_bytes_up"] for line in exchanges) + 5,
        "total_wire_bytes_down": sum(line["wire_bytes_down"] for line in exchanges) + 7,
        "other_wire_bytes_up": 5,
        "other_wire_bytes_down": 7,
        "seconds": sum(line["seconds"] for line in lines),
        "seed": config.seed,
        "model_sha256": "0123456789abcdef" * 4,
        "run_id": "run",
        "versions": {"python": "3.11", "feddkd": "0.1.0"},
        **({} if old else {"gradient_evaluations": sum(line["gradient_evaluations"] for line in lines)}),
    }
