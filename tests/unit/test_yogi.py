import math

import pytest
import torch
from torch import nn

from feddkd.aggregator.yogi import Yogi


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer: torch.optim.Optimizer, weight: nn.Parameter, *gradient: float) -> None:
    weight.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()


def test_two_steps_are_the_ones_computed_by_hand() -> None:
    weight = parameter(1.0)
    optimizer = Yogi([weight], lr=0.1, betas=(0.9, 0.99), eps=0.001)
    # m = .1 * 2 = .2, corrected 2; v = 0 + .01 * 4 = .04, corrected 4
    step(optimizer, weight, 2.0)
    first = 1 - 0.1 * 2 / (2 + 0.001)
    assert weight.item() == pytest.approx(first, rel=1e-14)
    # m = .9 * .2 + .1 * .1 = .19, corrected / .19 = 1; g² = .01 < v, so v = .04 - .01 * .01 = .0399, corrected / .0199
    step(optimizer, weight, 0.1)
    assert weight.item() == pytest.approx(first - 0.1 * 1 / (math.sqrt(0.0399 / 0.0199) + 0.001), rel=1e-14)


def test_the_first_step_is_adams() -> None:
    one, other = parameter(1.0, -2.0, 0.5), parameter(1.0, -2.0, 0.5)
    step(Yogi([one], lr=0.01, eps=1e-3), one, 0.3, -4.0, 0.0)
    step(torch.optim.Adam([other], lr=0.01, eps=1e-3), other, 0.3, -4.0, 0.0)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_after_a_burst_the_second_moment_falls_more_slowly_than_adams() -> None:
    one, other = parameter(0.0), parameter(0.0)
    yogi, adam = Yogi([one], lr=0.01), torch.optim.Adam([other], lr=0.01)
    for gradient in [10.0] + [0.01] * 1000:
        step(yogi, one, gradient)
        step(adam, other, gradient)
    burst = 0.001 * 100
    assert yogi.state[one]["exp_avg_sq"].item() == pytest.approx(burst - 1000 * 0.001 * 0.0001, rel=1e-9)
    assert adam.state[other]["exp_avg_sq"].item() < 0.4 * burst


def test_parameters_without_a_gradient_stay() -> None:
    moved, left = parameter(1.0), parameter(1.0)
    step(Yogi([moved, left], lr=0.1), moved, 1.0)
    assert moved.item() != 1
    assert left.item() == 1


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    weight = parameter(3.0)
    optimizer = Yogi([weight], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9
    assert weight.item() < 3


def test_a_quadratic_is_minimised() -> None:
    weight = parameter(3.0, -2.0)
    optimizer = Yogi([weight], lr=0.05)
    for _ in range(1000):
        step(optimizer, weight, *(2 * weight.detach()).tolist())
    assert weight.abs().max() < 1e-3


@pytest.mark.parametrize(
    "settings", [{"lr": 0.0}, {"lr": 0.1, "betas": (1.0, 0.9)}, {"lr": 0.1, "betas": (0.9, -0.1)}, {"lr": 0.1, "eps": 0.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"is not positive|are not in"):
        Yogi([parameter(1.0)], **settings)  # type: ignore[arg-type]
