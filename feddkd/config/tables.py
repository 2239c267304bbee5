"""Defines the tables `[model]`, `[dkd]`, `[transport]` and `[runtime]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from feddkd.config.home import expanded
from feddkd.config.named import RegisteredName
from feddkd.config.table import COUNT_MAX, PROCESSES_MAX, ImportPath, Table, writable_path
from feddkd.registry import DIVERGENCES, MODELS, OPTIMIZERS

# Defaults that are registered names are not validated: that would import them, and torch, together with this module.


class ModelConfig(Table):
    """The network that is trained."""

    name: Annotated[str, RegisteredName(MODELS)] | ImportPath = Field(
        "mlp",
        validate_default=False,
        description="a built-in model, or package.module:function for your own",
    )
    init: Path | None = Field(
        None,
        strict=False,
        description="safetensors file with the weights that the server starts from, a whole state_dict; default: drawn with the seed",
    )
    local_buffers: bool = Field(
        False,
        description="each client keeps buffers that training changes (the statistics of BatchNorm) for itself; they are not sent",
    )

    @field_validator("init")
    @classmethod
    def _path_can_be_written_down(cls, path: Path | None) -> Path | None:
        return path if path is None else expanded(writable_path(path))


class DKDConfig(Table):
    """The decentralized knowledge distillation steps that follow local training (also those of the control fedavg_sgd)."""

    steps: int = Field(20, ge=0, le=COUNT_MAX, description="steps per round after local training, J; 0 is FedAvg")
    optimizer: Annotated[str, RegisteredName(OPTIMIZERS)] = Field(
        "adam", validate_default=False, description="how the server applies the mean gradient; sgd is the plain gradient step"
    )
    lr: float = Field(0.008, gt=0, description="learning rate of the server optimizer")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment of adam and yogi; other optimizers ignore it")
    optimizer_state: Literal["reset", "keep"] = Field(
        "keep", description="moments of the server optimizer: reset them every round, or keep them"
    )
    batch_size: int = Field(
        64,
        ge=0,
        le=COUNT_MAX,
        description="examples that a client draws for each step, labelled or not; 0: all of its examples",
    )
    teacher: Literal["local", "auto"] = Field(
        "local",
        description="what the steps learn from: local uses the local models; auto chooses in each round between the local models, "
        "the global model's own confident predictions and only the labels, by their accuracy on held-out examples",
    )
    scope: (
        Literal["full"]
        | Annotated[
            tuple[Annotated[str, StringConstraints(strict=True, min_length=1)], ...],
            Field(min_length=1, max_length=10_000, fail_fast=True, strict=False),
        ]
    ) = Field("full", description='parameters that a step moves and sends: all, or a list of names or shell patterns (["5.*"])')
    piggyback: bool = Field(
        False,
        description="clients send one distillation gradient beside the update, in rounds that average; "
        "the server takes one step with it after the average",
    )
    temperature: float = Field(1.0, gt=0, description="softmax temperature of teacher and student; the loss is scaled by its square")
    divergence: Annotated[str, RegisteredName(DIVERGENCES)] | ImportPath = Field(
        "kl",
        validate_default=False,
        description="distance from student to teacher; kl is KL(teacher || student), for regression the squared error; "
        "package.module:function is your own",
    )
    hard_label_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the cross-entropy with the true label in the loss of a labelled example; 0 is the paper's loss",
    )
    confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="exclude unlabelled examples whose teacher's highest class probability is at most this; 0: exclude none",
    )
    bootstrap: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the student's own most likely class in the label, to reduce the effect of wrong labels (arXiv 1412.6596)",
    )
    correct_teacher: bool = Field(False, description="use only the true label of an example if the teacher's most likely class is wrong")
    not_true: bool = Field(False, description="exclude each example's true class from the divergence")
    start: Literal["better", "average", "previous"] = Field(
        "better",
        description="where the steps start: average is the average of the local models (the paper's form), previous is the previous "
        "global model (clients upload no local models, and a round is `steps` exchanges), better is the one with the lower loss",
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="largest norm of the mean gradient; longer gradients are clipped",
    )
    growth_limit: float = Field(
        3.0,
        ge=0,
        description="largest norm of the mean gradient with adam and yogi, as a multiple of the longest gradient that their moments hold; "
        "longer gradients are clipped; at least 1, or 0 for no limit; other optimizers ignore it",
    )
    tail: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a round's last steps whose students are averaged; 0, or a round that ends before them, uses the last student",
    )
    patience: int = Field(
        0,
        ge=0,
        le=COUNT_MAX,
        description="early stopping: end a round's steps when the mean loss over this many steps falls by less than 1 %; 0: never",
    )

    @field_validator("growth_limit")
    @classmethod
    def _a_limit_lets_gradients_keep_their_length(cls, factor: float) -> float:
        if 0 < factor < 1:
            raise ValueError(f"{factor:g} would clip every gradient; use at least 1, or 0 for no limit")
        return factor

    @model_validator(mode="after")
    def _a_round_moves_the_model(self) -> Self:
        if self.start == "previous" and self.steps == 0:
            raise ValueError('steps = 0: with start = "previous" no local model is averaged, so a round takes at least one step')
        return self


class TransportConfig(Table):
    """How tensors are sent over the network."""

    chunk_bytes: int = Field(
        1 << 20,
        ge=1 << 10,
        le=(4 << 20) - (1 << 12),
        description="bytes of tensor data per message; with codecs, another value gives other bits",
    )
    staging_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        le=1 << 50,
        description="memory for contributions that wait to be reduced, over all clients; the rest goes to a temporary file",
    )
    contribution_hash: Literal["checksums", "sha256"] = Field(
        "checksums",
        description="what names a contribution in the server's audit log: the SHA-256 of its chunks' CRC-32C, which costs nothing, "
        "or of all its bytes, about half a millisecond per MiB",
    )


class RuntimeConfig(Table):
    """How processes use the machine."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="device on which clients compute")
    threads: int = Field(
        1,
        ge=1,
        le=PROCESSES_MAX,
        description="CPU threads per client; another value gives other bits",
    )
    eval_batch_size: int | None = Field(
        None,
        ge=1,
        le=COUNT_MAX,
        description="examples in a batch of an evaluation, of a teacher's logits and of a DKD step's gradient; "
        "default: `training.batch_size`; another value changes results by rounding",
    )
    client_processes: int | None = Field(
        None,
        ge=1,
        le=PROCESSES_MAX,
        description="processes that host the clients of feddkd run; default: one per core, with --engine ray of the cluster",
    )
    ray_address: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="with --engine ray: HOST:PORT of a cluster, or auto for the one of this machine; default: Ray is started for the run",
    )
    ray_gpus: float = Field(
        0.0,
        ge=0,
        le=1,
        description="with --engine ray: share of a GPU for each process of clients; 0.25 lets four of them use one",
    )
