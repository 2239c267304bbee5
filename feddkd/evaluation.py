"""Run a model on examples without training it: in eval mode, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from feddkd.data.examples import Examples
from feddkd.exchange import Evaluation

BATCH_SIZE = 32
"""Examples in a batch where nothing is said: the default of `training.batch_size`. A run passes `Config.eval_batch_size`."""

Check = Callable[[], None]
"""Called before every batch of a long computation; ends it by raising (`Task.check_cancelled`)."""


def never_stop() -> None:
    """Let a computation run to its end."""


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode and restore the training flag of every submodule afterwards.

    `module.train(...)` would set the flags of submodules that the user keeps in eval mode, too.
    """
    flags = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, training in flags.items():
            submodule.training = training


@torch.no_grad()
def evaluate(
    module: nn.Module,
    examples: Examples,
    device: torch.device,
    check: Check = never_stop,
    *,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Measure accuracy and cross-entropy of a model as it stands, in eval mode.

    Args:
        module: maps inputs to logits [B, C], on `device`; its training flags are restored.
        examples: all of them count, but for those that cannot be used.
        device: where to compute.
        check: called before every batch; what it raises ends the evaluation.
        batch_size: examples in one forward pass.

    Returns:
        Counts and the sum of the losses in nats, over all examples and by class.
    """
    used, correct = torch.zeros(2, len(examples), dtype=torch.bool)
    loss_sum = 0.0
    with eval_mode(module):
        order = torch.arange(len(examples))
        for index, inputs, labels in examples.batches(order, batch_size):
            check()
            logits = module(inputs.to(device))
            target = labels.to(device)
            used[index] = True
            correct[index] = (logits.argmax(1) == target).cpu()
            loss_sum += float(F.cross_entropy(logits, target, reduction="sum"))
    by_class = torch.bincount(examples.labels[used])
    correct_by_class = torch.bincount(examples.labels[correct], minlength=len(by_class))
    return Evaluation(
        examples=int(used.sum()),
        correct=int(correct.sum()),
        loss_sum=loss_sum,
        examples_by_class=tuple(by_class.tolist()),
        correct_by_class=tuple(correct_by_class.tolist()),
    )
