"""FedDKD: FedAvg, then J steps that distil all local models into the average, without data on the server.

Li, Chen, Lu: FedDKD: Federated Learning with Decentralized Knowledge Distillation. arXiv 2205.00706;
Applied Intelligence 53, 2023.

The parameter average of locally trained networks is not the average of the functions they compute. The
steps move the student v from the former towards the latter, min_v sum_k p_k E_{D_k} KL(f_{w_k} || f_v):
client k computes the gradient of its own term on its own data, with its local model w_k as teacher.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from feddkd.aggregator.server_optimizer import ServerOptimizer
from feddkd.algorithms.base import Algorithm, ClientHalf, Cohort
from feddkd.algorithms.fedavg import FedAvgClient
from feddkd.algorithms.site import Site
from feddkd.config import Config
from feddkd.dkd import Distillation, distillation_gradient, teacher_logits
from feddkd.errors import ClientError
from feddkd.exchange import ExchangeKind, Reply, Task, trainable_parameters
from feddkd.tensors import Tensors

TEACHER = "teacher"


class FedDKDClient(FedAvgClient):
    """Keeps its local model as frozen teacher; answers each step with the gradient of its distillation loss."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        dkd = site.config.dkd
        self.distillation = Distillation(dkd.divergence, dkd.temperature, dkd.hard_label_weight)
        self._cached_logits: tuple[str, Tensor] | None = None

    def local_train(self, task: Task) -> Reply:
        reply = super().local_train(task)
        # Kept before the answer leaves, so that a client that crashes later still has its teacher.
        self.site.store.save(TEACHER, Tensors.of_module(self.site.module), label=self._teacher_label(task))
        return reply

    def dkd_step(self, task: Task) -> Reply:
        logits = self._teacher_logits(task)
        task.payload.load_into(self.site.module)
        gradient, loss = distillation_gradient(
            self.site.module, self.site.examples, logits, draw_batch(self.site, task), self.distillation, self.site.device
        )
        return Reply(contribution=gradient, loss=loss)

    def _teacher_logits(self, task: Task) -> Tensor:
        """Logits of the frozen teacher on all local examples, computed once a round; float32 [n, classes]."""
        label = self._teacher_label(task)
        if self._cached_logits is None or self._cached_logits[0] != label:
            teacher = self.site.store.load(TEACHER, self.site.model_schema, label=label)
            if teacher is None:
                raise ClientError(f"no teacher of round {task.id.round}: this client did not train in it")
            teacher.load_into(self.site.module)
            self._cached_logits = label, teacher_logits(self.site.module, self.site.examples, self.site.device)
        return self._cached_logits[1]

    @staticmethod
    def _teacher_label(task: Task) -> str:
        return f"{task.id.run_id}/{task.id.round}/{task.id.attempt}"


class FedDKD(Algorithm):
    """v_0 = w_t + sum_k p_k (w_k - w_t); v_j = ServerOptimizer(v_{j-1}, sum_k p_k g_k); w_{t+1} = v_J."""

    exchanges = {"local_train": ExchangeKind(), "dkd_step": ExchangeKind(answer=trainable_parameters)}
    client_half: ClassVar[type[ClientHalf]] = FedDKDClient

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        dkd = config.dkd
        self.server_optimizer = ServerOptimizer(dkd.optimizer, dkd.lr, keep_state=dkd.optimizer_state == "keep")

    def run_round(self, cohort: Cohort, model: Tensors) -> Tensors:
        student = model + cohort.exchange("local_train", model)
        if self.config.dkd.start == "previous":
            student = student.replace(model.select(model.schema.trainable))
        self.server_optimizer.start_round()
        for step in range(self.config.dkd.steps):
            gradient = cohort.exchange("dkd_step", student, step=step)
            student = self.server_optimizer.step(student, gradient)
        return student

    def state_dict(self) -> dict[str, Any]:
        return self.server_optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.server_optimizer.load_state_dict(state)


def draw_batch(site: Site, task: Task) -> Tensor:
    """The examples of one step: `dkd.batch_size` drawn without replacement, or all of them; int64 [B]."""
    total, wanted = len(site.examples), site.config.dkd.batch_size
    if wanted == 0 or wanted >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=site.generator(task.id))[:wanted]
