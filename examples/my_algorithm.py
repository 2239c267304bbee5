"""A custom algorithm in one file: FedAvg with a learning rate and momentum at the server (FedAvgM).

cd examples && feddkd run -o algorithm.name=my_algorithm:FedAvgM -o algorithm.server_lr=0.7 -o partition.name=iid -o rounds=3

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
arXiv 1909.06335.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from feddkd import (
    Algorithm,
    ClientSide,
    Cohort,
    Config,
    ExchangeKind,
    Reply,
    ServerOptimizer,
    Site,
    Table,
    Task,
    Tensors,
    own_settings,
    train_locally,
)


class FedAvgMSettings(Table):
    """The keys of [algorithm] that this algorithm adds, checked before anything runs."""

    server_lr: float = Field(0.5, gt=0)


class FedAvgMClient(ClientSide):
    """Runs at a site: one method for each exchange, with the exchange's name."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.objective = site.new_objective(site)  # the cross-entropy, or what algorithm.local_objective says

    def local_train(self, task: Task) -> Reply:
        training = train_locally(self.site, task, self.objective)
        update = self.site.model() - task.payload
        return Reply(
            contribution=update,
            loss=training.loss,
            gradient_evaluations=training.gradient_evaluations,  # for comparisons at equal work
            metrics={"local_steps": training.steps},
        )


class FedAvgM(Algorithm):
    """w <- w - lr m with m <- 0.9 m + (w - average): the negative mean update is the gradient."""

    client_side = FedAvgMClient

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        settings = own_settings(config, FedAvgMSettings)
        self.server_optimizer = ServerOptimizer("momentum", settings.server_lr, keep_state=True)

    @classmethod
    def exchanges(cls, config: Config) -> Mapping[str, ExchangeKind]:
        return {"local_train": ExchangeKind()}  # the model goes down, an update comes back

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        update = cohort.exchange("local_train", model)
        received = cohort.sent  # the model as the clients have it, which the update starts at
        average = received + update
        parameters = model.schema.trainable
        gradient = (received - average).select(parameters)
        # Buffers (BatchNorm statistics, counters) are averaged; parameters are stepped from where they were.
        return self.server_optimizer.step(average.replace(received.select(parameters)), gradient)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.server_optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.server_optimizer.load_state_dict(state)
