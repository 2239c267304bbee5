"""Local training: plain SGD on one client's own data, as every algorithm here begins its round."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from feddkd.algorithms.site import Site
from feddkd.exchange import Task


def train_locally(site: Site, task: Task) -> float:
    """Run `training.epochs` epochs of mini-batch SGD from the module's current weights.

    The order of the examples depends on the seed, the round and the client alone. The optimizer
    starts afresh every round, as in FedAvg (McMahan et al., AISTATS 2017).

    Returns:
        Mean cross-entropy over the last epoch's mini-batches.

    Raises:
        CancelledError: the server closed the exchange.
    """
    training = site.config.training
    generator = site.generator(task.id)
    optimizer = torch.optim.SGD(
        (parameter for parameter in site.module.parameters() if parameter.requires_grad),
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    site.module.train()
    batch_norm = any(isinstance(module, _BatchNorm) for module in site.module.modules())
    epoch_loss = torch.zeros((), device=site.device)
    # Dropout and the like draw from the global generator; give it this task's stream and put it back afterwards.
    with torch.random.fork_rng(devices=[site.device] if site.device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(training.epochs):
            epoch_loss.zero_()
            order = torch.randperm(len(site.examples), generator=generator)
            for _, inputs, labels in site.examples.batches(order, training.batch_size):
                task.check_cancelled()
                if len(labels) == 1 and batch_norm:
                    continue  # a leftover of one example has no variance to normalise by
                optimizer.zero_grad(set_to_none=True)
                loss = F.cross_entropy(site.module(inputs.to(site.device)), labels.to(site.device))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                epoch_loss += loss.detach() * len(labels)
    return float(epoch_loss) / len(site.examples)
