"""SemiFL: labels, then what the average predicts, each with an average of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import (
    CLASSES,
    FEATURES,
    HIDDEN,
    REGRESSION,
    Data,
    Federation,
    ToDouble,
    Vector,
    assert_follows,
    data,
    gradient,
    probabilities,
    sgd,
)
from harness import RUN_ID
from torch import Tensor, nn

from feddkd.algorithms.semifl import CONFIDENT_SHARE, FixAndMix, SemiFLConfig
from feddkd.data.examples import MemoryExamples
from feddkd.errors import CancelledError
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.tasks.base import UNLABELLED
from feddkd.tensors import Tensors

LR, STEPS = 0.25, 3


def partly(n: int, labelled: int, seed: int) -> Data:
    """Examples of which only the first ones have a label."""
    all_labelled = data(n, seed)
    return Data(all_labelled.x, np.where(np.arange(n) < labelled, all_labelled.y, UNLABELLED))


def part(of: Data, rows: Vector, y: Vector | None = None) -> Data:
    return Data(of.x[rows], of.y[rows] if y is None else y[rows])


def weighted(models: Sequence[Vector], weights: Sequence[int]) -> Vector:
    return np.asarray(np.average(np.stack(models), axis=0, weights=np.array(weights, dtype=float)))


PARTLY = [partly(9, 4, 1), partly(12, 7, 2), partly(8, 3, 3)]


class ByHand:
    """A round in numpy: full batches, so nothing depends on the order of the examples.

    Attributes:
        confident: how many examples each client was sure of, by round.
    """

    def __init__(self, clients: Sequence[Data], confidence: float, losses: float) -> None:
        self.clients, self.confidence, self.losses = clients, confidence, losses
        self.confident: list[list[int]] = []

    def one_round(self, w: Vector, _: list[int]) -> Vector:
        has_label = [own.y != UNLABELLED for own in self.clients]
        own_labels = [part(own, rows) for own, rows in zip(self.clients, has_label, strict=True)]
        trained = [sgd(w, lambda v, own=own: gradient(v, own), STEPS, LR) for own in own_labels]  # type: ignore[misc]
        start = weighted(trained, [len(own) for own in own_labels])
        own_predictions = [self._confident(start, own) for own in self.clients]
        self.confident.append([len(own) for own in own_predictions])
        trained = [self._on_predictions(start, own) for own in own_predictions]
        return weighted(trained, [len(own) for own in self.clients])

    def _confident(self, start: Vector, own: Data) -> Data:
        p = probabilities(start, own.x)
        return part(own, (own.y == UNLABELLED) & (p.max(1) > self.confidence), p.argmax(1))

    def _on_predictions(self, start: Vector, own: Data) -> Vector:
        return sgd(start, lambda v: self.losses * gradient(v, own), STEPS, LR) if len(own) else start


def test_rounds_train_on_labels_and_then_on_confident_predictions(tmp_path: Path) -> None:
    hand = ByHand(PARTLY, confidence=0.5, losses=1)
    federation = Federation(tmp_path, {"name": "semifl", "confidence": 0.5, "mix_weight": 0}, PARTLY)
    assert_follows(federation, hand.one_round)
    assert any(0 < found < (own.y == UNLABELLED).sum() for found, own in zip(hand.confident[0], PARTLY, strict=True))
    assert any(0 in found for found in hand.confident)  # a client that is sure of nothing counts with what it received
    shares = [record.metrics[CONFIDENT_SHARE] for record in federation.follower.exchanges if record.id.name == "pseudo_train"]
    sizes, without_label = [len(own) for own in PARTLY], [int((own.y == UNLABELLED).sum()) for own in PARTLY]
    expected = [np.average(np.array(found) / without_label, weights=sizes) for found in hand.confident]
    np.testing.assert_allclose(shares, expected)


def test_an_example_that_is_mixed_with_itself_counts_once_more(tmp_path: Path) -> None:
    clients = [partly(5, 4, 1), partly(4, 3, 2)]  # one example without a label each
    hand = ByHand(clients, confidence=0, losses=1.5)
    federation = Federation(tmp_path, {"name": "semifl", "confidence": 0, "mix_weight": 0.5}, clients)
    assert_follows(federation, hand.one_round, rtol=1e-6)  # examples are mixed in float32
    work = [record.gradient_evaluations for record in federation.follower.exchanges if record.id.name == "pseudo_train"]
    assert work == [2 * 2 * STEPS] * 3  # two clients, two losses of one example


def task(federation: Federation, name: str = "pseudo_train", number: int = 1) -> Task:
    return Task(ExchangeId(RUN_ID, number, 0, name, 0), Tensors.of_module(federation.workers["client-0"].site.module))


def logits(w: Tensor, x: Tensor) -> Tensor:
    return x.double() @ w[: CLASSES * FEATURES].view(CLASSES, FEATURES).T + w[CLASSES * FEATURES :]


@pytest.mark.parametrize("mix_weight", [0.0, 0.5, 1.0])
def test_the_losses_are_those_of_the_paper(tmp_path: Path, mix_weight: float) -> None:
    federation = Federation(tmp_path, {"name": "semifl"}, PARTLY)
    site = federation.workers["client-0"].site
    other, other_label = torch.tensor([[4.0, -8.0, 16.0]]), torch.tensor([2])
    objective = FixAndMix(site, SemiFLConfig(mix_weight=mix_weight), MemoryExamples(other, other_label))
    seen: list[Tensor] = []
    site.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    objective.begin(task(federation))
    inputs, labels = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 2.0]]), torch.tensor([0, 3])
    found = float(objective.loss(torch.arange(2), inputs, labels).detach())
    w = torch.from_numpy(federation.initial)
    expected = float(-F.log_softmax(logits(w, inputs), 1)[[0, 1], [0, 3]].mean())
    assert torch.equal(seen[0], inputs)
    if mix_weight > 0:
        mixed = seen[1]
        share = float((mixed - other)[0, 0] / (inputs - other)[0, 0])
        torch.testing.assert_close(mixed, share * inputs + (1 - share) * other)
        log_p = F.log_softmax(logits(w, mixed), 1)
        of_each = -share * log_p[[0, 1], [0, 3]].mean() - (1 - share) * log_p[:, 2].mean()
        expected += mix_weight * float(of_each)
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(seen) == (2 if mix_weight > 0 else 1)


def test_shares_are_drawn_from_the_beta_distribution_and_others_from_all_of_the_pool(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "semifl"}, PARTLY)
    site = federation.workers["client-0"].site
    pool = MemoryExamples(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 1]))
    objective = FixAndMix(site, SemiFLConfig(beta=0.75), pool)
    seen: list[Tensor] = []
    site.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    objective.begin(task(federation))
    for _ in range(2000):
        objective.loss(torch.arange(1), torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([2]))
    mixed = torch.cat(seen[1::2]).double()
    share = mixed[:, 2]
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)) = 0.1.
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(share.var()) == pytest.approx(0.1, abs=0.01)
    assert float((mixed[:, 0] > 0).double().mean()) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(mixed.sum(1), torch.ones(2000, dtype=torch.float64))


@pytest.mark.parametrize("augment", [True, False])
def test_only_the_confident_images_are_augmented(tmp_path: Path, augment: bool) -> None:
    federation = Federation(tmp_path, {"name": "semifl"}, PARTLY)
    site = federation.workers["client-0"].site
    site.module = nn.Flatten()
    image, other = torch.eye(10).view(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    objective = FixAndMix(site, SemiFLConfig(augment=augment), MemoryExamples(other, torch.tensor([0])))
    seen: list[Tensor] = []
    site.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    objective.begin(task(federation))
    for _ in range(50):
        objective.loss(torch.arange(1), image, torch.tensor([0]))
    assert all(torch.equal(strong, image) for strong in seen[::2]) == (not augment)
    assert all(torch.count_nonzero(mixed * (1 - image)) == 0 for mixed in seen[1::2])  # the diagonal is where it was


def test_without_a_confident_example_it_is_fedavg(tmp_path: Path) -> None:
    semifl = Federation(tmp_path / "semifl", {"name": "semifl", "confidence": 0.9999}, PARTLY)
    fedavg = Federation(tmp_path / "fedavg", {"name": "fedavg"}, PARTLY)
    semifl.run(), fedavg.run()
    np.testing.assert_array_equal(semifl.models, fedavg.models)
    idle = [record for record in semifl.follower.exchanges if record.id.name == "pseudo_train"]
    assert [(record.gradient_evaluations, record.loss, record.metrics[CONFIDENT_SHARE]) for record in idle] == [(0, None, 0.0)] * 3


def test_with_all_labels_it_is_fedavg(tmp_path: Path) -> None:
    clients = [data(6, 1), data(9, 2)]
    semifl = Federation(tmp_path / "semifl", {"name": "semifl", "confidence": 0}, clients)
    fedavg = Federation(tmp_path / "fedavg", {"name": "fedavg"}, clients)
    semifl.run(), fedavg.run()
    np.testing.assert_array_equal(semifl.models, fedavg.models)


def normed(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Cannot train on a single example."""
    hidden = [nn.Linear(FEATURES, HIDDEN).double(), nn.BatchNorm1d(HIDDEN).double()]
    return nn.Sequential(ToDouble(), *hidden, nn.Linear(HIDDEN, num_classes).double())


@pytest.mark.parametrize("unlabelled", [1, 2])
def test_one_confident_example_is_too_few_for_a_network_that_needs_two(tmp_path: Path, unlabelled: int) -> None:
    clients = [partly(4 + unlabelled, 4, seed) for seed in (1, 2)]
    federation = Federation(tmp_path, {"name": "semifl", "confidence": 0}, clients, model="test_semifl:normed")
    federation.run()
    work = {record.gradient_evaluations for record in federation.follower.exchanges if record.id.name == "pseudo_train"}
    assert work == ({0} if unlabelled == 1 else {2 * 2 * 2 * STEPS})


def same(first: Reply, second: Reply) -> bool:
    assert first.contribution is not None
    assert second.contribution is not None
    return first.contribution.sha256() == second.contribution.sha256()


def test_a_reply_depends_on_its_task_alone(tmp_path: Path) -> None:
    settings, training = {"name": "semifl", "confidence": 0}, {"batch_size": 2}
    federation = Federation(tmp_path / "first", settings, PARTLY, REGRESSION, training=training)
    worker = federation.workers["client-0"]
    first, in_round_2 = task(federation), task(federation, number=2)
    reply = worker.carry_out(first)
    torch.manual_seed(1), torch.rand(1)
    other = worker.carry_out(in_round_2)
    assert same(reply, worker.carry_out(first))
    again = Federation(tmp_path / "again", settings, PARTLY, REGRESSION, training=training).workers["client-0"]
    assert same(reply, again.carry_out(first))
    assert same(other, again.carry_out(in_round_2))
    assert not same(reply, other)


def test_a_closed_exchange_ends_before_the_next_batch(tmp_path: Path) -> None:
    settings, training = {"name": "semifl", "confidence": 0}, {"batch_size": 2}
    worker = Federation(tmp_path, settings, PARTLY, training=training).workers["client-0"]
    closed = Task(ExchangeId(RUN_ID, 1, 0, "pseudo_train", 0), Tensors.of_module(worker.site.module))
    passes: list[int] = []

    def passed(*_: object) -> None:
        passes.append(1)
        if len(passes) == 3:  # the labels, then both losses of the first batch
            closed.cancelled.set()

    worker.site.module.register_forward_hook(passed)
    with pytest.raises(CancelledError):
        worker.carry_out(closed)
    assert len(passes) == 3


def test_training_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "semifl", "confidence": 0}, PARTLY)
    before = torch.get_rng_state()
    federation.workers["client-0"].carry_out(task(federation))
    assert torch.equal(torch.get_rng_state(), before)
