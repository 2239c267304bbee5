"""Self-training: FedAvg + J synchronous SGD exchanges on labels and on the global model's own predictions.

Lee: Pseudo-Label. ICML workshop on challenges in representation learning, 2013; with the confidence
threshold of Sohn et al., FixMatch, NeurIPS 2020, arXiv 2001.07685, without its augmentation. In a
federation each client knows which classes it has labels of, and may restrict the predictions to
these: the strongest rival of distillation without a teacher.

It sends the bytes of FedDKD and of its control. A step computes on up to `dkd.batch_size` labelled
examples and as many of the others, so it takes up to twice the gradient evaluations.
"""

from __future__ import annotations

from feddkd.algorithms.base import own_settings
from feddkd.algorithms.feddkd import FedDKD, FedDKDClient
from feddkd.algorithms.self_trainer import SelfTrainer, SelfTrainingConfig
from feddkd.algorithms.site import Site
from feddkd.algorithms.teacher_choice import SELF_STEP
from feddkd.config import Config
from feddkd.exchange import Reply, Task
from feddkd.registry import ALGORITHMS


class SelfTrainingClient(FedDKDClient):
    """Replies to each step with the gradient on labels and own predictions at the broadcast model."""

    step_exchange = SELF_STEP

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.distiller = SelfTrainer(site, own_settings(site.config, SelfTrainingConfig))

    def self_step(self, task: Task) -> Reply:
        return self.distiller.gradient(task).reply


@ALGORITHMS.register("self_training")
class SelfTraining(FedDKD):
    """v_j = ServerOptimizer(v_{j-1}, sum_k p_k (grad CE_k on labels + grad CE_k on sure predictions)); w_{t+1} = v_J."""

    table = SelfTrainingConfig
    spoken = "self-training"
    no_piggyback = "a gradient that rides along is a teacher's, and this has none"
    needs_labels = True
    client_side = SelfTrainingClient
    step_exchange = SELF_STEP
    distils_own_teachers = False

    @classmethod
    def uses_unlabelled(cls, config: Config) -> bool:
        return True
