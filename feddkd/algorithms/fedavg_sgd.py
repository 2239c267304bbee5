"""FedAvg + J synchronous SGD exchanges on hard labels: the control for FedDKD.

A DKD step is one step of synchronous SGD (McMahan et al. 2017 call it FedSGD) on the teachers' soft
labels. This algorithm sends exactly the same bytes and differs in one thing: the labels are the
true ones.

With `dkd.start = "previous"`, local training serves the teachers alone, and these gradients have
none. So no client trains, and a round is J steps of FedSGD: it takes fewer gradient evaluations
than FedDKD's, as the record says. Only a network with buffers (BatchNorm) is trained, for those.
"""

from __future__ import annotations

from feddkd.algorithms.distiller import Distiller
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
        self.distiller = Distiller(site, HARD_LABELS)

    def sgd_step(self, task: Task) -> Reply:
        gradient, loss, examples = self.distiller.gradient(task)
        return Reply(gradient, loss, gradient_evaluations=examples)


class FedAvgSGD(FedDKD):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k grad CE_k(v_{j-1})); w_{t+1} = v_J.

    Its settings are those of `[dkd]`, so both are compared at the same J, optimizer, rate, batch
    and start.
    """

    client_side = FedAvgSGDClient
    step_exchange = FedAvgSGDClient.step_exchange
