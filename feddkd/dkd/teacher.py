"""Compute the logits of a round's teacher: a client's own, locally trained model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feddkd.data.examples import Examples
from feddkd.evaluation import Check, eval_mode, never_stop


@torch.no_grad()
def teacher_logits(
    module: nn.Module,
    examples: Examples,
    device: torch.device,
    batch_size: int = 512,
    check: Check = never_stop,
) -> Tensor:
    """Compute the logits of a teacher on all examples, once a round, for all its DKD steps.

    Caching them is exact, not an approximation: the teacher is frozen until the next round, it runs
    in eval mode (no dropout, fixed BatchNorm statistics), and the examples are not augmented. So
    the same example has the same logits in every step, and no DKD step needs the teacher's forward
    pass.

    Args:
        module: the teacher, on `device`; its parameters, buffers and training flags are as before afterwards.
        examples: the client's training examples, n of them.
        device: where to compute.
        batch_size: examples in one forward pass.
        check: called before every forward pass; what it raises ends the computation.

    Returns:
        float32 [n, C] on the CPU; row i belongs to example i.

    Raises:
        ValueError: there are no examples.
    """
    if len(examples) == 0:
        raise ValueError("a teacher needs at least one example")
    with eval_mode(module):
        logits = []
        for _, inputs, _ in examples.batches(torch.arange(len(examples)), batch_size):
            check()
            logits.append(module(inputs.to(device)).float().cpu())
        return torch.cat(logits)


def mean_entropy(logits: Tensor) -> float:
    """Compute the mean entropy in nats of the predictions softmax(logits) [n, C].

    It is 0 for a teacher that is certain of every example; its soft labels then equal hard ones.
    """
    # entr is 0 at a probability of 0, where -p log p is NaN.
    return float(torch.special.entr(F.softmax(logits, dim=1)).sum(1).mean())
