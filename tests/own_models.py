"""Networks of users' own, as `model.name = "own_models:NAME"`: of every kind that has once gone wrong elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

Shape = tuple[int, ...]


class Adapted(nn.Module):
    """A frozen layer with a trainable correction of rank one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(1, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.down.T @ self.up.T
        return out


def adapters(shape: Shape, classes: int) -> nn.Sequential:
    """Adapters on a frozen backbone."""
    return nn.Sequential(nn.Flatten(), Adapted(prod(shape), 128), nn.ReLU(), nn.Linear(128, classes))


def other_backbones(shape: Shape, classes: int) -> nn.Module:
    """Adapters on a backbone that is another one at each call: no two processes build the same."""
    network = adapters(shape, classes)
    with torch.no_grad():
        seed = int.from_bytes(os.urandom(4), "little")
        network.get_parameter("1.base.weight").normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return network


def frozen_batch_norm(shape: Shape, classes: int) -> nn.Module:
    """A backbone with BatchNorm whose parameters are frozen, and whose statistics move."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 32), nn.BatchNorm1d(32)).requires_grad_(False)
    return nn.Sequential(body, nn.ReLU(), nn.Linear(32, classes))


def batch_norm(shape: Shape, classes: int) -> nn.Module:
    """Everything is trained."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))


class Masked(nn.Module):
    """Has a constant buffer, and tied weights."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(inputs) % 2).float())
        self.first, self.second = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs)
        self.second.weight = self.first.weight
        self.out = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.second(torch.relu(self.first(x.flatten(1) * self.get_buffer("mask"))))))
        return out


def masked(shape: Shape, classes: int) -> nn.Module:
    """A constant buffer, and tied weights."""
    return Masked(prod(shape), classes)


def plain(shape: Shape, classes: int) -> nn.Module:
    """A network without anything special."""
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 8), nn.ReLU(), nn.Linear(8, classes))


def compiled(shape: Shape, classes: int) -> nn.Module:
    """The plain network, compiled."""
    module: object = torch.compile(plain(shape, classes), backend="eager")
    return cast("nn.Module", module)


def parallel(shape: Shape, classes: int) -> nn.Module:
    """The plain network, in a wrapper in a wrapper."""
    return nn.DataParallel(compiled(shape, classes))


def partly_compiled(shape: Shape, classes: int) -> nn.Module:
    """The plain network, whose parts are wrapped."""
    network = plain(shape, classes)
    assert isinstance(network, nn.Sequential)
    part: object = torch.compile(network[1], backend="eager")
    network[1] = cast("nn.Module", part)
    network[3] = nn.DataParallel(network[3])
    return network


def lazy(shape: Shape, classes: int) -> nn.Module:
    """Shapes are known after the first batch."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(classes))


def spectral(shape: Shape, classes: int) -> nn.Module:
    """Its buffers change in every forward pass in train mode."""
    return nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(prod(shape), classes)))


def half(shape: Shape, classes: int) -> nn.Module:
    """Parameters of 16 bits, inputs of 32."""
    return Through(nn.Linear(prod(shape), classes).to(torch.bfloat16), lambda layer, x: layer(x.flatten(1).bfloat16()))


def recurrent(shape: Shape, classes: int) -> nn.Module:
    """An LSTM over the rows."""
    return Rows(shape[-1], classes)


class Rows(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(x.flatten(1, 2))[0][:, -1])
        return out


class Through(nn.Module):
    """A network whose forward pass is a function of its one layer."""

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Tensor], object], **buffers: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self._function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> object:
        return self._function(self.layer, x)


def _through(function: Callable[[nn.Module, Tensor], object], **buffers: Tensor) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, classes: Through(nn.Linear(prod(shape), classes), function, **buffers)


def _logits(layer: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = layer(x.flatten(1))
    return logits


tuple_in_training = _through(lambda layer, x: (_logits(layer, x),) * 2 if layer.training else _logits(layer, x))
fails_in_training = _through(lambda layer, x: _logits(layer, x[:, :, 1:] if layer.training else x))
detached = _through(lambda layer, x: _logits(layer, x).detach())
in_place = _through(lambda layer, x: torch.sigmoid(_logits(layer, x)).mul_(2).exp_() if not layer.training else _logits(layer, x))
integers = _through(lambda layer, x: _logits(layer, x).long())
complex_buffer = _through(_logits, freqs=torch.zeros(2, dtype=torch.complex64))
unsigned_buffer = _through(_logits, table=torch.zeros(2, dtype=torch.uint16))
sparse_buffer = _through(_logits, graph=torch.eye(3).to_sparse())
meta_buffer = _through(_logits, late=torch.zeros(2, device="meta"))


def frozen(shape: Shape, classes: int) -> nn.Module:
    """Nothing can be trained."""
    return plain(shape, classes).requires_grad_(False)


class Counting(Through):
    def get_extra_state(self) -> object:
        return {"seen": 1}


def extra_state(shape: Shape, classes: int) -> nn.Module:
    """An entry of its state_dict is a dict."""
    return Counting(nn.Linear(prod(shape), classes), _logits)


class Late(nn.Module):
    """Registers a buffer, or makes one larger, in its first training pass."""

    def __init__(self, inputs: int, classes: int, *, grows: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
        if grows:
            self.register_buffer("mean", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.register_buffer("mean", x.flatten(1).mean(0).detach())
        return _logits(self.layer, x)


def appearing(shape: Shape, classes: int) -> nn.Module:
    """A buffer appears in training."""
    return Late(prod(shape), classes, grows=False)


def growing(shape: Shape, classes: int) -> nn.Module:
    """A buffer changes its shape in training."""
    return Late(prod(shape), classes, grows=True)


class Waking(nn.Module):
    """Changes a buffer in training, but not in the first passes."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(inputs, classes), 0
        self.register_buffer("temperature", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += self.training
        if self.passes > 3:
            self.get_buffer("temperature").mul_(0.9)
        return _logits(self.layer, x)


def waking(shape: Shape, classes: int) -> nn.Module:
    """A buffer that seems constant at the start and is not."""
    return Waking(prod(shape), classes)
