"""The FedAvg work through pfl, in one process; runs where pfl is installed.

python pfl_simulation.py WORK.npz ROUNDS OUT.npz
"""

import os
import sys
import time

os.environ["PFL_PYTORCH_DEVICE"] = "cpu"  # read when pfl is imported

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from simulation_work import BATCH, LR, Work, save
from torch import nn


class WithLoss(nn.Module):
    """Has the loss and the metrics that pfl asks of a network."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def loss(self, x, y):
        self.train()
        return F.cross_entropy(self.network(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        self.eval()
        return {"loss": Weighted(F.cross_entropy(self.network(x), y, reduction="sum").item(), len(x))}


class RoundEnds(TrainingProcessCallback):
    """Notes when each round ends."""

    def __init__(self):
        self.ends_s = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.ends_s.append(time.perf_counter())
        return False, Metrics()


def main():
    path, rounds, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    work = Work(path)
    module = WithLoss(work.model())
    model = PyTorchModel(
        model=module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    turns = iter([(index, position) for index in range(rounds) for position in range(work.cohort)])
    users = FederatedDataset(lambda turn: Dataset(raw_data=work.data(*turn)), lambda: next(turns))
    ends = RoundEnds()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,  # round 1 evaluates nevertheless: it is warm-up
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=users, val_data=None, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
        callbacks=[ends],
        send_metrics_to_platform=False,
    )
    save(out, ends.ends_s, module.network.state_dict())


if __name__ == "__main__":
    main()
