from collections.abc import Callable
from typing import Any

import pytest
import torch
from threads import with_every_number_of_threads
from torch import Tensor, nn

from feddkd.aggregator.server_optimizer import ServerOptimizer
from feddkd.aggregator.yogi import Yogi
from feddkd.config import DKDConfig
from feddkd.errors import SchemaError
from feddkd.tensors import Schema, Tensors, TensorSpec

REFERENCES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.02),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
    "yogi": lambda parameters: Yogi(parameters, lr=0.02),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.02),
}
NAMES = list(REFERENCES)
STATEFUL = [name for name in NAMES if name != "sgd"]

SCHEMA = Schema(
    [
        TensorSpec("conv.weight", torch.float32, (3, 4)),
        TensorSpec("norm.running_mean", torch.float32, (3,), trainable=False),
        TensorSpec("norm.batches", torch.int64, (), trainable=False),
        TensorSpec("mask", torch.bool, (5,), trainable=False),
        TensorSpec("fine.weight", torch.float64, (2, 2)),
        TensorSpec("head.bias", torch.float32, (7,)),
    ]
)


def filled(schema: Schema, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    out = Tensors(schema)
    for tensor in out.values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 3)
    return out


def gradients(count: int, first_seed: int = 100) -> list[Tensors]:
    return [filled(SCHEMA.trainable, first_seed + i) for i in range(count)]


def walk(optimizer: ServerOptimizer, student: Tensors, steps: list[Tensors]) -> Tensors:
    for gradient in steps:
        student = optimizer.step(student, gradient)
    return student


def test_the_configuration_offers_exactly_these_optimizers() -> None:
    assert DKDConfig.model_json_schema()["properties"]["optimizer"]["enum"] == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_torch_optimizer_on_ordinary_parameters(name: str) -> None:
    student, optimizer = filled(SCHEMA, 0), ServerOptimizer(name, 0.02, keep_state=False)
    optimizer.start_round()
    ordinary = {key: nn.Parameter(student[key].clone()) for key in SCHEMA.trainable.by_name}
    reference = REFERENCES[name](ordinary.values())
    for gradient in gradients(5):
        student = optimizer.step(student, gradient)
        for key, parameter in ordinary.items():
            parameter.grad = gradient[key].clone()
        reference.step()
        for key, parameter in ordinary.items():
            torch.testing.assert_close(student[key], parameter.detach(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beta2", [0.0, 0.9])
def test_beta2_is_that_of_the_second_moment_where_there_is_one(name: str, beta2: float) -> None:
    student, steps = filled(SCHEMA, 0), gradients(4)
    found = walk(ServerOptimizer(name, 0.02, keep_state=False, beta2=beta2), student, steps)
    default = walk(ServerOptimizer(name, 0.02, keep_state=False), student, steps)
    assert (found.sha256() == default.sha256()) == (name not in ("adam", "yogi"))
    if name in ("adam", "yogi"):
        parameter = nn.Parameter(student["conv.weight"].clone())
        reference = {"adam": torch.optim.Adam, "yogi": Yogi}[name]([parameter], lr=0.02, betas=(0.9, beta2))
        for gradient in steps:
            parameter.grad = gradient["conv.weight"].clone()
            reference.step()
        torch.testing.assert_close(found["conv.weight"], parameter.detach(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("beta2", [-0.1, 1.0])
def test_a_beta2_out_of_range_is_refused(beta2: float) -> None:
    with pytest.raises(ValueError, match="beta2"):
        ServerOptimizer("adam", 0.1, keep_state=False, beta2=beta2)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_the_same_bits_with_every_number_of_threads(name: str) -> None:
    specs = [TensorSpec("single", torch.float32, (70_001,)), TensorSpec("double", torch.float64, (70_001,))]
    student, steps = filled(Schema(specs), 0), [filled(Schema(specs), seed) for seed in (1, 2)]
    ends = with_every_number_of_threads(lambda: walk(ServerOptimizer(name, 0.02, keep_state=False), student, steps).sha256())
    assert len(set(ends)) == 1


def test_sgd_is_student_minus_lr_times_gradient() -> None:
    student, gradient = filled(SCHEMA, 0), gradients(1)[0]
    stepped = ServerOptimizer("sgd", 0.5, keep_state=False).step(student, gradient)
    for name in gradient:
        torch.testing.assert_close(stepped[name], student[name] - 0.5 * gradient[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_step_makes_a_new_model_and_leaves_everything_else_alone(name: str) -> None:
    model, bare = filled(SCHEMA, 0), filled(SCHEMA.trainable, 0)
    full, part = gradients(1)[0], filled(Schema([SCHEMA.by_name["head.bias"]]), 7)
    for student, gradient in ((model, full), (model, part), (bare, full)):
        before = student.sha256(), gradient.sha256()
        stepped = ServerOptimizer(name, 0.02, keep_state=False).step(student, gradient)
        assert (student.sha256(), gradient.sha256()) == before
        assert stepped.schema == student.schema
        changed = {key for key in student if not torch.equal(stepped[key], student[key])}
        assert changed == set(gradient)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_round_starts_afresh_unless_state_is_kept(name: str) -> None:
    student, first, second = filled(SCHEMA, 0), gradients(3), gradients(3, 200)
    ends = {}
    for keep in (False, True):
        optimizer = ServerOptimizer(name, 0.02, keep)
        optimizer.start_round()
        middle = walk(optimizer, student, first)
        optimizer.start_round()
        ends[keep] = walk(optimizer, middle, second).sha256()
    fresh = walk(ServerOptimizer(name, 0.02, keep_state=True), middle, second).sha256()
    unbroken = walk(ServerOptimizer(name, 0.02, keep_state=False), student, first + second).sha256()
    assert ends == {False: fresh, True: unbroken}
    assert fresh != unbroken


@pytest.mark.parametrize("name", NAMES)
def test_a_round_runs_again_from_a_snapshot_to_the_same_bits(name: str) -> None:
    optimizer = ServerOptimizer(name, 0.02, keep_state=True)
    middle = walk(optimizer, filled(SCHEMA, 0), gradients(3))
    snapshot = optimizer.state_dict()
    end = walk(optimizer, middle, gradients(4, 200)).sha256()

    optimizer.load_state_dict(snapshot)
    assert walk(optimizer, middle, gradients(4, 200)).sha256() == end

    other = ServerOptimizer(name, 0.02, keep_state=True)
    other.load_state_dict(snapshot)
    other.start_round()
    assert walk(other, middle, gradients(4, 200)).sha256() == end


@pytest.mark.parametrize("name", NAMES)
def test_later_steps_do_not_change_a_state_that_was_read_or_loaded(name: str) -> None:
    optimizer = ServerOptimizer(name, 0.02, keep_state=True)
    student = walk(optimizer, filled(SCHEMA, 0), gradients(2))
    state = optimizer.state_dict()
    assert all(type(value) is Tensor and not value.requires_grad for value in state.values())
    assert bool(state) == (name != "sgd")
    copies = {key: value.clone() for key, value in state.items()}
    walk(optimizer, student, gradients(2))
    assert all(torch.equal(state[key], copies[key]) for key in copies)
    optimizer.load_state_dict(state)
    walk(optimizer, student, gradients(2))
    assert all(torch.equal(state[key], copies[key]) for key in copies)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_is_not_copied_before_a_step_changes_it(name: str) -> None:
    optimizer = ServerOptimizer(name, 0.02, keep_state=True)
    student = walk(optimizer, filled(SCHEMA, 0), gradients(2))
    addresses = [value.data_ptr() for value in optimizer.state_dict().values()]
    assert [value.data_ptr() for value in optimizer.state_dict().values()] == addresses
    optimizer.load_state_dict(optimizer.state_dict())
    assert [value.data_ptr() for value in optimizer.state_dict().values()] == addresses
    kept = optimizer.state_dict()  # as long as it is here, the copies lie elsewhere
    walk(optimizer, student, gradients(1))
    assert not {value.data_ptr() for value in optimizer.state_dict().values()} & set(addresses)
    assert len(kept) == len(addresses)


@pytest.mark.parametrize("name", STATEFUL)
def test_without_state_to_keep_nothing_is_carried_over(name: str) -> None:
    optimizer = ServerOptimizer(name, 0.02, keep_state=False)
    walk(optimizer, filled(SCHEMA, 0), gradients(2))
    assert optimizer.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_models_are_stepped_in_float32(name: str, dtype: torch.dtype) -> None:
    schema = Schema([TensorSpec("weight", dtype, (4,))])
    student, gradient = Tensors(schema), Tensors(schema)
    student["weight"].fill_(0.01)
    gradient["weight"].copy_(torch.tensor([0.0, 1e-4, -1.0, 1.0]))  # the square of 1e-4 is zero in float16
    wide, optimizer = nn.Parameter(student["weight"].float()), ServerOptimizer(name, 0.02, keep_state=True)
    reference = REFERENCES[name]([wide])
    for _ in range(6):
        wide.data = student["weight"].float()
        wide.grad = gradient["weight"].float()
        reference.step()
        student = optimizer.step(student, gradient)
        torch.testing.assert_close(student["weight"], wide.detach().to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert student["weight"][0] == torch.tensor(0.01, dtype=dtype)
    assert all(value.dtype == torch.float32 for value in optimizer.state_dict().values())


def test_moments_do_not_serve_another_schema() -> None:
    optimizer, student = ServerOptimizer("adam", 0.02, keep_state=False), filled(SCHEMA, 0)
    optimizer.step(student, gradients(1)[0])
    head = filled(Schema([SCHEMA.by_name["head.bias"]]), 7)
    with pytest.raises(SchemaError, match="is missing"):
        optimizer.step(student, head)
    optimizer.start_round()
    assert not torch.equal(optimizer.step(student, head)["head.bias"], student["head.bias"])


def test_a_gradient_that_does_not_fit_the_student_is_refused() -> None:
    gradient = Tensors(Schema([TensorSpec("head.bias", torch.float32, (8,))]))
    with pytest.raises(SchemaError, match=r"head\.bias"):
        ServerOptimizer("sgd", 0.02, keep_state=False).step(filled(SCHEMA, 0), gradient)


def test_a_gradient_of_nothing_changes_nothing() -> None:
    student = filled(SCHEMA, 0)
    assert ServerOptimizer("adam", 0.02, keep_state=False).step(student, Tensors(Schema([]))).sha256() == student.sha256()


@pytest.mark.parametrize(("name", "lr"), [("adamw", 0.1), ("adam", 0.0), ("adam", float("nan"))])
def test_settings_out_of_range_are_refused(name: str, lr: float) -> None:
    with pytest.raises(ValueError, match=r"is not one of|is not positive"):
        ServerOptimizer(name, lr, keep_state=False)
