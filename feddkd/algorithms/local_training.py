"""Local training: SGD on one client's own data, as every algorithm here begins its round.

What it minimises is a `LocalObjective`; the plain one is the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from feddkd.algorithms.site import Site
from feddkd.config import CrossEntropyConfig, Table
from feddkd.exchange import Task


class LocalObjective:
    """What a client minimises in local training: the cross-entropy of the true labels.

    Subclasses add to the loss, or to its gradient where that is all the addition amounts to.

    Attributes:
        table: what its settings are read with; without meaning for an objective that the configuration names by its import path.
    """

    table: ClassVar[type[Table]] = CrossEntropyConfig

    def __init__(self, site: Site, settings: Table) -> None:  # noqa: ARG002
        """`settings` is the objective's own table in the configuration."""
        self.site = site

    def begin(self, task: Task) -> None:
        """Local training is about to start; the module holds the broadcast model."""

    def loss(self, index: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        """The loss of one mini-batch at the module's weights.

        Args:
            index: int64 [B] on the CPU, which of the site's examples these are.
            inputs: float32 [B, ...] on the site's device.
            labels: int64 [B] on the site's device.
        """
        return F.cross_entropy(self.site.module(inputs), labels)

    def add_to_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change `.grad` in place, of the parameters that have one, after the loss's gradient and before the step."""

    def end(self, task: Task, steps: int) -> None:
        """Local training took so many steps; the module holds the local model."""


class LocalTraining(NamedTuple):
    """What local training came to.

    Attributes:
        loss: mean loss over the last epoch's mini-batches.
        steps: of the optimizer.
        gradient_evaluations: examples that those steps' gradients were taken of, each as often as it was.
    """

    loss: float
    steps: int
    gradient_evaluations: int


def train_locally(site: Site, task: Task, objective: LocalObjective) -> LocalTraining:
    """Run `training.epochs` epochs of mini-batch SGD from the broadcast model, which ends up in the site's module changed.

    The order of the examples depends on the seed, the round and the client alone. The optimizer
    starts afresh every round, as in FedAvg (McMahan et al., AISTATS 2017).

    Raises:
        CancelledError: the server closed the exchange.
    """
    task.payload.load_into(site.module)
    objective.begin(task)
    training = site.config.training
    generator = site.generator(task.id)
    parameters = {name: parameter for name, parameter in site.module.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(
        parameters.values(),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        fused=True,  # one pass over memory
    )
    site.module.train()
    batch_norm = any(isinstance(module, _BatchNorm) for module in site.module.modules())
    epoch_loss = torch.zeros((), device=site.device)
    steps = gradient_evaluations = 0
    # Dropout and the like draw from the global generator; give it this task's stream and put it back afterwards.
    with torch.random.fork_rng(devices=[site.device] if site.device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(training.epochs):
            epoch_loss.zero_()
            order = torch.randperm(len(site.examples), generator=generator)
            for index, inputs, labels in site.examples.batches(order, training.batch_size):
                task.check_cancelled()
                if len(labels) == 1 and batch_norm:
                    continue  # a leftover of one example has no variance to normalise by
                optimizer.zero_grad(set_to_none=True)
                loss = objective.loss(index, inputs.to(site.device), labels.to(site.device))
                loss.backward()  # type: ignore[no-untyped-call]
                # A parameter that the loss does not depend on has no gradient, and SGD leaves it as it is.
                objective.add_to_gradients({name: parameter for name, parameter in parameters.items() if parameter.grad is not None})
                optimizer.step()
                epoch_loss += loss.detach() * len(labels)
                steps += 1
                gradient_evaluations += len(labels)
    objective.end(task, steps)
    return LocalTraining(float(epoch_loss) / len(site.examples), steps, gradient_evaluations)


def effective_steps(steps: int, momentum: float) -> float:
    """How far so many steps of SGD with momentum go, in steps of plain SGD at the same learning rate and gradient.

    sum_{s<=K} (1 - rho^s) / (1 - rho) = (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho), with momentum rho and K steps
    (Wang et al., FedNova, arXiv 2007.07481, a_i for momentum SGD). It is K without momentum.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
