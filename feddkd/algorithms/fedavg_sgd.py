"""FedAvg + J synchronous SGD exchanges on hard labels: the control that FedDKD must beat.

A DKD step is one step of synchronous SGD (McMahan et al. 2017 call it FedSGD) on the teachers' soft
labels. This algorithm moves exactly the same bytes and differs in one thing: the labels are the true ones.
"""

from __future__ import annotations

from feddkd.algorithms.base import Cohort
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.feddkd import FedDKD, draw_batch
from feddkd.dkd import Distillation, distillation_gradient
from feddkd.exchange import ExchangeKind, Reply, Task, trainable_parameters
from feddkd.tensors import Tensors

HARD_LABELS = Distillation(divergence="kl", temperature=1.0, hard_label_weight=1.0)


class FedAvgSGDClient(FedAvgClient):
    """Answers each step with the gradient of the cross-entropy at the broadcast model."""

    def sgd_step(self, task: Task) -> Reply:
        task.payload.load_into(self.site.module)
        order = draw_batch(self.site, task)
        gradient, loss = distillation_gradient(self.site.module, self.site.examples, None, order, HARD_LABELS, self.site.device)
        return Reply(contribution=gradient, loss=loss)


class FedAvgSGD(FedDKD):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k grad CE_k(v_{j-1})); w_{t+1} = v_J.

    Takes its settings from `[dkd]`, so that both are compared at the same J, optimizer, rate and batch.
    """

    exchanges = {"local_train": ExchangeKind(), "sgd_step": ExchangeKind(answer=trainable_parameters)}
    client_half = FedAvgSGDClient

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        student = model + cohort.exchange("local_train", model)
        if self.config.dkd.start == "previous":
            student = student.replace(model.select(model.schema.trainable))
        self.server_optimizer.start_round()
        for step in range(self.config.dkd.steps):
            gradient = cohort.exchange("sgd_step", student, step=step)
            student = self.server_optimizer.step(student, gradient)
        return student
