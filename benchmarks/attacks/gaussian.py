"""Sends noise.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent. NeurIPS 2017, arXiv 1703.02757. They send a Gaussian with a large fixed std; here
it is relative, so that it means the same for updates and gradients.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from attacks.base import Attack, Seen, each_segment
from feddkd.exchange import Reply

TIMES_RMS = 10.0
"""The std of the noise, in multiples of the root mean square of the honest elements."""


class Gaussian(Attack):
    """Sends Gaussian noise of mean 0, ten times as long as the honest contribution."""

    title = "Gaussian noise, 10 times as long"
    paper = "arXiv 1703.02757"
    on_tensors = True

    def reply(self, seen: Seen) -> Reply:
        assert seen.reply.contribution is not None
        generator = torch.Generator().manual_seed(seen.seed)

        def noise(_: object, elements: torch.Tensor) -> torch.Tensor:
            std = TIMES_RMS * elements.square().mean().sqrt()
            return std * torch.randn(len(elements), dtype=torch.float64, generator=generator)

        return replace(seen.reply, contribution=each_segment(seen.reply.contribution, noise))
