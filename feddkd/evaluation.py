"""Run a model on examples without training it: in eval mode, batch by batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from feddkd.data.examples import Examples
from feddkd.devices import device_for
from feddkd.exchange import Evaluation
from feddkd.tasks.metrics import OF_CLASSIFICATION, TaskMetrics

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
    metrics: TaskMetrics = OF_CLASSIFICATION,
) -> Evaluation:
    """Measure the loss and the metrics of a model as it stands, in eval mode.

    Args:
        module: maps inputs to outputs of the task, on `device`; its training flags are restored.
        examples: all of them count, but for those that cannot be used.
        device: where to compute.
        check: called before every batch; what it raises ends the evaluation.
        batch_size: examples in one forward pass.
        metrics: of the task.

    Returns:
        Counts and the sum of the losses, over all examples and, where each has one class, by class; and the
        states of the other metrics, with what they come to.
    """
    task = metrics.task
    metrics.begin()
    used, correct = torch.zeros(2, len(examples), dtype=torch.bool)
    loss_sum = 0.0
    with eval_mode(module):
        order = torch.arange(len(examples))
        for index, inputs, targets in device_for(device).batches(examples, order, batch_size):
            check()
            outputs = task.outputs(module, inputs)
            used[index] = True
            if metrics.has_one_class:
                correct[index] = task.correct(outputs, targets).cpu()
            loss_sum += task.loss_sum(outputs, targets)
            metrics.add(outputs, targets)
    num_used = int(used.sum())
    counted = Evaluation(num_used, None, loss_sum, sums=metrics.sums(num_used))
    if metrics.has_one_class:
        counted = _with_classes(counted, examples.labels, used, correct)
    return judged(counted, metrics)


def _with_classes(evaluation: Evaluation, labels: Tensor, used: Tensor, correct: Tensor) -> Evaluation:
    """Add what was classified correctly, in all and by class, of examples with `labels` (int64 [n]) that were `used` (bool [n])."""
    by_class = torch.bincount(labels[used])
    correct_by_class = torch.bincount(labels[correct], minlength=len(by_class))
    return dataclasses.replace(
        evaluation,
        correct=int(correct.sum()),
        examples_by_class=tuple(by_class.tolist()),
        correct_by_class=tuple(correct_by_class.tolist()),
    )


def judged(evaluation: Evaluation, metrics: TaskMetrics) -> Evaluation:
    """Add what the states of the metrics come to, and what decides which round is the best."""
    scores = metrics.values(evaluation.sums)
    found = dataclasses.replace(evaluation, scores=scores)
    settings = metrics.task.settings
    if settings.metric == "accuracy" and found.correct is not None:
        return found
    value = found.score(settings.metric)
    merit = -math.inf if value is None else -value if settings.minimised else value
    return dataclasses.replace(found, merit=merit)
