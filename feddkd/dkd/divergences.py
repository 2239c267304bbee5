"""Measure how far a student's predictions are from its teacher's.

All divergences take teacher logits [B, C], student logits [B, C] of the same floating-point dtype
and device, and a temperature T > 0; they return the mean over the batch as a scalar that is
differentiable in the student's logits. They work on log-probabilities, so logits of any finite
magnitude that float32 subtracts without overflow give finite losses and gradients.

Both sides are softened by T, which shrinks gradients by 1/T²; the factor T² (Hinton et al. 2015,
arXiv 1503.02531) undoes that, so that one learning rate serves all temperatures. For T -> inf the
scaled kl and reverse_kl become half the mean squared difference of centred logits, js a quarter of
that: distillation then matches logits (ibid., section 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from feddkd.imports import load_object
from feddkd.registry import DIVERGENCES

Divergence = Callable[[Tensor, Tensor, float], Tensor]
"""(teacher_logits [B, C], student_logits [B, C], temperature) -> scalar."""


@DIVERGENCES.register("kl")
def kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Compute T² KL(teacher || student), the divergence of FedDKD (arXiv 2205.00706).

    It is large where the student gives little probability to what the teacher finds likely. Its
    gradient with respect to the student's logits z is T (softmax(z/T) - softmax(z_teacher/T)) / B.
    """
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    return _times(temperature**2, _kl(log_p, log_q))


@DIVERGENCES.register("reverse_kl")
def reverse_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Compute T² KL(student || teacher): large where only the student finds a class likely."""
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    return _times(temperature**2, _kl(log_q, log_p))


@DIVERGENCES.register("js")
def js(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Compute T² times the Jensen-Shannon divergence: symmetric, at most T² log 2 (Lin 1991)."""
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    return temperature**2 * (_kl(log_p, log_mean) + _kl(log_q, log_mean)) / 2


@DIVERGENCES.register("mse_logits")
def mse_logits(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """Average the squared difference of the logits (Ba and Caruana 2014, arXiv 1312.6184).

    The temperature has no effect: T² mean((z_teacher/T - z/T)²) is the same number for every T.
    """
    return F.mse_loss(student_logits, teacher_logits)


def divergence_of(name: str) -> Divergence:
    """Find a divergence by its registered name, or by an import path `package.module:function`. Raises ConfigError."""
    if ":" in name:
        found: Divergence = load_object(name, "dkd.divergence")
        return found
    known: Divergence = DIVERGENCES[name]
    return known


def without_true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Remove each row's true class, `labels` int64 [B], from logits [B, C]; returns [B, C - 1]."""
    rows, classes = logits.shape
    not_true = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels.unsqueeze(1), value=False)
    return logits[not_true].view(rows, classes - 1)


def _log_probabilities(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    if temperature != 1:  # dividing by 1 changes no bit, and costs a small network a tenth of a step
        teacher_logits, student_logits = teacher_logits / temperature, student_logits / temperature
    return F.log_softmax(teacher_logits, dim=1), F.log_softmax(student_logits, dim=1)


def _times(factor: float, loss: Tensor) -> Tensor:
    return loss if factor == 1 else factor * loss


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute the batch mean of KL(p || q); exact also where the exponential underflows to 0."""
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
