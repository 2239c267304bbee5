"""Train on one client's own data: the first exchange of every algorithm here.

What is minimised is a `LocalObjective`; by default it is the loss of the task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from feddkd.algorithms.learning_rate import LEARNING_RATE
from feddkd.algorithms.local_optimizer import LocalOptimizer
from feddkd.algorithms.site import LocalObjective, Site
from feddkd.config import TrainingConfig
from feddkd.data.examples import Batch
from feddkd.errors import ClientError, ConfigError
from feddkd.exchange import Task
from feddkd.structures import Structure, leaves, to_device
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION


class LocalTraining(NamedTuple):
    """The result of local training, besides the local model.

    Attributes:
        loss: mean over the examples that the last pass over the labelled ones trained on.
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
    A batch of one example is left out if the network cannot train on it (`takes_one_example`).

    Raises:
        CancelledError: the server closed the exchange.
        ClientError: there was no batch to train on; the local model would be the broadcast one.
    """
    task.payload.load_into(site.module)
    objective.begin(task)
    generator = site.generator(task.id)
    parameters = {name: parameter for name, parameter in site.module.named_parameters() if parameter.requires_grad}
    batches_left = local_steps(site.config.training, len(site.examples)) if len(site.labelled) else 0
    optimizer = LocalOptimizer(site, task, parameters.values(), batches_left)
    site.module.train()
    pass_loss = torch.zeros((), device=site.device)
    steps = pass_examples = gradient_evaluations = 0
    # Dropout and the like draw from the global generator: seed it for this task, restore it later.
    with torch.random.fork_rng(devices=_accelerators(site.device)):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        while batches_left > 0:
            pass_loss.zero_()
            pass_examples = 0
            order = torch.randperm(len(site.labelled), generator=generator)[: batches_left * site.config.training.batch_size]
            batches_left -= math.ceil(len(order) / site.config.training.batch_size)
            for index, inputs, targets in _batches(site, order):
                task.check_cancelled()
                optimizer.zero_grad()
                loss = objective.loss(index, inputs, targets)
                loss.backward()  # type: ignore[no-untyped-call]
                # A parameter that the loss does not depend on has no gradient, and the optimizer leaves it as it is.
                objective.add_to_gradients({name: parameter for name, parameter in parameters.items() if parameter.grad is not None})
                optimizer.step()
                pass_loss += loss.detach() * len(index)
                steps += 1
                pass_examples += len(index)
            gradient_evaluations += pass_examples
    if steps == 0:
        raise ClientError(_nothing_trained(site))
    objective.end(task, steps)
    return LocalTraining(float(pass_loss) / pass_examples, steps, gradient_evaluations, optimizer.mean_rate)


def local_steps(training: TrainingConfig, examples: int) -> int:
    """Count the steps of one round's local training at a site with so many examples, labelled or not."""
    return training.steps or training.epochs * math.ceil(examples / training.batch_size)


def check_batch_size(site: Site) -> None:
    """Check that the site's network can train on batches of `training.batch_size`.

    Raises:
        ConfigError: batches are of one example, and the network refuses those in training.
    """
    if site.config.training.batch_size > 1 or len(site.labelled) == 0:
        return
    if not can_train_on_one(site):
        raise ConfigError(
            f"training.batch_size = 1: model {site.config.model.name!r} (its BatchNorm) "
            "cannot train on one example at a time; use at least 2"
        )


def can_train_on_one(site: Site) -> bool:
    """Try whether a site's network can train on its first labelled example alone."""
    site.module.train()
    with torch.random.fork_rng(devices=[]):  # a data set may augment the example at random
        inputs, _ = site.labelled.gather(torch.tensor([0]))
    return takes_one_example(site.module, to_device(inputs, site.device), site.learning_task)


def takes_one_example(module: nn.Module, inputs: Structure, task: LearningTask[Any] = CLASSIFICATION) -> bool:
    """Try whether `module`, in train mode, accepts `inputs`, a batch of one example.

    BatchNorm1d refuses a single value of each channel; BatchNorm2d accepts an image of more than
    one pixel. Buffers and the random state are restored afterwards.
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_accelerators(next(leaves(inputs)).device)):
            task.outputs(module, inputs)
    except ValueError:
        return False
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in before:
                    buffer.copy_(before[name])
    return True


def _batches(site: Site, order: Tensor) -> Iterator[Batch]:
    """Yield the mini-batches of one epoch, without a single example that the network refuses."""
    accepts_one: bool | None = None
    for index, inputs, targets in site.labelled.batches(order, site.config.training.batch_size):
        on_device = to_device(inputs, site.device)
        if len(index) == 1:
            if accepts_one is None:
                accepts_one = takes_one_example(site.module, on_device, site.learning_task)
            if not accepts_one:
                continue
        yield index, on_device, to_device(targets, site.device)


def _accelerators(device: torch.device) -> list[torch.device]:
    """List the devices besides the CPU whose random state computing on `device` changes."""
    return [device] if device.type == "cuda" else []


def _nothing_trained(site: Site) -> str:
    if len(site.labelled) == 0:
        return "no step of local training was possible: there are no labelled examples"
    examples, batch_size = len(site.labelled), site.config.training.batch_size
    reason = "the network (its BatchNorm) cannot train on one example at a time"
    counts = f"examples = {examples}, training.batch_size = {batch_size}"
    return f"no step of local training was possible: {reason}; {counts}"
