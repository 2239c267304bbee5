"""The Yogi optimizer, which torch.optim does not have.

Zaheer, Reddi, Sachan, Kale, Kumar: Adaptive Methods for Nonconvex Optimization, NeurIPS 2018; on the
server of a federation: Reddi et al., Adaptive Federated Optimization, ICLR 2021, arXiv 2003.00295.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from feddkd.optimizers import eager
from feddkd.registry import OPTIMIZERS


@OPTIMIZERS.register("yogi")
@eager
class Yogi(torch.optim.Optimizer):
    """Adam whose second moment changes by an amount that depends on the gradient alone.

    Step t, with gradient g:

        m <- b1 m + (1 - b1) g
        v <- v - (1 - b2) g² sign(v - g²)
        w <- w - lr  m / (1 - b1^t)  /  ( sqrt(v / (1 - b2^t)) + eps )

    Where gradients shrink, Adam forgets a large v within some 1 / (1 - b2) steps and its effective learning
    rate jumps; here v falls no faster than (1 - b2) g² a step.

    Bias: m and v start at zero and are corrected as in Adam, so the first step is Adam's. The pseudo-code of both
    papers leaves the correction out, and Reddi et al. start v at a small positive value. Over the
    few steps of a round that starts without state, those choices would decide the step size, not
    the gradients.

    Args:
        params: parameters or parameter groups; sparse gradients are not supported.
        lr: learning rate, positive.
        betas: decay rates (b1, b2), each in [0, 1).
        eps: added to the root, positive; Zaheer et al. recommend the default, far more than Adam's.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"learning rate {lr} is not positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} are not in [0, 1)")
        if not eps > 0:
            raise ValueError(f"eps {eps} is not positive")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; `closure`, if given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, parameter.grad, self.state[parameter], group["lr"], group["betas"], group["eps"])
        return loss


_PIECE_ELEMENTS = 1 << 18


def _update(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], lr: float, betas: tuple[float, float], eps: float) -> None:
    if not state:
        state["step"] = torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    step = state["step"].item()
    rate, correction = -lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step)
    # A piece at a time: temporaries then take little memory.
    vectors = (tensor.view(-1) for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"]))
    pieces = (torch.split(vector, _PIECE_ELEMENTS) for vector in (*vectors, gradient.reshape(-1)))
    for weights, mean, second_moment, g in zip(*pieces, strict=True):
        mean.lerp_(g, 1 - betas[0])
        square = g.square()
        second_moment.sub_(square.mul_(torch.sign(second_moment - square)), alpha=1 - betas[1])
        root = second_moment.sqrt().div_(correction).add_(eps)
        weights.addcdiv_(mean, root, value=rate)
