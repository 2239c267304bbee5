"""Take off what stands around a network and renames its tensors."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def without_wrappers(module: nn.Module) -> nn.Module:
    """Return the plain network, whose `state_dict` has the names that its author gave.

    `torch.compile` puts "_orig_mod." before every name, `DataParallel` and `DistributedDataParallel` put
    "module.". A compiled network stays compiled: its own call runs the compiled code. The parallel
    wrappers are taken off, because a client computes on one device. Wrapped submodules are replaced in
    their parents.
    """
    inner = _inner(module)
    if inner is not None:
        return without_wrappers(inner)
    for name, child in list(module._modules.items()):
        if child is not None and (plain := without_wrappers(child)) is not child:
            setattr(module, name, plain)
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper stands around; None for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        wrapped: nn.Module = module.module
        return wrapped
    compiled = module._modules.get("_orig_mod")
    # By name: importing the class takes seconds.
    if compiled is None or type(module).__name__ != "OptimizedModule":
        return None
    context = getattr(module, "dynamo_ctx", None)
    if context is not None:  # as `nn.Module.compile` does, which renames nothing
        compiled._compiled_call_impl = context(compiled._call_impl)
    return compiled
