"""The configuration of a run: TOML tables, validated before anything else happens.

`Config()` is the embedded default: scikit-learn's digits, ten clients with one class each, FedDKD.
Unknown keys are refused by name, every key has a default, and `-o table.key=value` overrides a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator

from feddkd.config.aggregation import AggregationConfig, CustomRuleConfig, RuleTable
from feddkd.config.algorithm import AlgorithmConfig, AlgorithmTable, CustomAlgorithmConfig, CustomObjectiveConfig
from feddkd.config.communication import CommunicationConfig, proposals, with_proposals
from feddkd.config.data import DataConfig, PartitionConfig
from feddkd.config.main_metric import ACCURACY, MainMetric
from feddkd.config.named import NamedTable
from feddkd.config.problems import describe, shortened
from feddkd.config.scheduler import SchedulerConfig
from feddkd.config.table import COUNT_MAX, ImportPath, Table, flatten
from feddkd.config.tables import (
    DKDConfig,
    ModelConfig,
    RuntimeConfig,
    TransportConfig,
)
from feddkd.config.task import CustomTaskConfig, MetricName, TaskConfig, TaskTable
from feddkd.config.teacher import STUDENT, TeacherConfig
from feddkd.config.toml import MAX_DEPTH, check_depth, load_toml, parse_toml, parse_value
from feddkd.config.training import TrainingConfig
from feddkd.errors import ConfigError
from feddkd.text import SHARES

__all__ = [
    "ACCURACY",
    "STUDENT",
    "AggregationConfig",
    "AlgorithmConfig",
    "AlgorithmTable",
    "CommunicationConfig",
    "Config",
    "CustomAlgorithmConfig",
    "CustomObjectiveConfig",
    "CustomRuleConfig",
    "CustomTaskConfig",
    "DKDConfig",
    "DataConfig",
    "ImportPath",
    "MainMetric",
    "MetricName",
    "ModelConfig",
    "NamedTable",
    "PartitionConfig",
    "RuleTable",
    "RuntimeConfig",
    "SchedulerConfig",
    "Table",
    "TaskConfig",
    "TaskTable",
    "TeacherConfig",
    "TrainingConfig",
    "TransportConfig",
    "read_tables",
]


class Config(Table):
    """The whole configuration of a run."""

    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    rounds: int = Field(10, ge=1, le=COUNT_MAX, description="rounds to run")
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    task: TaskConfig = Field({"name": "classification"}, validate_default=True)
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    algorithm: AlgorithmConfig = Field({"name": "feddkd"}, validate_default=True)
    dkd: DKDConfig = DKDConfig()
    teacher: TeacherConfig = TeacherConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)  # a rule's module imports torch
    communication: CommunicationConfig = CommunicationConfig()
    transport: TransportConfig = TransportConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="before")
    @classmethod
    def _take_proposals(cls, tree: Any) -> Any:
        return with_proposals(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _a_teacher_can_be_chosen(self) -> Self:
        if self.dkd.teacher != "auto" or self.algorithm.name != "feddkd":
            return self
        if self.data.holdout == 0:
            raise ValueError('dkd.teacher = "auto": it needs held-out labelled examples; set data.holdout above 0')
        if self.dkd.hard_label_weight == 1:
            raise ValueError('dkd.teacher = "auto": with dkd.hard_label_weight = 1 there is no teacher to choose')
        if self.dkd.steps < 2:
            raise ValueError(f'dkd.teacher = "auto": a choice may cost one step, so at least 2 are needed, not {self.dkd.steps}')
        return self

    @model_validator(mode="after")
    def _a_class_is_chosen(self) -> Self:
        if self.task.name == "classification" and self.data.num_classes == 1:
            raise ValueError("data.num_classes = 1: classification needs at least 2 classes")
        return self

    @model_validator(mode="after")
    def _a_share_is_reached(self) -> Self:
        assert isinstance(self.task, TaskTable)
        goal, metric = self.scheduler.stop_at, self.task.metric
        if goal is not None and metric in SHARES and not 0 < goal <= 1:
            raise ValueError(f"scheduler.stop_at = {goal:g}: {metric} lies between 0 and 1, so 95 % is 0.95")
        return self

    @model_validator(mode="after")
    def _rounds_are_evaluated(self) -> Self:
        """What follows the accuracy needs one."""
        scheduler = self.scheduler
        asked = {
            'deliver = "best"': scheduler.deliver == "best",
            f"stop_at = {scheduler.stop_at}": scheduler.stop_at is not None,
            f"patience = {scheduler.patience}": scheduler.patience > 0,
            f"keep_checkpoints = {scheduler.keep_checkpoints}": scheduler.keep_checkpoints > 0,
        }
        first = next((key for key, is_asked in asked.items() if is_asked), None)
        if first is not None and not self.data.test_set and self.data.holdout == 0:
            raise ValueError(f"scheduler.{first}: no round is evaluated; set data.test_set = true, or data.holdout above 0")
        return self

    @property
    def eval_batch_size(self) -> int:
        """Examples in one batch outside of training: as many as fit into memory in training, unless it is said."""
        return self.runtime.eval_batch_size or self.training.batch_size

    def preset_lines(self) -> list[str]:
        """Say in two lines at most what the preset sets, and what was given instead."""
        name = self.communication.preset
        proposed = flatten(proposals(name, self.algorithm.name))
        actual = flatten(self.model_dump(mode="json", include={"communication", "dkd"}))
        taken = [f"{key} = {value}" for key, value in proposed.items() if actual[key] == value]
        given = [f"{key} = {actual[key]} (not {value})" for key, value in proposed.items() if actual[key] != value]
        nothing = [f"preset {name}: it changes nothing for {self.algorithm.name}"] if name != "none" and not proposed else []
        lines = [f"preset {name}: {', '.join(taken)}"] if taken else nothing
        return lines + ([f"given instead: {', '.join(given)}"] if given else [])

    def check_exchanges(self, known: Iterable[str]) -> None:
        """Check that tables which name exchanges name those of the algorithm. Raises ConfigError."""
        names = list(known)
        self.aggregation.check_exchanges(names)
        self.communication.check_exchanges(names)

    @classmethod
    def load(cls, path: Path | None = None, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file (or take the embedded default) and apply `table.key=value` overrides.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or a key or value is wrong.
        """
        return cls.parse(read_tables(path, overrides), source=str(path) if path else "configuration")

    @classmethod
    def loads(cls, text: str, overrides: Iterable[str] = (), *, source: str = "configuration") -> Self:
        """Parse TOML that `to_toml` wrote, and apply overrides. Raises ConfigError, naming `source`."""
        tree = parse_toml(text, source)
        for override in overrides:
            _apply_override(tree, override)
        return cls.parse(tree, source)

    @classmethod
    def parse(cls, tree: Mapping[str, Any], source: str = "configuration") -> Self:
        """Validate a tree of tables.

        Raises:
            ConfigError: naming `source`, the first wrong key and its value, and how many more are wrong.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(f"{source}: {describe(error, cls)}") from None

    def shared_toml(self) -> str:
        """Return the configuration that clients are told, as TOML: without what belongs to this machine.

        That is the folder of its data, the weights that it starts from, how its processes use it (`[runtime]`), how
        contributions are reduced (`[aggregation]`), the networks that only sites have (`[teacher]`), and how many
        examples other sites may have.
        """
        own: Any = {"teacher": True, "runtime": True, "aggregation": True, "scheduler": {"max_examples_of"}}
        excluded: Any = {"data": {"root"}, "model": {"init"}, **own}
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, exclude=excluded))

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML that `load` reads back to an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_tables(path: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return what a TOML file and `table.key=value` overrides say, and nothing else: no defaults, nothing validated.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or an override has another form.
    """
    tree = load_toml(path) if path is not None else {}
    for override in overrides:
        _apply_override(tree, override)
    check_depth(tree, "configuration")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    shown = shortened(override)
    if not equals or not all(path) or not key.isprintable() or len(path) > MAX_DEPTH:
        raise ConfigError(f"override {shown} is not of the form table.key=value")
    table = tree
    for depth, name in enumerate(path[:-1], start=1):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            # "rule = 'median'" is short for a table of that name, which has no place for other keys.
            holder = ".".join(path[:depth])
            instead = f"; for a table of this name write {holder}.name={table:.40}" if isinstance(table, str) else ""
            raise ConfigError(f"override {shown}: {shortened(name)} is a value, not a table{instead}")
    table[path[-1]] = parse_value(text, f"override {shown}")
