"""FedAvg + J synchronous SGD exchanges on hard labels: the control for FedDKD.

A DKD step is one step of synchronous SGD (McMahan et al. 2017 call it FedSGD) on the teachers' soft
labels. This algorithm sends exactly the same bytes and differs in one thing: the labels are the
true ones.
"""

from __future__ import annotations

from feddkd.algorithms.feddkd import FedDKD, FedDKDClient
from feddkd.algorithms.site import Site
from feddkd.dkd import Distillation
from feddkd.exchange import Reply, Task

HARD_LABELS = Distillation(divergence="kl", temperature=1.0, hard_label_weight=1.0)


class FedAvgSGDClient(FedDKDClient):
    """Replies to each step with the gradient of the cross-entropy at the broadcast model."""

    step_exchange = "sgd_step"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distillation = HARD_LABELS

    def sgd_step(self, task: Task) -> Reply:
        gradient, loss, examples = self._gradient(task)
        return Reply(gradient, loss, gradient_evaluations=examples)


class FedAvgSGD(FedDKD):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k grad CE_k(v_{j-1})); w_{t+1} = v_J.

    Its settings are those of `[dkd]`, so both are compared at the same J, optimizer, rate, batch
    and start.
    """

    client_side = FedAvgSGDClient
    step_exchange = FedAvgSGDClient.step_exchange
