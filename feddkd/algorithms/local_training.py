"""Train on one client's own data: the first exchange of every algorithm here.

What is minimised is a `LocalObjective`; by default it is the loss of the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from feddkd.algorithms.learning_rate import LEARNING_RATE
from feddkd.algorithms.local_optimizer import LocalOptimizer
from feddkd.algorithms.local_step import local_step
from feddkd.algorithms.mini_batches import MiniBatches
from feddkd.algorithms.one_example import accelerators, seed_global_generators
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import TrainingConfig
from feddkd.errors import ClientError
from feddkd.exchange import Task


class LocalTraining(NamedTuple):
    """The result of local training, besides the local model.

    Attributes:
        loss: mean over the examples that the last pass over the labelled ones trained on; a pass that bad examples leave
            empty does not count.
        steps: of the optimizer, at least one.
        gradient_evaluations: examples in all mini-batches.
        learning_rate: mean over the steps, where a schedule changes it.
    """

    loss: float
    steps: int
    gradient_evaluations: int
    learning_rate: float | None = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers for the record."""
        return {} if self.learning_rate is None else {LEARNING_RATE: self.learning_rate}


def train_locally(site: Site, task: Task, objective: LocalObjective) -> LocalTraining:
    """Run the configured optimizer from the broadcast model on the labelled examples, in the site's module.

    An epoch is as many steps as one pass over all examples of the site takes, those without a label
    included: few labels do not mean few steps. The labelled ones are passed over again and again.
    `training.steps` sets the number of steps instead. The order of the examples depends on the
    seed, the round and the client alone. The optimizer starts without state in every round, as in
    FedAvg (McMahan et al., AISTATS 2017); the learning rate depends on the round and the step alone.
    A batch of one example is left out if the network cannot train on it (`takes_one_example`); another one is
    drawn in place of a batch that bad examples leave empty (`MiniBatches`).

    Raises:
        CancelledError: the server closed the exchange.
        ClientError: there was no batch to train on; the local model would be the broadcast one.
    """
    task.payload.load_into(site.module)
    objective.begin(task)
    generator = site.generator(task.id)
    parameters = {name: parameter for name, parameter in site.module.named_parameters() if parameter.requires_grad}
    count = local_steps(site.config.training, len(site.examples)) if len(site.labelled) else 0
    batches = MiniBatches(site, generator, count)
    optimizer = LocalOptimizer(site, task, parameters.values(), count)
    step = local_step(site, objective, parameters, optimizer, count)
    site.module.train()
    last_loss, last_examples = torch.zeros((), device=site.device), 0
    steps = gradient_evaluations = 0
    # Dropout and the like draw from the global generator: seed it for this task, restore it later.
    with torch.random.fork_rng(devices=accelerators(site.device)):
        seed_global_generators(site.device, int(torch.randint(2**62, (), generator=generator)))
        while batches.left > 0:
            pass_loss, pass_examples = torch.zeros_like(last_loss), 0
            for index, inputs, targets in batches.next_pass():
                task.check_cancelled()
                pass_loss += step(index, inputs, targets) * len(index)
                steps += 1
                pass_examples += len(index)
            gradient_evaluations += pass_examples
            if pass_examples:
                last_loss, last_examples = pass_loss, pass_examples
    if steps == 0:
        raise ClientError(_nothing_trained(site, batches))
    objective.end(task, steps)
    return LocalTraining(float(last_loss) / last_examples, steps, gradient_evaluations, optimizer.mean_rate)


def local_steps(training: TrainingConfig, examples: int) -> int:
    """Count the steps of one round's local training at a site with so many examples, labelled or not."""
    return training.steps or training.epochs * math.ceil(examples / training.batch_size)


def _nothing_trained(site: Site, batches: MiniBatches) -> str:
    """Say why there was no batch to train on."""
    if len(site.labelled) == 0:
        return "no step of local training was possible: there are no labelled examples"
    if batches.lost and not batches.refused:
        return f"no step of local training was possible: none of the {len(site.labelled)} labelled examples can be used"
    examples, batch_size = len(site.labelled), site.config.training.batch_size
    reason = "the network (its BatchNorm) cannot train on one example at a time"
    if batches.lost:
        reason += ", and bad examples leave no more in a batch"
    counts = f"examples = {examples}, training.batch_size = {batch_size}"
    return f"no step of local training was possible: {reason}; {counts}"
