"""Regression on tables: each of three sites has a CSV file of its own, with another climate.

python readings.py        writes a/train.csv, b/train.csv, c/train.csv and server/test.csv
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

COLUMNS = ("temperature_c", "wind_m_s", "cloud_share", "weekend", "power_kw")
"""The last one is predicted: what a building uses."""

SITES = {"a": (-5, 8), "b": (5, 15), "c": (12, 28)}
"""The range of temperatures, in degrees Celsius."""

SCALE = np.array([10, 5, 1, 1], dtype=np.float32)


def main() -> None:
    rng = np.random.default_rng(0)
    for site, (coldest, warmest) in SITES.items():
        write(Path(site, "train.csv"), rng.uniform(coldest, warmest, 300), rng)
    write(Path("server", "test.csv"), rng.uniform(-5, 28, 300), rng)


def write(file: Path, temperature: npt.NDArray[np.float64], rng: np.random.Generator) -> None:
    """Make up what a building uses: heating below 16 degrees, cooling above 22, lights, and less at weekends."""
    wind, cloud, weekend = rng.gamma(2, 2, temperature.shape), rng.random(temperature.shape), rng.random(temperature.shape) < 2 / 7
    heating, cooling = np.maximum(16 - temperature, 0) * (1 + 0.05 * wind), 2 * np.maximum(temperature - 22, 0)
    power = 20 + heating + cooling + 5 * cloud - 10 * weekend + rng.normal(0, 1, temperature.shape)
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *np.column_stack([temperature, wind, cloud, weekend, power]).round(3).tolist()])
    print(f"{file}: {len(temperature)} rows")


def load(root: Path | None, train: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return inputs float32 [n, 4] and targets float32 [n] from the CSV file below `root`, which is `data.root`."""
    assert root is not None
    table = np.loadtxt(root / ("train.csv" if train else "test.csv"), delimiter=",", skiprows=1, dtype=np.float32)
    return table[:, :-1] / SCALE, table[:, -1]


def model(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network that maps float32 [B, 4] to numbers [B, 1]."""
    (columns,) = input_shape
    return nn.Sequential(nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, num_classes))


if __name__ == "__main__":
    main()
