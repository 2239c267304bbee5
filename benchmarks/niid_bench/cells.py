"""The cells of the grid and what each one runs.

A cell is one run: a tier, a data set, an algorithm, a partition and a seed, and in tuning a point of the grid.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from feddkd.config import Config, read_tables
from feddkd.config.table import flatten
from feddkd.engines.simulation import EngineName

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA_ROOT = ROOT / "data"
TIERS = ("exact", "mini")
OWN_DATA: dict[str, dict[str, Any]] = {
    "cifar10_jpeg": {"name": "niid_bench.cifar10_jpeg:load", "input_shape": [3, 32, 32], "num_classes": 10},
}
"""Data sets that feddkd does not have built in, and what `[data]` says of each."""

DATA_SETS = ("mnist", "fashion_mnist", "cifar10", "svhn", *OWN_DATA)

FRONTIER_TIERS = ("mini", "sampled")
"""Of the rows of frontier.toml."""


def read_toml(name: str) -> dict[str, Any]:
    """The tables of a TOML file in this folder."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


ALGORITHMS = read_toml("algorithms.toml")
FRONTIER = read_toml("frontier.toml")
"""Rows of the accuracy-per-byte frontier; a cell names a row where it would name an algorithm."""

PARTITIONS = read_toml("partitions.toml")
TITLES = {name: table.pop("title") for name, table in PARTITIONS.items()}
DEFAULT_PARTITIONS = ("c1", "c2", "dir0.1", "dir0.5")
DEFAULT_SEEDS = (0, 1, 2)
OWN_KEYS = ("grid", "same_exchanges_as", "what", "tiers", "comparison", "like", "for_data", *TIERS, *FRONTIER_TIERS, *PARTITIONS)
"""Keys of algorithms.toml, frontier.toml and labels.toml that are not of the configuration."""


def published(data: str) -> list[tuple[str, str, dict[str, list[float]]]]:
    """Published accuracies in percent on a data set: source, algorithm, and its numbers by partition."""
    sources = read_toml("published.toml")["source"]
    return [(source["short"], name, values) for source in sources for name, values in source.get(data, {}).items()]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid.

    Attributes:
        point: the dotted keys and values that this cell tries: of a tuning grid, or of a case of labels.toml.
        study: "labels" where `algorithm` is a row of labels.toml, else empty.
    """

    tier: str
    data: str
    algorithm: str
    partition: str
    seed: int
    point: tuple[tuple[str, Any], ...] = ()
    study: str = ""

    def __str__(self) -> str:
        point = "".join(f" {key}={value}" for key, value in self.point)
        return f"{self.tier} {self.data} {self.algorithm} {self.partition} seed {self.seed}{point}"

    @property
    def folder(self) -> Path:
        """Of its record, below the folder of all records."""
        point = "".join(f",{key}={value}" for key, value in self.point)
        return Path(self.tier) / self.data / f"{self.algorithm}-{self.partition}-seed{self.seed}{point}"

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Cell:
        """The cell that a line of a results file is the result of."""
        point = tuple((line.get("grid_point") or {}).items())
        return cls(line["tier"], line["data"], line["algorithm"], line["partition"], line["seed"], point, line.get("study", ""))


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says about every cell.

    Attributes:
        rounds: instead of the tier's and the algorithm's.
        overrides: `table.key=value`, the last word.
        data_root: has one folder for each data set, with its name.
        engine: what carries out the exchanges.
    """

    rounds: int | None = None
    overrides: tuple[str, ...] = ()
    data_root: Path = DATA_ROOT
    engine: EngineName = "in-process"

    @property
    def arguments(self) -> list[str]:
        """These settings as arguments of the scripts that run cells."""
        rounds = ["--rounds", str(self.rounds)] if self.rounds is not None else []
        root = ["--data-root", str(self.data_root)] if self.data_root != DATA_ROOT else []
        engine = ["--engine", self.engine] if self.engine != "in-process" else []
        return [*rounds, *root, *engine, *(text for override in self.overrides for text in ("-o", override))]


def configure(cell: Cell, settings: Settings) -> Config:
    """The configuration of a cell: the tier, then data, partition and algorithm, then the command line.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    tree = read_toml(f"{cell.tier}.toml")
    merge(tree, {"seed": cell.seed, "data": data_table(cell.data, settings.data_root)})
    merge(tree, {"partition": PARTITIONS[cell.partition]})
    merge(tree, settings_of_algorithm(cell))
    for key, value in cell.point:
        put(tree, key, value)
    if settings.rounds is not None:
        merge(tree, {"rounds": settings.rounds})
    merge(tree, read_tables(None, settings.overrides))
    config = Config.parse(tree, source=str(cell))
    if like := table_of(cell).get("same_exchanges_as"):
        other = configure(replace(cell, algorithm=like, point=()), settings)
        config = config.model_copy(update={"rounds": other.rounds * (other.dkd.steps + 1)})
    return config


def data_table(name: str, data_root: Path) -> dict[str, Any]:
    """What `[data]` says of a data set."""
    return {**OWN_DATA.get(name, {"name": name}), "root": str(data_root / name)}


def table_of(cell: Cell) -> dict[str, Any]:
    """The table of a cell's algorithm, or of its row of another file."""
    tables = LABELS if cell.study == "labels" else ALGORITHMS if cell.algorithm in ALGORITHMS else FRONTIER
    table: dict[str, Any] = tables[cell.algorithm]
    return table


def settings_of_algorithm(cell: Cell) -> dict[str, Any]:
    """What the table of the cell's algorithm says, with what it says for the cell's data, tier and partition on top."""
    table = table_of(cell)
    tree = {key: copy.deepcopy(value) for key, value in table.items() if key not in OWN_KEYS}
    merge(tree, table.get("for_data", {}).get(cell.data, {}))
    merge(tree, table.get(cell.tier, {}))
    merge(tree, table.get(cell.partition, {}))
    return tree


def overrides_of(cell: Cell, settings: Settings) -> dict[str, Any]:
    """What the algorithm's table, the grid and the command line say, by dotted key: the settings that a result must state."""
    tree: dict[str, Any] = {}
    merge(tree, settings_of_algorithm(cell))
    for key, value in cell.point:
        put(tree, key, value)
    merge(tree, read_tables(None, settings.overrides))
    return flatten(tree)


def merge(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Write a copy of `over` on top of `tree`, table by table."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = copy.deepcopy(value)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key."""
    for name in reversed(key.split(".")):
        value = {name: value}
    merge(tree, value)


def _labels_rows() -> dict[str, dict[str, Any]]:
    """The rows of labels.toml, each on top of the one that it is like."""
    rows: dict[str, dict[str, Any]] = {}
    for name, table in read_toml("labels.toml")["row"].items():
        rows[name] = {}
        merge(rows[name], rows.get(table.get("like", ""), {}))
        merge(rows[name], table)
    return rows


LABELS = _labels_rows()
"""Rows where labels are few or wrong."""
