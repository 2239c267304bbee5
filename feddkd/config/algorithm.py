"""The table `[algorithm]`: which algorithm runs, its own settings, and what clients minimise in local training.

Each algorithm has a table class of its own, chosen by `name`, so a setting that an algorithm does not have is
refused by name. The algorithms whose whole idea is a local loss are local objectives too: FedDKD with
`local_objective = "fedntd"` is FedDKD whose clients train as FedNTD's do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, SerializeAsAny, Tag

from feddkd.config.table import ImportPath, Table


class CrossEntropyConfig(Table):
    """Plain local training: the cross-entropy of the true labels."""

    name: Literal["cross_entropy"] = "cross_entropy"


class FedProxConfig(Table):
    """Local training held near the global model (arXiv 1812.06127)."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, ge=0, description="weight of the proximal term (mu/2) ||w - w_t||²")


class FedNTDConfig(Table):
    """Local training that keeps what the global model says of the classes that are not true (arXiv 2106.03097)."""

    name: Literal["fedntd"] = "fedntd"
    beta: float = Field(1.0, ge=0, description="weight of the not-true distillation loss")
    temperature: float = Field(1.0, gt=0, description="softens both sides of the not-true distillation")


class FedMAXConfig(Table):
    """Local training that keeps the activations before the classifier spread out (arXiv 2004.03657)."""

    name: Literal["fedmax"] = "fedmax"
    beta: float = Field(10.0, ge=0, description="weight of KL(uniform || softmax(activations))")


class MOONConfig(Table):
    """Local training that pulls features to the global model's and away from the last local model's (arXiv 2103.16257)."""

    name: Literal["moon"] = "moon"
    mu: float = Field(1.0, ge=0, description="weight of the contrastive loss")
    temperature: float = Field(0.5, gt=0, description="temperature of the contrastive loss")


class CustomObjectiveConfig(Table):
    """A local objective of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides `name`, as the TOML file has them."""
        return dict(self.model_extra or {})


def _tag(value: Any) -> str | None:
    """Which table class a value is to be read with: its name, or "custom" for an import path."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "custom" if isinstance(name, str) and ":" in name else name


def _objective_table(value: Any) -> Any:
    """`local_objective = "fedntd"` is short for `local_objective = { name = "fedntd" }`."""
    return {"name": value} if isinstance(value, str) else value


ObjectiveConfig = Annotated[
    Annotated[CrossEntropyConfig, Tag("cross_entropy")]
    | Annotated[FedProxConfig, Tag("fedprox")]
    | Annotated[FedNTDConfig, Tag("fedntd")]
    | Annotated[FedMAXConfig, Tag("fedmax")]
    | Annotated[MOONConfig, Tag("moon")]
    | Annotated[CustomObjectiveConfig, Tag("custom")],
    Discriminator(_tag),
    BeforeValidator(_objective_table),
]
"""What clients minimise in local training: a name, or a table with its settings."""


class _WithObjective(Table):
    local_objective: SerializeAsAny[ObjectiveConfig] = Field(
        CrossEntropyConfig(), description='what clients minimise in local training: "fedntd", or { name = "fedntd", beta = 0.3 }'
    )


class FedAvgConfig(_WithObjective):
    """The average of locally trained models (arXiv 1602.05629)."""

    name: Literal["fedavg"] = "fedavg"


class FedDKDConfig(_WithObjective):
    """FedAvg, then distillation of all local models into the average (arXiv 2205.00706); its settings are in `[dkd]`."""

    name: Literal["feddkd"] = "feddkd"


class FedAvgSGDConfig(_WithObjective):
    """The control: FedDKD's exchanges with true labels in place of the teachers'; its settings are in `[dkd]`."""

    name: Literal["fedavg_sgd"] = "fedavg_sgd"


class SelfTrainingConfig(_WithObjective):
    """FedDKD's exchanges with labels and the global model's own predictions in place of teachers; its settings are in `[dkd]`."""

    name: Literal["self_training"] = "self_training"
    confidence: float = Field(0.95, ge=0, lt=1, description="probability above which a prediction serves as a label")
    classes: Literal["own", "all"] = Field("own", description="what can be predicted: classes that the client has labels of, or all")


class SemiFLConfig(_WithObjective):
    """FedAvg on the labels, alternating with FedAvg on the average's own confident predictions (arXiv 2106.01432)."""

    name: Literal["semifl"] = "semifl"
    confidence: float = Field(0.95, ge=0, lt=1, description="probability above which a prediction serves as a label")
    beta: float = Field(0.75, gt=0, description="shares of two mixed examples are drawn from Beta(beta, beta)")
    mix_weight: float = Field(1.0, ge=0, description="weight of the loss on mixed examples")
    augment: bool = Field(True, description="shift and flip images at random in the loss on confident examples")


class SCAFFOLDConfig(Table):
    """Local training corrected by control variates (arXiv 1910.06378)."""

    name: Literal["scaffold"] = "scaffold"
    server_lr: float = Field(1.0, gt=0, description="how far the server follows the mean update")


class FedNovaConfig(_WithObjective):
    """Updates averaged per local step, for clients that take different numbers of them (arXiv 2007.07481)."""

    name: Literal["fednova"] = "fednova"


class FedAvgMConfig(_WithObjective):
    """Server momentum on the mean update (arXiv 1909.06335)."""

    name: Literal["fedavgm"] = "fedavgm"
    server_lr: float = Field(1.0, gt=0, description="learning rate of the server")
    server_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of the server")
    nesterov: bool = Field(False, description="look ahead along the momentum")


class _FedOptConfig(_WithObjective):
    server_lr: float = Field(0.01, gt=0, description="learning rate of the server")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    tau: float = Field(1e-3, gt=0, description="adaptivity: added to the root of the second moment")


class FedAdagradConfig(_FedOptConfig):
    """Adagrad on the server (arXiv 2003.00295)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment")


class FedAdamConfig(_FedOptConfig):
    """Adam on the server (arXiv 2003.00295)."""

    name: Literal["fedadam"] = "fedadam"
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")


class FedYogiConfig(_FedOptConfig):
    """Yogi on the server (arXiv 2003.00295)."""

    name: Literal["fedyogi"] = "fedyogi"
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")


class FedDynConfig(Table):
    """Local losses whose minima agree with the global one's (arXiv 2111.04263)."""

    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(0.01, gt=0, description="weight of the dynamic regularizer")


class FedExPConfig(_WithObjective):
    """A server step that is the longer, the more the updates disagree (arXiv 2301.09604)."""

    name: Literal["fedexp"] = "fedexp"
    epsilon: float = Field(1e-3, gt=0, description="added to the squared norm of the mean update")


class CustomAlgorithmConfig(_WithObjective):
    """An algorithm of your own; other keys are its settings, to be found in `settings`."""

    model_config = ConfigDict(extra="allow")
    name: ImportPath

    @property
    def settings(self) -> dict[str, Any]:
        """The keys besides `name` and `local_objective`, as the TOML file has them."""
        return dict(self.model_extra or {})


def _algorithm_tag(value: Any) -> str | None:
    """A table without a name is FedDKD's."""
    return _tag({"name": "feddkd", **value} if isinstance(value, dict) else value)


AlgorithmConfig = Annotated[
    Annotated[FedDKDConfig, Tag("feddkd")]
    | Annotated[FedAvgSGDConfig, Tag("fedavg_sgd")]
    | Annotated[SelfTrainingConfig, Tag("self_training")]
    | Annotated[SemiFLConfig, Tag("semifl")]
    | Annotated[FedAvgConfig, Tag("fedavg")]
    | Annotated[FedProxConfig, Tag("fedprox")]
    | Annotated[SCAFFOLDConfig, Tag("scaffold")]
    | Annotated[FedNovaConfig, Tag("fednova")]
    | Annotated[FedAvgMConfig, Tag("fedavgm")]
    | Annotated[FedAdagradConfig, Tag("fedadagrad")]
    | Annotated[FedAdamConfig, Tag("fedadam")]
    | Annotated[FedYogiConfig, Tag("fedyogi")]
    | Annotated[FedDynConfig, Tag("feddyn")]
    | Annotated[MOONConfig, Tag("moon")]
    | Annotated[FedNTDConfig, Tag("fedntd")]
    | Annotated[FedMAXConfig, Tag("fedmax")]
    | Annotated[FedExPConfig, Tag("fedexp")]
    | Annotated[CustomAlgorithmConfig, Tag("custom")],
    Discriminator(_algorithm_tag),
]
"""The settings of one algorithm."""
