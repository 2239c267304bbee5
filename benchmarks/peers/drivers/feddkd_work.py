"""The FedAvg work as feddkd's configuration names it: `feddkd_work:load` and `feddkd_work:build`."""

from __future__ import annotations

from pathlib import Path

from simulation_work import Work, build
from torch import Tensor

__all__ = ["build", "load"]


def load(root: str | Path, train: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001  # nothing is tested
    """Return the examples and labels of the work in a folder."""
    work = Work(Path(root) / "work.npz")
    return work.examples, work.labels
