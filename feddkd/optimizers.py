"""Torch's optimizers without the import of its compiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)

_KEPT_FROM_TRACING = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""Methods around which `torch.optim` puts what keeps `torch.compile` from tracing them."""


def eager(kind: type[Kind]) -> type[Kind]:
    """Derive an optimizer class from one of `torch.optim` that computes the same, bit for bit, and starts sooner.

    Torch decorates the methods of its optimizers for `torch.compile`. The decorators import the compiler with the
    first call, whether anything is compiled or not: 800 modules, which take as long as torch itself. The derived
    class has the same methods without them, with the same hooks. A step cannot be compiled; a network can.
    """
    own: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _KEPT_FROM_TRACING}
    own["step"] = _step(inspect.unwrap(kind.step))
    own["__module__"], own["__doc__"] = __name__, kind.__doc__
    derived: type[Kind] = type(kind.__name__, (kind,), own)
    return derived


def _step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Let a step record gradients of its own only where it was asked to, as the decorator of torch does."""

    @functools.wraps(step)
    def without_graph(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, closure)

    return without_graph
