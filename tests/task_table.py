"""Small federations on every kind of task and of data."""

from __future__ import annotations

from typing import Any

from feddkd.config import Config

MASKS = {
    "data": {"input_shape": [1, 8, 8], "target_shape": [8, 8], "num_classes": 2, "input_key": "image", "label_key": "mask"},
    "task": {"ignore_index": 255, "metric": "iou", "metrics": ["accuracy"]},
    "model": {"name": "own_tasks:pixels"},
}
NUMBERS = {"task": {"name": "regression", "metrics": ["r2"]}, "model": {"name": "own_tasks:numbers"}}

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("tokens", {"data": {"target_shape": [6], "num_classes": 11}, "model": {"name": "own_tasks:transformer"}}),
    "segmentation": ("images", MASKS),
    "segmentation by its class weights": ("images", {**MASKS, "task": {"ignore_index": 255, "class_weights": [1, 2]}}),
    "regression": ("table", NUMBERS),
    "regression with a divergence of its own": ("table", {**NUMBERS, "dkd": {"divergence": "own_tasks:own_distance"}}),
    "multilabel": ("labels", {"task": {"name": "multilabel", "metrics": ["auroc"]}, "model": {"name": "own_tasks:numbers"}}),
    "iterable": ("stream", NUMBERS),
    "augmented": ("augmented", MASKS),
    "adapters": ("", {"model": {"name": "own_models:adapters"}}),
    "structures": (
        "pairs",
        {"task": {"name": "own_tasks:Comparison"}, "data": {"num_classes": 2}, "model": {"name": "own_tasks:two_towers"}},
    ),
}


def config_of(name: str, **tables: Any) -> Config:
    """Three clients with unequal numbers of examples."""
    data, own = TASKS[name]
    common = {
        "rounds": 2,
        "partition": {"name": "quantity_dirichlet", "clients": 3},
        "training": {"epochs": 1},
        "runtime": {"client_processes": 2},
        "scheduler": {"reconnect_grace_s": 0.0},
    }
    found = {**common, **own, "dkd": {"steps": 2, **own.get("dkd", {})}, **tables}
    return Config.parse({**found, "data": {**({"name": f"own_tasks:{data}"} if data else {}), **own.get("data", {})}})
