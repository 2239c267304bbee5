import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feddkd.config import DKDConfig
from feddkd.dkd.divergences import js, kl, mse_logits, reverse_kl
from feddkd.registry import DIVERGENCES

NAMES = list(DIVERGENCES)


def logits(seed: int, batch: int = 6, classes: int = 4, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Teacher and student logits, float64; the student's take gradients."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = scale * torch.randn(2, batch, classes, generator=generator, dtype=torch.float64)
    return teacher, student.clone().requires_grad_()


def gradient(name: str, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    (result,) = torch.autograd.grad(DIVERGENCES[name](teacher, student, temperature), student)
    return result


def written_out(name: str, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """The formulas as a textbook has them, with explicit exponentials."""
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(1, keepdim=True)
    m = (p + q) / 2
    if name == "mse_logits":
        return ((teacher - student) ** 2).sum() / teacher.numel()
    per_example = {
        "kl": (p * (p / q).log()).sum(1),
        "reverse_kl": (q * (q / p).log()).sum(1),
        "js": (p * (p / m).log()).sum(1) / 2 + (q * (q / m).log()).sum(1) / 2,
    }
    return temperature**2 * per_example[name].mean()


def test_the_configuration_offers_exactly_these_divergences() -> None:
    assert (
        DKDConfig.model_json_schema()["properties"]["divergence"]["anyOf"][0]["enum"] == NAMES == ["js", "kl", "mse_logits", "reverse_kl"]
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_written_formula(name: str, temperature: float) -> None:
    teacher, student = logits(0)
    expected = written_out(name, teacher, student, temperature)
    torch.testing.assert_close(DIVERGENCES[name](teacher, student, temperature), expected, rtol=1e-10, atol=1e-12)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient(name, teacher, student, temperature), expected_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_kl_gradient_has_its_closed_form(temperature: float) -> None:
    teacher, student = logits(1)
    expected = temperature * (torch.softmax(student / temperature, 1) - torch.softmax(teacher / temperature, 1)) / len(teacher)
    torch.testing.assert_close(gradient("kl", teacher, student, temperature), expected.detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_separates_a_teacher_from_itself(name: str) -> None:
    teacher, _ = logits(2)
    student = teacher.clone().requires_grad_()
    assert abs(DIVERGENCES[name](teacher, student, 2.0).item()) < 1e-14
    assert gradient(name, teacher, student, 2.0).abs().max() < 1e-14


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), temperature=st.floats(0.1, 20), scale=st.floats(0.1, 30))
def test_divergences_are_positive_between_different_predictions(seed: int, temperature: float, scale: float) -> None:
    teacher, student = logits(seed, scale=scale)
    for name in NAMES:
        assert DIVERGENCES[name](teacher, student, temperature).item() > 0, name


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), temperature=st.floats(0.1, 20))
def test_js_is_symmetric_and_bounded_and_kl_reverses(seed: int, temperature: float) -> None:
    a, b = (x.detach() for x in logits(seed))
    torch.testing.assert_close(js(a, b, temperature), js(b, a, temperature), rtol=1e-12, atol=0)
    assert js(a, b, temperature) <= temperature**2 * math.log(2)
    assert torch.equal(kl(a, b, temperature), reverse_kl(b, a, temperature))
    assert not torch.isclose(kl(a, b, temperature), kl(b, a, temperature), rtol=1e-9)


@pytest.mark.parametrize(("name", "factor"), [("kl", 1.0), ("reverse_kl", 1.0), ("js", 0.25)])
def test_hot_divergences_become_the_squared_distance_of_centred_logits(name: str, factor: float) -> None:
    teacher, student = logits(3)
    difference = (student - teacher).detach()
    centred = difference - difference.mean(1, keepdim=True)
    temperature = 1e5
    torch.testing.assert_close(gradient(name, teacher, student, temperature), factor * centred / centred.numel(), rtol=1e-3, atol=1e-6)
    value = DIVERGENCES[name](teacher, student, temperature)
    torch.testing.assert_close(value.detach(), factor * centred.square().mean() / 2, rtol=1e-3, atol=1e-6)


def test_mse_does_not_depend_on_the_temperature() -> None:
    teacher, student = logits(4)
    assert torch.equal(mse_logits(teacher, student, 1.0), mse_logits(teacher, student, 7.0))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_give_finite_losses_and_gradients(name: str, temperature: float) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 1e4]])
    student = torch.tensor([[-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]], requires_grad=True)
    assert DIVERGENCES[name](teacher, student, temperature).isfinite()
    assert gradient(name, teacher, student, temperature).isfinite().all()


def test_certain_and_opposite_predictions_have_their_known_distances() -> None:
    teacher, student = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert kl(teacher, student, 1.0).item() == pytest.approx(1e4)
    assert kl(teacher, student, 4.0).item() == pytest.approx(4e4)  # 16 times a quarter of the logits
    assert js(teacher, student, 1.0).item() == pytest.approx(math.log(2))
