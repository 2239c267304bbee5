"""Clip a gradient that is many times as long as every one before it.

Adam scales its step by the gradients that it has seen. If these were all small, a single gradient ten times as
long dominates both moments, and the next steps continue in its direction at the full rate. The units of a ReLU
network can then be off for every input, and stay off.

AdaGC (Wang et al., arXiv 2502.11034) clips gradients relative to the clipped norms before them, with a moving
average of the norms, tensor by tensor. Here the limit is a multiple of the longest gradient, so it does not
affect a run whose gradients grow gradually, as they do at the start of training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from feddkd.tensors import Tensors

logger = logging.getLogger(__name__)

LONGEST = "gradient.longest"
"""Its name in a state."""


class GrowthLimit:
    """Keeps the norm of each gradient below a multiple of the longest one before it.

    Args:
        factor: the multiple, at least 1; 0 sets no limit.

    Raises:
        ValueError: the factor is out of its range.
    """

    def __init__(self, factor: float) -> None:
        if factor != 0 and not factor >= 1:
            raise ValueError(f"growth limit {factor} is neither 0 nor at least 1")
        self._factor = factor
        self._longest = 0.0

    def limited(self, gradient: Tensors) -> Tensors:
        """Return `gradient`, clipped if it is too long; remembers the norm that it has then.

        The first gradient that is not zero has no limit.
        """
        if self._factor == 0:
            return gradient
        norm = gradient.norm()
        longest = self._factor * self._longest
        if 0 < longest < norm:
            message = "gradient norm %.3g is %.3g times the longest so far: clipped to %.3g (dkd.growth_limit = %g)"
            logger.warning(message, norm, norm / self._longest, longest, self._factor)
            gradient, norm = gradient.scaled(longest / norm), longest
        self._longest = max(self._longest, norm)
        return gradient

    def state_dict(self) -> dict[str, Tensor]:
        """Return the norm of the longest gradient as "gradient.longest", float64; nothing where there is no limit."""
        return {LONGEST: torch.tensor(self._longest, dtype=torch.float64)} if self._factor else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned; from nothing as before the first gradient."""
        self._longest = float(state.get(LONGEST, 0.0))
