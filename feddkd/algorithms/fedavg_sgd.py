"""FedAvg + J synchronous SGD exchanges on hard labels: the control for FedDKD.

A DKD step is one step of synchronous SGD (McMahan et al. 2017 call it FedSGD) on the teachers' soft
labels. This algorithm sends exactly the same bytes and differs in one thing: the labels are the
true ones, and examples without one are not used.

With `dkd.start = "previous"`, local training serves the teachers alone, and these gradients have
none. So no client trains, and a round is J steps of FedSGD: it takes fewer gradient evaluations
than FedDKD's, as the record says. Only a network with buffers (BatchNorm) is trained, for those.
"""

from __future__ import annotations

from typing import Literal

from feddkd.algorithms.distiller import labels_distiller
from feddkd.algorithms.feddkd import FedDKD, FedDKDClient
from feddkd.algorithms.site import Site
from feddkd.algorithms.teacher_choice import SGD_STEP
from feddkd.config import AlgorithmTable, Config
from feddkd.exchange import Reply, Task
from feddkd.registry import ALGORITHMS


class FedAvgSGDConfig(AlgorithmTable):
    """The control: FedDKD's exchanges with true labels in place of the teachers'; its settings are in `[dkd]`."""

    name: Literal["fedavg_sgd"] = "fedavg_sgd"


class FedAvgSGDClient(FedDKDClient):
    """Replies to each step with the gradient of the cross-entropy at the broadcast model."""

    step_exchange = SGD_STEP

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distiller = labels_distiller(site)

    def sgd_step(self, task: Task) -> Reply:
        return self.distiller.gradient(task).reply


@ALGORITHMS.register("fedavg_sgd")
class FedAvgSGD(FedDKD):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k grad CE_k(v_{j-1})); w_{t+1} = v_J.

    Its settings are those of `[dkd]`, so both are compared at the same J, optimizer, rate, batch
    and start.
    """

    table = FedAvgSGDConfig
    spoken = "control (SGD on labels)"
    no_piggyback = "use fedavg with dkd.hard_label_weight = 1"
    client_side = FedAvgSGDClient
    step_exchange = SGD_STEP
    distils_own_teachers = False

    @classmethod
    def uses_unlabelled(cls, config: Config) -> bool:
        return False
