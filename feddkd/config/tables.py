"""Defines the tables `[model]`, `[training]`, `[dkd]`, `[transport]` and `[runtime]`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from feddkd.config.named import RegisteredName
from feddkd.config.table import COUNT_MAX, PROCESSES_MAX, ImportPath, Table
from feddkd.registry import DIVERGENCES, MODELS, OPTIMIZERS

# Defaults that are registered names are not validated: that would import them, and torch, together with this module.


class ModelConfig(Table):
    """Which network is trained."""

    name: Annotated[str, RegisteredName(MODELS)] | ImportPath = Field(
        "mlp",
        validate_default=False,
        description="a built-in model, or package.module:function for your own",
    )


class TrainingConfig(Table):
    """Local training: SGD on a client's own labelled data."""

    epochs: int = Field(
        5,
        ge=1,
        le=COUNT_MAX,
        description="passes over the client's data a round; where some have no label, as many steps, all on the labelled ones",
    )
    steps: int | None = Field(None, ge=1, le=COUNT_MAX, description="steps a round, instead of `epochs`")
    batch_size: int = Field(32, ge=1, le=COUNT_MAX, description="examples in a mini-batch")
    lr: float = Field(0.05, gt=0, description="learning rate of local SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local SGD, reset every round")
    weight_decay: float = Field(1e-5, ge=0, description="L2 penalty of local SGD")


class DKDConfig(Table):
    """The decentralized knowledge distillation steps that follow local training (also those of the control fedavg_sgd)."""

    steps: int = Field(20, ge=0, le=COUNT_MAX, description="steps a round takes after local training, J; 0 is FedAvg")
    optimizer: Annotated[str, RegisteredName(OPTIMIZERS)] = Field(
        "adam", validate_default=False, description="how the server applies the mean gradient; sgd is the plain step"
    )
    lr: float = Field(0.008, gt=0, description="learning rate of the server optimizer")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of adam's and yogi's second moment; the others have none and ignore it")
    optimizer_state: Literal["reset", "keep"] = Field("keep", description="whether the server optimizer starts afresh every round")
    batch_size: int = Field(
        64,
        ge=0,
        le=COUNT_MAX,
        description="examples a client draws for each step, with a label or without; 0 takes all it has",
    )
    teacher: Literal["local", "auto"] = Field(
        "local",
        description="what the steps go by: the local models, or (auto) in each round the best of these, the global model's own "
        "confident predictions and the labels alone, by what clients count on the examples that they hold out",
    )
    scope: (
        Literal["full"]
        | Annotated[
            tuple[Annotated[str, StringConstraints(strict=True, min_length=1)], ...],
            Field(min_length=1, max_length=10_000, fail_fast=True, strict=False),
        ]
    ) = Field("full", description='parameters that a step moves and sends: all, or those of these names or shell patterns (["5.*"])')
    piggyback: bool = Field(
        False,
        description="rounds that average carry one gradient of the distillation beside the update, "
        "and the server takes one step with it after the average",
    )
    temperature: float = Field(1.0, gt=0, description="softens teacher and student alike; the loss is scaled by its square")
    divergence: Annotated[str, RegisteredName(DIVERGENCES)] = Field(
        "kl", validate_default=False, description="distance from student to teacher; kl is KL(teacher || student)"
    )
    hard_label_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the true labels' cross-entropy in the loss of examples that have one; 0 is the paper's",
    )
    confidence: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="leave out examples without a label whose teacher is no surer than this of its most likely class; 0: none",
    )
    bootstrap: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the student's own most likely class in the true labels, against labels that are wrong (arXiv 1412.6596)",
    )
    correct_teacher: bool = Field(False, description="follow the true label where the teacher's most likely class is another")
    not_true: bool = Field(False, description="leave each example's true class out of the divergence")
    start: Literal["better", "average", "previous"] = Field(
        "better",
        description="where the steps start: at the new parameter average (the paper's form), at the previous global model "
        "(local models do not travel, and a round is `steps` exchanges), or at whichever of the two has the lower loss",
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="longest mean gradient that the server steps with; longer ones are shortened",
    )
    growth_limit: float = Field(
        3.0,
        ge=0,
        description="longest mean gradient that adam and yogi step with, in multiples of the longest one that their moments hold; "
        "longer ones are shortened; at least 1, or 0 for no limit; the other optimizers ignore it",
    )
    tail: float = Field(
        0.5,
        ge=0,
        le=1,
        description="average the students of the last steps, this share of `steps`; 0, or an end before them, takes the last one",
    )
    patience: int = Field(
        0,
        ge=0,
        le=COUNT_MAX,
        description="end a round's steps when the mean loss of so many no longer falls by 1 %; 0: never",
    )

    @field_validator("growth_limit")
    @classmethod
    def _a_limit_lets_gradients_keep_their_length(cls, factor: float) -> float:
        if 0 < factor < 1:
            raise ValueError(f"{factor:g} would shorten every gradient; at least 1 is a limit, 0 is none")
        return factor

    @model_validator(mode="after")
    def _a_round_moves_the_model(self) -> Self:
        if self.start == "previous" and self.steps == 0:
            raise ValueError('steps = 0: with start = "previous" no local model is averaged, so a round takes at least one step')
        return self


class TransportConfig(Table):
    """How tensors cross the network."""

    chunk_bytes: int = Field(
        1 << 20,
        ge=1 << 10,
        le=(4 << 20) - (1 << 12),
        description="bytes of tensor data in one message; with codecs, results are the same bits only for the same number",
    )
    staging_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        le=1 << 50,
        description="memory for contributions that wait to be reduced, over all clients; what does not fit goes to a temporary file",
    )


class RuntimeConfig(Table):
    """How processes use this machine."""

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="where clients compute")
    threads: int = Field(
        1,
        ge=1,
        le=PROCESSES_MAX,
        description="CPU threads a client computes with; results are the same bits only for the same number",
    )
    client_processes: int | None = Field(
        None,
        ge=1,
        le=PROCESSES_MAX,
        description="processes that host the clients of feddkd run; default: one a core",
    )
