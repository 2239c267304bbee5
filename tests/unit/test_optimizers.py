"""The optimizers without the decorators of torch's compiler: equal steps, hooks, and no import of the compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feddkd.algorithms.local_optimizer import CLASSES
from feddkd.optimizers import eager
from feddkd.registry import OPTIMIZERS

OF_TORCH = sorted(CLASSES.items())


def stepped(kind: type[torch.optim.Optimizer], **arguments: Any) -> list[Tensor]:
    """Take three steps on a small network; the second finds one parameter without a gradient."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = kind(module.parameters(), **arguments)
    for step in range(3):
        optimizer.zero_grad()
        module(torch.randn(3, 5)).square().mean().backward()
        if step == 1:
            module[0].weight.grad = None
        optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.1}, {"foreach": True}, {"maximize": True}])
@pytest.mark.parametrize(("name", "kind"), OF_TORCH)
def test_steps_are_those_of_torch_bit_for_bit(name: str, kind: type[torch.optim.Optimizer], arguments: dict[str, float | bool]) -> None:
    of_torch = getattr(torch.optim, kind.__name__)
    assert kind is not of_torch, name
    for ours, expected in zip(stepped(kind, lr=0.1, **arguments), stepped(of_torch, lr=0.1, **arguments), strict=True):
        assert torch.equal(ours, expected)


def test_state_is_saved_and_loaded_as_by_torch() -> None:
    kind = eager(torch.optim.Adam)
    parameter = nn.Parameter(torch.ones(3))
    first, second = kind([parameter], lr=0.1), kind([parameter], lr=0.5)
    parameter.grad = torch.ones(3)
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 0.1
    assert torch.equal(second.state[parameter]["exp_avg"], first.state[parameter]["exp_avg"])


def test_hooks_and_closures_are_called() -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = eager(torch.optim.SGD)([parameter], lr=0.5)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 1.0
    assert seen == ["before", "after"]
    assert parameter.item() == 0.0


def test_a_differentiable_step_records_gradients() -> None:
    start = torch.ones(1, requires_grad=True)
    weights = start + 0
    optimizer = eager(torch.optim.SGD)([weights], lr=0.5, differentiable=True)
    weights.grad = start * 3
    optimizer.step()
    weights.sum().backward()  # type: ignore[no-untyped-call]
    assert start.grad is not None
    assert start.grad.item() == -0.5  # of s - 0.5 * 3 s


PROGRAM = """
import sys
import torch
from torch import nn
from feddkd.aggregator.server_optimizer import OPTIMIZERS
from feddkd.algorithms.local_optimizer import CLASSES
for build in [*CLASSES.values(), *(OPTIMIZERS[name] for name in OPTIMIZERS)]:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = build([parameter], lr=0.1)
    optimizer.zero_grad()
    parameter.grad = torch.ones(2)
    optimizer.step()
print(*(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""


def test_no_optimizer_of_a_configuration_imports_the_compiler() -> None:
    assert len(OPTIMIZERS) >= 6
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
