"""Tell whether a network is made of library code alone, whose behaviour is known."""

from __future__ import annotations

from torch import nn

_STATELESS_PACKAGES = ("torch.nn", "torchvision.models.resnet", "feddkd.models")
"""Whose modules remember nothing outside their parameters and buffers."""


def is_stateless(module: nn.Module) -> bool:
    """Whether nothing but library code runs in a module's passes, apart from its submodules."""
    package = type(module).__module__
    if not any(package == known or package.startswith(f"{known}.") for known in _STATELESS_PACKAGES):
        return False
    hooks = (value for name, value in vars(module).items() if name.endswith("_hooks"))
    return "forward" not in vars(module) and not any(hooks)
