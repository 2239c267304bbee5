"""FedNTD: the global model's word on the classes that are not true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import CLASSES, NETWORK, THREE, Data, Federation, Vector, assert_follows, autograd, cross_entropy, forward, mean, sgd
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from feddkd.algorithms.fedntd import FedNTDConfig, NotTrueDistillation
from feddkd.dkd import kl, without_true_class
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors


def not_true(z_global: Vector, z: Vector, y: int, temperature: float) -> float:
    """T² KL over the classes that are not y, of one example, from the definition."""
    others = [c for c in range(len(z)) if c != y]
    p = np.exp(z_global[others] / temperature)
    q = np.exp(z[others] / temperature)
    p, q = p / p.sum(), q / q.sum()
    return float(temperature**2 * (p * np.log(p / q)).sum())


def loss_of(own: Data, w: Vector, beta: float, temperature: float, at: Tensor) -> Tensor:
    x, y = torch.from_numpy(own.x), torch.from_numpy(own.y)
    logits = forward(at, x)[1]
    teacher = forward(torch.from_numpy(w), x)[1]
    total = torch.zeros((), dtype=torch.float64)
    for label, student_row, teacher_row in zip(own.y, logits, teacher, strict=True):
        others = [c for c in range(CLASSES) if c != label]
        log_p, log_q = ((row[others] / temperature).log_softmax(0) for row in (teacher_row, student_row))
        total = total + temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
    return cross_entropy(logits, y) + beta * total / len(own)


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (3.0, 2.5)])
def test_rounds_are_those_of_the_paper(tmp_path: Path, beta: float, temperature: float) -> None:
    federation = Federation(tmp_path, {"name": "fedntd", "beta": beta, "temperature": temperature}, model=NETWORK)

    def one_round(w: Vector, _: list[int]) -> Vector:
        local = [sgd(w, lambda v, own=own: autograd(lambda at: loss_of(own, w, beta, temperature, at), v), 3, 0.25) for own in THREE]  # type: ignore[misc]
        return mean(local, THREE)

    assert_follows(federation, one_round, rtol=1e-6)  # the teacher's logits are kept in float32


def test_with_beta_zero_it_is_fedavg(tmp_path: Path) -> None:
    ntd = Federation(tmp_path / "ntd", {"name": "fedntd", "beta": 0}, model=NETWORK)
    avg = Federation(tmp_path / "avg", {"name": "fedavg"}, model=NETWORK)
    ntd.run(), avg.run()
    np.testing.assert_allclose(ntd.models, avg.models, rtol=1e-12)


def objective_at(folder: Path, temperature: float = 1.0) -> tuple[NotTrueDistillation, Tensor]:
    """An objective whose global model is the site's own, and the site's inputs."""
    site = Federation(folder, {"name": "fedntd"}, model=NETWORK).workers["client-1"].site
    objective = NotTrueDistillation(site, FedNTDConfig(beta=1.0, temperature=temperature))
    objective.begin(Task(ExchangeId("run", 1, 0, "local_train", 0), Tensors.of_module(site.module)))
    return objective, site.examples.gather(torch.arange(len(site.examples)))[0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_the_papers_and_the_distillation_says_nothing_of_the_true_class(tmp_path: Path, temperature: float) -> None:
    objective, inputs = objective_at(tmp_path, temperature)
    labels = objective.site.examples.labels
    before = objective.site.module(inputs).detach().numpy()
    with torch.no_grad():
        dict(objective.site.module.named_parameters())["3.weight"].mul_(-2)
    logits: list[Tensor] = []
    objective.site.module.register_forward_hook(lambda _, __, output: logits.append(output))
    loss = objective.loss(torch.arange(len(labels)), inputs, labels)
    after = logits[0].detach().numpy()
    hard = [math.log(np.exp(z).sum()) - z[y] for z, y in zip(after, labels.tolist(), strict=True)]
    soft = [not_true(old, new, y, temperature) for old, new, y in zip(before, after, labels.tolist(), strict=True)]
    assert float(loss.detach()) == pytest.approx(np.mean(hard) + np.mean(soft), rel=1e-6)

    (gradient,) = torch.autograd.grad(loss, logits[0])
    softmax = np.exp(after) / np.exp(after).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    np.testing.assert_allclose(gradient.numpy()[rows, labels], (softmax[rows, labels] - 1) / len(labels), rtol=1e-10)


@given(st.integers(0, 10**6), st.floats(0.5, 5))
def test_the_distillation_of_any_logits_is_the_papers(seed: int, temperature: float) -> None:
    z_global, z = np.random.default_rng(seed).normal(scale=3, size=(2, 1, CLASSES))
    y = seed % CLASSES
    teacher, student = (without_true_class(torch.from_numpy(logits), torch.tensor([y])) for logits in (z_global, z))
    assert float(kl(teacher, student, temperature)) == pytest.approx(not_true(z_global[0], z[0], y, temperature), abs=1e-10)
    assert float(kl(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)


def test_at_the_global_model_the_loss_is_the_cross_entropy(tmp_path: Path) -> None:
    objective, inputs = objective_at(tmp_path)
    labels = objective.site.examples.labels
    with torch.no_grad():
        expected = cross_entropy(objective.site.module(inputs), labels)
        assert float(objective.loss(torch.arange(len(labels)), inputs, labels)) == pytest.approx(float(expected), abs=1e-6)
