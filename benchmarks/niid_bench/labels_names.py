"""What a reader calls the rows of docs/labels.md, in its tables and pictures and in the README."""

from __future__ import annotations

ROW_NAMES = {
    "feddkd": "FedDKD",
    "self_training": "self-training",
    "control": "control (SGD on labels)",
    "fedavg_x20": "FedAvg, 20 \N{MULTIPLICATION SIGN} the rounds",
}
"""Of the rows that a reader meets first. The others keep their code name."""


def row_name(row: str) -> str:
    """Return the name of a row, or its code name as code."""
    return ROW_NAMES.get(row, f"`{row}`")
