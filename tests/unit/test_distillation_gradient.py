from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from own_models import Rows
from torch import Tensor, nn

from feddkd.data.examples import MemoryExamples
from feddkd.dkd import Distillation, distillation_gradient, teacher_logits
from feddkd.registry import DIVERGENCES
from feddkd.tensors import Schema, Tensors

CPU = torch.device("cpu")
FEATURES, CLASSES = 5, 4


class ToDouble(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def new_model(seed: int) -> nn.Sequential:
    """A float64 network, so that sums in another order agree to many digits."""
    torch.manual_seed(seed)
    return nn.Sequential(ToDouble(), nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def new_examples(n: int = 23, seed: int = 0) -> MemoryExamples:
    generator = torch.Generator().manual_seed(seed)
    return MemoryExamples(torch.randn(n, FEATURES, generator=generator), torch.randint(CLASSES, (n,), generator=generator))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-9, atol=1e-12)


def autograd_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradient_and_loss_are_those_of_the_papers_formula(temperature: float) -> None:
    student, examples, order = new_model(1), new_examples(), torch.tensor([3, 17, 0, 9, 22, 4])
    teacher = teacher_logits(new_model(2), examples, CPU)
    x, _ = examples.gather(order)
    p = torch.exp(teacher[order].double() / temperature)
    q = torch.exp(student(x) / temperature)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    loss = (temperature**2 * p * (p / q).log()).sum() / len(order)
    expected = autograd_of(loss, student)

    gradient, mean_loss = distillation_gradient(student, examples, teacher, order, Distillation("kl", temperature), CPU)

    assert_same(gradient, expected)
    assert mean_loss == pytest.approx(loss.item(), rel=1e-12)
    assert gradient.schema == Schema.of_module(student).trainable


def test_gradient_at_the_last_bias_is_the_closed_form_averaged_over_the_examples() -> None:
    student, examples, temperature = new_model(1), new_examples(), 2.5
    teacher = teacher_logits(new_model(2), examples, CPU)
    z = student(examples.inputs).detach()
    expected = temperature * (torch.softmax(z / temperature, 1) - torch.softmax(teacher.double() / temperature, 1)).mean(0)
    gradient, _ = distillation_gradient(student, examples, teacher, torch.arange(23), Distillation("kl", temperature), CPU)
    torch.testing.assert_close(gradient["3.bias"], expected, rtol=1e-10, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=20, max_size=20), st.sampled_from(list(DIVERGENCES)))
def test_with_equal_teachers_the_mean_gradient_does_not_depend_on_the_partition(owners: list[int], divergence: str) -> None:
    student, teacher, examples = new_model(1), new_model(2), new_examples(20)
    distillation = Distillation(divergence, 2.0, 0.25)

    def answer(index: Tensor) -> Tensors:
        part = examples.subset(index)
        return distillation_gradient(student, part, teacher_logits(teacher, part, CPU), torch.arange(len(part)), distillation, CPU)[0]

    parts = [torch.tensor([i for i, owner in enumerate(owners) if owner == client]) for client in set(owners)]
    answers = [(len(part) / 20, answer(part)) for part in parts]
    mean = {name: sum((share * gradient[name] for share, gradient in answers), torch.tensor(0.0)) for name in answers[0][1]}
    assert_same(mean, answer(torch.arange(20)))


@pytest.mark.parametrize("divergence", list(DIVERGENCES))
def test_a_student_that_is_its_teacher_has_no_gradient(divergence: str) -> None:
    model, examples = new_model(1), new_examples()
    teacher = model(examples.inputs).detach()
    gradient, loss = distillation_gradient(model, examples, teacher, torch.arange(23), Distillation(divergence, 2.0), CPU)
    assert gradient.norm() < 1e-14
    assert abs(loss) < 1e-14


@pytest.mark.parametrize("batch_size", [1, 5, 7, 22])
def test_the_size_of_the_pieces_does_not_change_the_gradient(batch_size: int) -> None:
    student, examples, order = new_model(1), new_examples(), torch.randperm(23, generator=torch.Generator().manual_seed(5))
    teacher, distillation = teacher_logits(new_model(2), examples, CPU), Distillation("js", 2.0, 0.3)
    whole, whole_loss = distillation_gradient(student, examples, teacher, order, distillation, CPU)
    pieces, pieces_loss = distillation_gradient(student, examples, teacher, order, distillation, CPU, batch_size=batch_size)
    assert_same(pieces, whole)
    assert pieces_loss == pytest.approx(whole_loss, rel=1e-12)


def test_an_example_drawn_twice_counts_twice() -> None:
    student, examples, distillation = new_model(1), new_examples(), Distillation()
    teacher = teacher_logits(new_model(2), examples, CPU)
    once = [distillation_gradient(student, examples, teacher, torch.tensor([i]), distillation, CPU)[0] for i in (4, 6)]
    twice, _ = distillation_gradient(student, examples, teacher, torch.tensor([4, 6, 4]), distillation, CPU)
    assert_same(twice, {name: (2 * once[0][name] + once[1][name]) / 3 for name in twice})


def test_hard_labels_alone_are_fedsgd() -> None:
    student, examples, order = new_model(1), new_examples(), torch.tensor([1, 5, 8])
    x, y = examples.gather(order)
    loss = F.cross_entropy(student(x), y)
    expected = autograd_of(loss, student)
    for teacher in (None, teacher_logits(new_model(2), examples, CPU)):
        gradient, mean_loss = distillation_gradient(student, examples, teacher, order, Distillation("kl", 3.0, 1.0), CPU)
        assert_same(gradient, expected)
        assert mean_loss == pytest.approx(loss.item())


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_hard_labels_mix_with_the_teacher(weight: float) -> None:
    student, examples, order = new_model(1), new_examples(), torch.arange(23)
    teacher = teacher_logits(new_model(2), examples, CPU)
    soft, soft_loss = distillation_gradient(student, examples, teacher, order, Distillation("kl", 2.0, 0.0), CPU)
    hard, hard_loss = distillation_gradient(student, examples, None, order, Distillation("kl", 2.0, 1.0), CPU)
    both, both_loss = distillation_gradient(student, examples, teacher, order, Distillation("kl", 2.0, weight), CPU)
    assert_same(both, {name: (1 - weight) * soft[name] + weight * hard[name] for name in both})
    assert both_loss == pytest.approx((1 - weight) * soft_loss + weight * hard_loss)


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_teacher_that_errs_is_corrected_example_by_example(divergence: str, weight: float) -> None:
    student, examples = new_model(1), new_examples()
    teacher = teacher_logits(new_model(2), examples, CPU)
    right = teacher.argmax(1) == examples.labels
    followed, corrected = right.nonzero().flatten(), (~right).nonzero().flatten()
    assert len(followed) > 0
    assert len(corrected) > 0

    plain, hard = Distillation(divergence, 2.0, weight), Distillation(hard_label_weight=1.0)
    distillation = Distillation(divergence, 2.0, weight, correct_teacher=True)
    found, loss = distillation_gradient(student, examples, teacher, torch.arange(23), distillation, CPU)
    of_followed, loss_of_followed = distillation_gradient(student, examples, teacher, followed, plain, CPU)
    of_corrected, loss_of_corrected = distillation_gradient(student, examples, None, corrected, hard, CPU)

    share = len(followed) / 23
    assert_same(found, of_followed.scaled(share) + of_corrected.scaled(1 - share))
    assert loss == pytest.approx(share * loss_of_followed + (1 - share) * loss_of_corrected, rel=1e-9)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_teacher_that_is_always_right_or_always_wrong(is_right: bool) -> None:
    student, examples = new_model(1), new_examples()
    teacher = F.one_hot(examples.labels if is_right else (examples.labels + 1) % CLASSES, CLASSES).float()
    found, _ = distillation_gradient(student, examples, teacher, torch.arange(23), Distillation(correct_teacher=True), CPU)
    other = Distillation(hard_label_weight=0.0 if is_right else 1.0)
    assert_same(found, distillation_gradient(student, examples, teacher, torch.arange(23), other, CPU)[0])


def model_with_statistics() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("training", [True, False])
def test_the_student_is_left_as_it_was(training: bool) -> None:
    model, examples = model_with_statistics().train(training), new_examples()
    model[1].eval()  # a frozen BatchNorm must stay frozen
    before = Tensors.of_module(model)
    weight = model.get_parameter("0.weight")
    weight.grad = marker = torch.ones_like(weight)
    teacher = teacher_logits(model, examples, CPU) + torch.eye(CLASSES)[0]
    first, _ = distillation_gradient(model, examples, teacher, torch.arange(23), Distillation(), CPU)
    second, _ = distillation_gradient(model, examples, teacher, torch.arange(23), Distillation(), CPU)
    assert first.norm() > 0
    assert first.sha256() == second.sha256()  # no dropout, no moving statistics
    assert Tensors.of_module(model).sha256() == before.sha256()
    assert [m.training for m in (model, *model)] == [training, training, False, training, training]
    assert weight.grad is marker
    assert torch.equal(marker, torch.ones_like(marker))
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name != "0.weight")


def test_training_flags_come_back_after_an_error() -> None:
    model = model_with_statistics().train()
    wrong = MemoryExamples(torch.zeros(3, FEATURES + 1), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RuntimeError):
        distillation_gradient(model, wrong, None, torch.arange(3), Distillation(hard_label_weight=1.0), CPU)
    with pytest.raises(RuntimeError):
        teacher_logits(model, wrong, CPU)
    assert all(submodule.training for submodule in model.modules())


class PartlyUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.frozen, self.idle = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.used(x) + self.frozen(x))


def test_idle_parameters_get_zeros_and_frozen_ones_nothing() -> None:
    model, examples = PartlyUsed(), new_examples()
    gradient, _ = distillation_gradient(model, examples, None, torch.arange(23), Distillation(hard_label_weight=1.0), CPU)
    assert set(gradient) == {"used.weight", "used.bias", "idle.weight", "idle.bias"}
    assert gradient["used.weight"].norm() > 0
    assert not gradient["idle.weight"].any()
    model.used.requires_grad_(False)  # now nothing that the loss depends on takes a gradient
    gradient, loss = distillation_gradient(model, examples, None, torch.arange(23), Distillation(hard_label_weight=1.0), CPU)
    assert set(gradient) == {"idle.weight", "idle.bias"}
    assert gradient.norm() == 0
    assert loss > 0


def test_gradients_are_computed_where_the_caller_has_turned_them_off() -> None:
    with torch.no_grad():
        distillation = Distillation(hard_label_weight=1.0)
        gradient, _ = distillation_gradient(new_model(1), new_examples(), None, torch.arange(23), distillation, CPU)
    assert gradient.norm() > 0


def test_a_half_precision_student_has_its_loss_computed_in_float32() -> None:
    student = torch.tensor([[8.0, -8.0, 0.0]], dtype=torch.bfloat16)
    loss = Distillation().loss(student, torch.zeros(1, 3), torch.tensor([0]))
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_loss_with_a_teacher_needs_one(weight: float) -> None:
    with pytest.raises(ValueError, match="needs teacher logits"):
        distillation_gradient(new_model(1), new_examples(), None, torch.arange(3), Distillation(hard_label_weight=weight), CPU)


def test_a_teacher_of_other_examples_and_an_empty_order_are_refused() -> None:
    model, examples = new_model(1), new_examples()
    with pytest.raises(ValueError, match="for 22 examples, not for 23"):
        distillation_gradient(model, examples, torch.zeros(22, CLASSES), torch.arange(3), Distillation(), CPU)
    with pytest.raises(ValueError, match="at least one example"):
        distillation_gradient(model, examples, torch.zeros(23, CLASSES), torch.arange(0), Distillation(), CPU)
    with pytest.raises(ValueError, match="at least one example"):
        teacher_logits(model, new_examples(0), CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("l2", 1.0, 0.0), "'l2' is not one of"),
        (("kl", 0.0, 0.0), "temperature 0.0"),
        (("kl", float("nan"), 0.0), "temperature nan"),
        (("kl", 1.0, 1.5), "hard_label_weight 1.5"),
        (("kl", 1.0, -0.1), "hard_label_weight -0.1"),
    ],
)
def test_distillations_out_of_range_are_refused(settings: tuple[str, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(*settings)


@pytest.mark.parametrize("batch_size", [4, 23, 512])
def test_teacher_logits_are_the_evaluated_models_in_example_order(batch_size: int) -> None:
    model, examples = model_with_statistics(), new_examples()
    model(examples.inputs)  # statistics other than the initial ones
    before = Tensors.of_module(model)
    logits = teacher_logits(model, examples, CPU, batch_size=batch_size)
    assert (logits.dtype, logits.shape, logits.requires_grad) == (torch.float32, (23, CLASSES), False)
    assert model.training
    assert Tensors.of_module(model).sha256() == before.sha256()
    torch.testing.assert_close(logits, model.eval()(examples.inputs).detach())


def test_teacher_logits_are_float32_whatever_the_model() -> None:
    assert teacher_logits(new_model(1), new_examples(), CPU).dtype == torch.float32


class FakeCudnn(nn.LSTM):
    """Like cuDNN, has no backward pass in eval mode; notes its dropout."""

    dropouts: ClassVar[list[float]] = []

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[override]  # noqa: A002
        assert self.training, "cudnn RNN backward can only be called in training mode"
        self.dropouts.append(self.dropout)
        out: tuple[Tensor, tuple[Tensor, Tensor]] = super().forward(input, hx)
        return out


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recurrent_modules_alone_are_in_train_mode_without_dropout(dropout: float) -> None:
    network = Rows(8, CLASSES)
    network.rnn.dropout = dropout
    network.eval()
    examples = MemoryExamples(torch.rand(6, 1, 8, 8), torch.arange(6) % CLASSES)
    labels = Distillation(hard_label_weight=1.0)
    expected = autograd_of(F.cross_entropy(network(examples.inputs), examples.labels), network)
    network.rnn.__class__ = FakeCudnn
    FakeCudnn.dropouts.clear()
    found, _ = distillation_gradient(network, examples, None, torch.arange(6), labels, CPU)
    assert all(found[name].equal(value) for name, value in expected.items())
    assert FakeCudnn.dropouts == [0.0]
    assert (network.rnn.training, network.rnn.dropout) == (False, dropout)
