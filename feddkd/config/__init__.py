"""The configuration of a run: TOML tables, validated before anything else happens.

`Config()` is the embedded default: scikit-learn's digits, ten clients with one class each, FedDKD.
Unknown keys are refused by name, every key has a default, and `-o table.key=value` overrides a file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, SerializeAsAny, StrictInt, ValidationError, model_validator

from feddkd.config.algorithm import (
    AlgorithmConfig,
    CrossEntropyConfig,
    CustomAlgorithmConfig,
    CustomObjectiveConfig,
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedDKDConfig,
    FedDynConfig,
    FedExPConfig,
    FedMAXConfig,
    FedNTDConfig,
    FedProxConfig,
    FedYogiConfig,
    MOONConfig,
    SCAFFOLDConfig,
)
from feddkd.config.problems import describe
from feddkd.config.table import ImportPath, Table
from feddkd.errors import ConfigError

__all__ = [
    "AlgorithmConfig",
    "Config",
    "CrossEntropyConfig",
    "CustomAlgorithmConfig",
    "CustomObjectiveConfig",
    "DKDConfig",
    "DataConfig",
    "FedAdagradConfig",
    "FedAdamConfig",
    "FedAvgConfig",
    "FedAvgMConfig",
    "FedDKDConfig",
    "FedDynConfig",
    "FedExPConfig",
    "FedMAXConfig",
    "FedNTDConfig",
    "FedProxConfig",
    "FedYogiConfig",
    "ImportPath",
    "MOONConfig",
    "ModelConfig",
    "PartitionConfig",
    "RuntimeConfig",
    "SCAFFOLDConfig",
    "SchedulerConfig",
    "Table",
    "TrainingConfig",
    "TransportConfig",
    "read_tables",
]


class DataConfig(Table):
    """Which examples there are."""

    name: Literal["digits", "mnist", "fashion_mnist", "emnist", "cifar10", "cifar100", "svhn", "image_folder"] | ImportPath = Field(
        "digits", description="a built-in data set, or package.module:function for your own"
    )
    root: Path | None = Field(None, description="folder that holds the data set's files (digits needs none)")
    subset: int | None = Field(None, ge=1, description="use only this many training examples, the first of a seeded shuffle")
    holdout: float = Field(0.1, ge=0, lt=1, description="share of its examples that each client keeps for evaluation")
    test_set: bool = Field(True, description="the server evaluates every round on the data set's test split")
    input_shape: tuple[int, ...] | None = Field(None, description="shape of one example; needed for image_folder and your own data")
    num_classes: int | None = Field(None, ge=2, description="number of classes; needed for image_folder and your own data")
    workers: int = Field(0, ge=0, description="loader processes for data that are streamed from disk (image_folder)")


class PartitionConfig(Table):
    """How one data set is split among simulated clients."""

    name: Literal["iid", "labels_per_client", "dirichlet", "quantity_dirichlet", "shards"] = Field(
        "labels_per_client", description="the rule that deals the training examples to the clients"
    )
    clients: int = Field(10, ge=1, description="number of clients")
    labels: int = Field(1, ge=1, description="labels_per_client: classes a client holds; shards: shards a client gets")
    alpha: float = Field(0.5, gt=0, description="concentration of both Dirichlet rules: smaller is more skewed")
    min_size: int = Field(10, ge=1, description="dirichlet rules draw again until every client has this many examples")


class ModelConfig(Table):
    """Which network is trained."""

    name: Literal["mlp", "niid_cnn", "mcmahan_cnn", "resnet18_gn"] | ImportPath = Field(
        "mlp", description="a built-in model, or package.module:function for your own"
    )


class TrainingConfig(Table):
    """Local training: SGD on a client's own data."""

    epochs: int = Field(5, ge=1, description="passes over the client's data a round")
    batch_size: int = Field(32, ge=1, description="examples in a mini-batch")
    lr: float = Field(0.05, gt=0, description="learning rate of local SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD, reset every round")
    weight_decay: float = Field(1e-5, ge=0, description="L2 penalty of local SGD")


class DKDConfig(Table):
    """The decentralized knowledge distillation steps that follow local training (also those of the control fedavg_sgd)."""

    steps: int = Field(20, ge=0, description="exchanges after local training, J; 0 is FedAvg")
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "yogi", "adagrad"] = Field(
        "adam", description="how the server applies the mean gradient; sgd is the plain step"
    )
    lr: float = Field(0.008, gt=0, description="learning rate of the server optimizer")
    optimizer_state: Literal["reset", "keep"] = Field("keep", description="whether the server optimizer starts afresh every round")
    batch_size: int = Field(64, ge=0, description="examples a client draws for each step; 0 takes all it has")
    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike; the loss is scaled by its square")
    divergence: Literal["kl", "reverse_kl", "js", "mse_logits"] = Field(
        "kl", description="distance from student to teacher; kl is KL(teacher || student)"
    )
    hard_label_weight: float = Field(0.5, ge=0, le=1, description="share of the true labels' cross-entropy in the loss; 0 is the paper's")
    correct_teacher: bool = Field(False, description="follow the true label where the teacher's most likely class is another")
    not_true: bool = Field(False, description="leave each example's true class out of the divergence")
    start: Literal["better", "average", "previous"] = Field(
        "better", description="where the steps start: the new parameter average, the previous global model, or whichever has the lower loss"
    )
    clip_norm: float | None = Field(None, gt=0, description="longest mean gradient that the server steps with; longer ones are shortened")
    tail: float = Field(
        0.5,
        ge=0,
        le=1,
        description="average the students of the last steps, this share of `steps`; 0, or an end before them, takes the last one",
    )
    patience: int = Field(0, ge=0, description="end a round's steps when the mean loss of so many no longer falls by 1 %; 0: never")


class SchedulerConfig(Table):
    """Who takes part in a round, how long the server waits, and what it does when too few answer."""

    cohort: Literal["all"] | StrictInt | float = Field(
        "all", union_mode="left_to_right", description='clients a round: "all", a number (8), or a fraction (0.1)'
    )
    min_clients: int = Field(1, ge=1, description="quorum: answers below this number fail an exchange")
    wait_for_clients: int | None = Field(
        None, ge=1, description="clients that must have joined before round 1; default: partition.clients for feddkd run, else min_clients"
    )
    weights: Literal["examples", "uniform"] = Field("examples", description="weigh clients by their example counts, or all alike")
    deadline_s: float = Field(600.0, gt=0, description="seconds an exchange waits for a client's answer to arrive")
    stall_timeout_s: float = Field(60.0, gt=0, description="seconds without a chunk after which an upload under way is given up")
    reconnect_grace_s: float = Field(3.0, ge=0, description="seconds a client that lost its connection has to come back into an exchange")
    retries: int = Field(2, ge=0, description="times a round below quorum is tried again before the run pauses")
    pause_timeout_s: float = Field(600.0, ge=0, description="seconds a paused run waits for clients before it fails")

    @model_validator(mode="after")
    def _cohort_is_sensible(self) -> Self:
        if isinstance(self.cohort, float) and not 0 < self.cohort <= 1:
            raise ValueError(f"cohort: a fraction lies in (0, 1], not {self.cohort}")
        if isinstance(self.cohort, int) and self.cohort < 1:
            raise ValueError(f"cohort: at least 1 client is needed, not {self.cohort}")
        if isinstance(self.cohort, int) and self.cohort < self.min_clients:
            raise ValueError(f"cohort: {self.cohort} clients can never reach min_clients = {self.min_clients}")
        return self


class TransportConfig(Table):
    """How tensors cross the network."""

    chunk_bytes: int = Field(1 << 20, ge=1 << 10, le=(4 << 20) - (1 << 12), description="bytes of tensor data in one message")
    staging_bytes: int = Field(
        16 << 20, ge=1 << 20, description="memory for uploads that wait to be reduced, over all clients; two chunks a client at least"
    )


class RuntimeConfig(Table):
    """How processes use this machine."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="where clients compute")
    threads: int = Field(1, ge=1, description="CPU threads a client computes with; results are the same bits only for the same number")
    client_processes: int | None = Field(None, ge=1, description="processes that host the clients of feddkd run; default: one a core")


class Config(Table):
    """The whole configuration of a run."""

    seed: int = Field(0, ge=0, lt=2**32, description="seed of everything random")
    rounds: int = Field(10, ge=1, description="rounds to run")
    data: DataConfig = DataConfig()
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    # As it is: to look up its table again would call back into Python, where pydantic swallows a KeyboardInterrupt.
    algorithm: SerializeAsAny[AlgorithmConfig] = FedDKDConfig()
    dkd: DKDConfig = DKDConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    transport: TransportConfig = TransportConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @classmethod
    def load(cls, path: Path | None = None, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file (or take the embedded default) and apply `table.key=value` overrides.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or a key or value is wrong.
        """
        return cls.parse(read_tables(path, overrides), source=str(path) if path else "configuration")

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

    def to_toml(self) -> str:
        """The resolved configuration as TOML that `load` reads back to an equal one."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_tables(path: Path | None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a TOML file and `table.key=value` overrides say, and nothing else: no defaults, nothing validated.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or an override has another form.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(tree, override)
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"override {override!r} is not of the form table.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string: -o algorithm.name=fedavg
    table = tree
    for name in path[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {name!r} is a value, not a table")
    table[path[-1]] = value
