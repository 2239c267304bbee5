"""Try one training step of a network before a run, on a few examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from feddkd.errors import ConfigError
from feddkd.imports import one_line
from feddkd.structures import Structure, leaves, map_leaves
from feddkd.tasks.base import LearningTask
from feddkd.tasks.classification import CLASSIFICATION
from feddkd.tensors import DTYPES


class InputsRefusedError(ConfigError):
    """The network does not take the inputs."""


def check_model(
    module: nn.Module,
    inputs: Structure,
    targets: Structure,
    where: str,
    task: LearningTask[Any] = CLASSIFICATION,
    num_classes: int | None = None,
) -> frozenset[str]:
    """Run a batch in eval mode and in train mode, each with a backward pass.

    Local training and DKD steps do the same with every batch. Parameters, buffers, training flags and
    the random state are as before afterwards; `.grad` is neither read nor written.

    Args:
        module: the network, on the device of `inputs`.
        inputs: [B, ...], at least 2 examples for a network with BatchNorm.
        targets: of the task, [B, ...].
        where: begins every message; names the key, as `model.name = 'mine:net'`.
        task: says what outputs and targets are.
        num_classes: C of the logits [B, C]; None accepts any C above the labels.

    Returns:
        The names of the tensors in `state_dict` that the training pass changed: BatchNorm's statistics,
        for instance. No trainable parameter is among them.

    Raises:
        ConfigError: the network does not take the inputs, does not return what the task expects, has no trainable
            parameter, cannot be differentiated, has a loss or gradients that are not finite, or has an entry in `state_dict` that cannot
            be sent.
    """
    with _untouched(module), torch.random.fork_rng(devices=_accelerators(next(leaves(inputs)).device)), torch.enable_grad():
        module.eval()
        _backward(module, inputs, targets, where, task, num_classes)
        before = _untrained(module, where)
        module.train()
        _backward(module, inputs, targets, where, task, num_classes)
        return _changed(before, _untrained(module, where), where)


def check_entries(module: nn.Module, where: str) -> dict[str, Tensor]:
    """Return a network's `state_dict`, whose entries can all be sent.

    Raises:
        ConfigError: one is no tensor (`get_extra_state`), is not dense, or has a dtype that cannot be sent.
    """
    try:
        entries = module.state_dict()
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"{where}: its state_dict cannot be read: {one_line(error)}") from error
    for name, value in entries.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"{where}: the entry {name!r} of its state_dict is of type {type(value).__name__}; only tensors can be sent: "
                "register it as a buffer, or leave it out of the state_dict"
            )
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            raise ConfigError(f"{where}: tensor {name!r} is {_kind(value)}; only dense tensors can be sent")
        if value.dtype not in DTYPES.values():
            advice = "torch.view_as_real makes a real one of it" if value.dtype.is_complex else f"use one of {', '.join(DTYPES)}"
            raise ConfigError(
                f"{where}: tensor {name!r} has dtype {value.dtype}, which cannot be sent; {advice}, "
                "or register it as a buffer with persistent=False"
            )
    return entries


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "on the meta device and holds no values"
    return "quantized" if tensor.is_quantized else f"of layout {tensor.layout}"


def _backward(
    module: nn.Module,
    inputs: Structure,
    targets: Structure,
    where: str,
    task: LearningTask[Any],
    num_classes: int | None,
) -> None:
    """Run one batch forward and backward in the network's current mode; the results are finite. Raises ConfigError."""
    mode = "train" if module.training else "eval"
    try:
        outputs = task.outputs(module, inputs)
    except Exception as error:  # a user's model may raise anything
        raise InputsRefusedError(f"{where} does not take inputs of {_described(inputs)} in {mode} mode: {one_line(error)}") from error
    size = len(next(leaves(inputs)))
    task.check_outputs(outputs, targets, num_classes, f"{where} in {mode} mode maps {size} inputs of {_described(inputs)}")
    # After the forward pass: lazy modules have their parameters only then.
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError(f"{where} has no trainable parameter: none has requires_grad = True")
    if not any(leaf.requires_grad for leaf in leaves(outputs) if isinstance(leaf, Tensor)):
        raise ConfigError(
            f"{where} in {mode} mode: its logits depend on no trainable parameter; is the output detached, or computed under torch.no_grad?"
        )
    try:
        loss = task.loss(map_leaves(_as_computed, outputs), targets)
        gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
    except Exception as error:  # likewise
        raise ConfigError(f"{where} in {mode} mode: no gradient can be computed: {one_line(error)}") from error
    _check_finite(module, loss, gradients, f"{where} in {mode} mode")


def _check_finite(module: nn.Module, loss: Tensor, gradients: Sequence[Tensor | None], where: str) -> None:
    """Check weights, the loss of the batch that was tried, and its gradients. Raises ConfigError for what training would not survive."""
    if (name := not_finite(module)) is not None:
        raise ConfigError(f"{where}: the parameter {name!r} holds a value that is not finite")
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not loss.isfinite().all():
        raise ConfigError(f"{where}: its loss on the examples that were tried is {float(loss.detach().sum())}")
    for name, gradient in zip(trainable, gradients, strict=True):
        if gradient is not None and not gradient.isfinite().all():
            raise ConfigError(f"{where}: the gradient of {name!r} on the examples that were tried is not finite")


def not_finite(module: nn.Module) -> str | None:
    """Return the name of the first trained parameter that holds a value that is not finite; None if there is none."""
    trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
    return next((name for name, parameter in trained if not parameter.isfinite().all()), None)


def _described(inputs: Structure) -> str:
    """Say what inputs are: the shape of one, and its dtype where that is not a floating-point one."""
    if not isinstance(inputs, Tensor):
        return f"type {type(inputs).__name__}"
    kind = "" if inputs.is_floating_point() else f" and dtype {str(inputs.dtype).removeprefix('torch.')}"
    return f"shape {tuple(inputs.shape[1:])}{kind}"


def _as_computed(output: Any) -> Any:
    """Return an output in the precision that losses are computed in."""
    is_float = isinstance(output, Tensor) and output.is_floating_point()
    return output.float() if is_float else output


def _untrained(module: nn.Module, where: str) -> dict[str, Tensor]:
    """Copy everything in the `state_dict` but the trainable parameters. Raises ConfigError."""
    entries = check_entries(module, where)
    trained = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    return {name: value.detach().clone() for name, value in entries.items() if name not in trained}


def _changed(before: dict[str, Tensor], after: dict[str, Tensor], where: str) -> frozenset[str]:
    """Return which tensors changed. Raises ConfigError if one appeared, disappeared or has another dtype or shape."""
    for name in sorted(before.keys() ^ after.keys()):
        what = "appears" if name in after else "disappears"
        raise ConfigError(f"{where}: tensor {name!r} {what} in training; register it as a buffer when the module is built")
    for name, value in after.items():
        if (value.dtype, value.shape) != (before[name].dtype, before[name].shape):
            raise ConfigError(f"{where}: tensor {name!r} changes from {form_of(before[name])} to {form_of(value)} in training")
    return frozenset(name for name, value in after.items() if not _same_bits(value, before[name]))


def form_of(tensor: Tensor) -> str:
    """Write dtype and shape: float32[3, 4]."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and frozen parameters afterwards."""
    flags = {submodule: submodule.training for submodule in module.modules()}
    buffers = [(owner, name, value, None if value is None else value.clone()) for owner, name, value in _buffers(module)]
    frozen = [(parameter, parameter.detach().clone()) for parameter in module.parameters() if _is_frozen(parameter)]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in frozen:
                parameter.copy_(value)
            for owner, name, buffer, copy in buffers:
                if buffer is not None and copy is not None:
                    owner._buffers[name] = buffer.copy_(copy)
        for submodule, training in flags.items():
            submodule.training = training


def _is_frozen(parameter: nn.Parameter) -> bool:
    return not parameter.requires_grad and not is_lazy(parameter)


def _buffers(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor | None]]:
    for owner in module.modules():
        for name, value in owner._buffers.items():
            if value is None or not is_lazy(value):
                yield owner, name, value


def _accelerators(device: torch.device) -> list[torch.device]:
    """List the devices besides the CPU whose random state computing on `device` changes."""
    return [device] if device.type == "cuda" else []
