"""Compute the logits of a round's teacher: a client's own, locally trained model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddkd.data.examples import Examples, first_example
from feddkd.devices import device_for
from feddkd.errors import ClientError
from feddkd.evaluation import BATCH_SIZE, Check, eval_mode, never_stop
from feddkd.structures import Structure, leaves, map_leaves, to_device
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION

BYTES_OF_FLOAT = 4

MOST_KEPT_BYTES = 256 << 20
"""Of one teacher's outputs: maps of classes of many images are computed for each step instead."""


@torch.no_grad()
def teacher_logits(
    module: nn.Module,
    examples: Examples,
    device: torch.device,
    check: Check = never_stop,
    *,
    batch_size: int = BATCH_SIZE,
    task: LearningTask[Any] = CLASSIFICATION,
) -> Tensor:
    """Compute the logits of a teacher, or what else its outputs are, on all examples, once a round, for all its DKD steps.

    Caching them is exact where reads are not random (`Examples.is_random`): the teacher is frozen until
    the next round, and it runs in eval mode (no dropout, fixed BatchNorm statistics). So the same
    example has the same logits in every step, and no DKD step needs the teacher's forward pass. Where
    examples are augmented at random, use `frozen` and compute logits for each batch.

    Args:
        module: the teacher, on `device`; its parameters, buffers and training flags are as before afterwards.
        examples: the client's training examples, n of them.
        device: where to compute.
        batch_size: examples in one forward pass.
        check: called before every forward pass; what it raises ends the computation.
        task: says what outputs are; they are tensors.

    Returns:
        float32 [n, C], or [n, ...], on the CPU; row i belongs to example i. It is NaN where the example cannot be used.

    Raises:
        ClientError: an output is not finite.
        ValueError: there are no examples, or none can be used.
    """
    if len(examples) == 0:
        raise ValueError("a teacher needs at least one example")
    with eval_mode(module):
        read, logits = [], []
        for index, inputs, _ in device_for(device).batches(examples, torch.arange(len(examples)), batch_size):
            check()
            read.append(index)
            logits.append(_finite(task.outputs(module, inputs).float()).cpu())
    return by_example(read, logits, len(examples))


def by_example(read: Sequence[Tensor], rows: Sequence[Tensor], examples: int) -> Tensor:
    """Put rows [B, C] of consecutive pieces together; NaN where an example is in none of them.

    Args:
        read: int64 [B], the examples of each piece, in ascending order over all.
        rows: of each piece, floating-point [B, C].
        examples: n, how many there are.

    Raises:
        ValueError: there is no piece.
    """
    if not read:
        raise ValueError("no example can be used")
    found = torch.cat(list(rows))
    if len(found) == examples:
        return found
    filled = found.new_full((examples, *found.shape[1:]), torch.nan)
    filled[torch.cat(list(read))] = found
    return filled


def frozen(module: nn.Module) -> nn.Module:
    """Copy a network as it is now, in eval mode, to compute logits of later batches with."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def soft_labels(
    teacher: Tensor | nn.Module,
    index: Tensor,
    inputs: Structure,
    task: LearningTask[Any] = CLASSIFICATION,
) -> Structure:
    """Look a teacher's outputs for a batch up, [B, C] for logits, or compute them for the inputs at hand.

    Args:
        teacher: outputs [n, ...] for all examples, or a `frozen` network, on the device of `inputs`.
        index: int64 [B] on the CPU, positions of the examples.
        inputs: [B, ...], as the student sees them.
        task: says what outputs are.

    Raises:
        ClientError: an output is not finite.
    """
    if isinstance(teacher, Tensor):
        return teacher[index].to(next(leaves(inputs)).device)
    return map_leaves(_finite, task.outputs(teacher, inputs))


def _finite(outputs: Any) -> Any:
    """Return a teacher's outputs. Raises ClientError if one is not finite: nothing can be learned from it."""
    if isinstance(outputs, Tensor) and not outputs.isfinite().all():
        raise ClientError(
            "the teacher's outputs are not finite, so nothing can be learned from them: its training diverged; "
            "lower training.lr, or teacher.lr of a network of the site's own"
        )
    return outputs


@torch.no_grad()
def can_be_kept(module: nn.Module, examples: Examples, device: torch.device, task: LearningTask[Any]) -> bool:
    """Tell whether a teacher's outputs on all examples fit into `MOST_KEPT_BYTES`; those of a structure are not kept."""
    with eval_mode(module):
        inputs, _ = first_example(examples)
        outputs = task.outputs(module, to_device(inputs, device))
    return isinstance(outputs, Tensor) and outputs.numel() * BYTES_OF_FLOAT * len(examples) <= MOST_KEPT_BYTES


def known_rows(logits: Tensor) -> Tensor:
    """Find the rows of [n, ...] that belong to an example that can be used: bool [n]."""
    return ~logits.flatten(1).isnan().any(1)


def mean_entropy(logits: Tensor) -> float:
    """Compute the mean entropy in nats of the predictions softmax(logits) [n, C], of the rows that are known.

    It is 0 for a teacher that is certain of every example; its soft labels then equal hard ones.
    """
    logits = logits[known_rows(logits)]
    # entr is 0 at a probability of 0, where -p log p is NaN.
    return float(torch.special.entr(F.softmax(logits, dim=1)).sum(1).mean())
