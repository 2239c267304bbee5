"""The optimizer of local training: torch's own steps, checked arguments, clipping."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import NETWORK, Data, Federation, copies, vector
from harness import RUN_ID
from torch import Tensor, nn

from feddkd import algorithms
from feddkd.algorithms.learning_rate import LEARNING_RATE
from feddkd.algorithms.local_optimizer import CLASSES, FUSED, LocalOptimizer, check_optimizer
from feddkd.algorithms.local_training import train_locally
from feddkd.algorithms.site import CrossEntropyConfig, LocalObjective, Site
from feddkd.config import Config
from feddkd.config.training import DEFAULTS, WITH_MOMENTUM, OptimizerName
from feddkd.errors import ClientError, ConfigError
from feddkd.exchange import ExchangeId, Task
from feddkd.tensors import Tensors

NAMES: tuple[OptimizerName, ...] = typing.get_args(OptimizerName)

OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"nesterov": True},
    "adam": {"betas": [0.8, 0.99], "amsgrad": True},
    "adamw": {"eps": 1e-3},
    "rmsprop": {"alpha": 0.9, "centered": True},
    "adagrad": {"initial_accumulator_value": 0.1},
    "nadam": {"momentum_decay": 0.01},
}

KEYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "options": {"lr": 0.02, "weight_decay": 0.03},
    "clipped": {"lr": 0.02, "clip_norm": 0.4},
}


def site_of(folder: Path, clients: Data, training: dict[str, Any]) -> Site:
    """A site whose mini-batches are all alike, in float64."""
    tables = {"batch_size": 2, "epochs": 2, **training}
    federation = Federation(folder, {"name": "fedavg"}, [clients])
    site = federation.workers["client-0"].site
    site.config = Config.parse({"rounds": 5, "training": tables})
    return site


def task_of(site: Site, number: int = 1) -> Task:
    return Task(ExchangeId(RUN_ID, number, 0, "local_train", 0), Tensors.of_module(site.module))


def plain(site: Site) -> LocalObjective:
    return LocalObjective(site, CrossEntropyConfig())


def bare_loop(
    module: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer, steps: int, clip_norm: float | None
) -> None:
    """What a user writes without feddkd; the learning rate falls exponentially over the steps."""
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("name", NAMES)
def test_local_training_is_the_loop_that_a_user_writes(tmp_path: Path, name: OptimizerName, keys: str) -> None:
    options = OPTIONS.get(name, {}) if keys == "options" else {}
    schedule = {"schedule": "exponential", "schedule_over": "steps", "schedule_options": {"gamma": 0.9}}
    site = site_of(tmp_path, copies(8, 3), {"optimizer": name, "optimizer_options": options, **KEYS[keys], **schedule})
    bare = copy.deepcopy(site.module)
    training = site.config.training
    arguments: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, **options}
    if name in WITH_MOMENTUM:
        arguments["momentum"] = training.momentum
    inputs, labels = site.examples.gather(torch.arange(2))
    bare_loop(bare, (inputs, labels), CLASSES[name](bare.parameters(), **arguments), 8, training.clip_norm)
    found = train_locally(site, task_of(site), plain(site))
    assert found.steps == 8
    assert found.metrics[LEARNING_RATE] == pytest.approx(training.lr * sum(0.9**step for step in range(8)) / 8)
    for ours, theirs in zip(site.module.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "sgd"])
def test_defaults_are_torchs(name: OptimizerName) -> None:
    parameters = inspect.signature(CLASSES[name]).parameters
    assert DEFAULTS[name].lr == parameters["lr"].default
    assert DEFAULTS[name].weight_decay == parameters["weight_decay"].default
    assert DEFAULTS[name].momentum == 0
    assert ("momentum" in parameters) == (name in WITH_MOMENTUM)
    training = Config.parse({"training": {"optimizer": name}}).training
    assert (training.lr, training.momentum, training.weight_decay) == DEFAULTS[name]


def test_every_name_has_a_class_and_defaults() -> None:
    assert set(NAMES) == CLASSES.keys() == DEFAULTS.keys()
    assert set(FUSED) < CLASSES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_passes_the_check_at_the_start(name: OptimizerName) -> None:
    check_optimizer(Config.parse({"training": {"optimizer": name, "optimizer_options": OPTIONS.get(name, {})}}).training)


def falling(number: int, rounds: int, step: int, steps: int) -> float:
    return 1 / (number + step)


@pytest.mark.parametrize("name", [name for name in algorithms.ALGORITHMS if name not in ("scaffold", "fednova")])
def test_all_other_algorithms_take_any_optimizer_schedule_and_clipping(tmp_path: Path, name: str) -> None:
    """A round of each, with what SCAFFOLD and FedNova refuse, is another one than with SGD."""
    training = {"optimizer": "adamw", "clip_norm": 0.5, "schedule": "test_local_optimizer:falling"}
    options: dict[str, Any] = {"rounds": 1, "dkd": {"steps": 1}, "model": NETWORK}
    found = Federation(tmp_path / "adamw", {"name": name}, training=training, **options)
    plain_sgd = Federation(tmp_path / "sgd", {"name": name}, **options)
    assert found.run().model.sha256() != plain_sgd.run().model.sha256()
    assert np.isfinite(found.models[0]).all()


def two_groups(parameters: Iterable[nn.Parameter], lr: float, ratio: float = 1.0) -> torch.optim.Optimizer:
    first, *others = parameters
    groups: list[dict[str, Any]] = [{"params": [first], "lr": lr * ratio}, {"params": others}]
    return torch.optim.SGD(groups, lr=lr)


def takes_decay(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


def no_optimizer(parameters: Iterable[nn.Parameter], lr: float) -> list[nn.Parameter]:
    return list(parameters)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": "adam", "optimizer_options": {"betas": [0.9, 2.0]}}, r"^training\.optimizer = 'adam' with .* Invalid beta parameter"),
    ({"optimizer": "adam", "optimizer_options": {"beta": 1}}, r"^training\.optimizer_options\.beta: adam has no .*did you mean 'betas'"),
    (
        {"optimizer": "radam", "optimizer_options": {"xyz": 1}},
        r"^training\.optimizer_options\.xyz: radam has no such argument; it has betas, ",
    ),
    ({"optimizer_options": {"lr": 1}}, r"^training\.optimizer_options\.lr: use training\.lr$"),
    ({"optimizer_options": {"momentum": 0.5}}, r"^training\.optimizer_options\.momentum: use training\.momentum$"),
    ({"momentum": 0.0, "optimizer_options": {"nesterov": True}}, r"^training\.optimizer = 'sgd' with .*Nesterov momentum requires"),
    ({"optimizer": "torch.optim:LBFGS"}, r"^training\.optimizer = 'torch\.optim:LBFGS': a step without a closure failed"),
    ({"optimizer": "torch.optim:Absent"}, r"^training\.optimizer = 'torch\.optim:Absent': module .* has no 'Absent'$"),
    ({"optimizer": "test_local_optimizer:no_optimizer"}, r"no_optimizer': it returned list, not a torch\.optim\.Optimizer$"),
    ({"optimizer": "test_local_optimizer:no_optimizer", "momentum": 0.5}, r"^training\.momentum = 0\.5: .*no_optimizer takes no momentum$"),
    ({"optimizer": "test_local_optimizer:takes_decay"}, r"takes_decay'.*missing 1 required positional argument: 'weight_decay'"),
]


@pytest.mark.parametrize(("training", "message"), REFUSED)
def test_what_an_optimizer_does_not_take_is_refused_before_a_run_starts(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        algorithms.build(Config.parse({"training": training}))


def test_an_optimizer_of_the_users_own_takes_what_it_asks_for() -> None:
    algorithms.build(Config.parse({"training": {"optimizer": "test_local_optimizer:takes_decay", "weight_decay": 0.1}}))


def test_a_schedule_keeps_the_ratio_of_the_rates_of_an_optimizers_groups(tmp_path: Path) -> None:
    """The weights learn at a tenth of the bias' rate, in every step."""
    keys = {"optimizer": "test_local_optimizer:two_groups", "optimizer_options": {"ratio": 0.1}, "lr": 0.5}
    site = site_of(tmp_path, copies(2, 1), {**keys, "epochs": 1, "schedule": "step", "schedule_options": {"step_size": 1, "gamma": 0.5}})
    before = {name: parameter.detach().clone() for name, parameter in site.module.named_parameters()}
    inputs, labels = site.examples.gather(torch.arange(2))
    loss = nn.functional.cross_entropy(site.module(inputs), labels)
    weight, bias = torch.autograd.grad(loss, list(site.module.parameters()))
    train_locally(site, task_of(site, number=3), plain(site))
    after = dict(site.module.named_parameters())
    torch.testing.assert_close(after["1.weight"], before["1.weight"] - 0.5 * 0.5**2 * 0.1 * weight)
    torch.testing.assert_close(after["1.bias"], before["1.bias"] - 0.5 * 0.5**2 * bias)


def test_the_networks_own_parameters_are_tried_where_the_site_is_set_up(tmp_path: Path) -> None:
    """Muon takes matrices alone, and there is a bias."""
    with pytest.raises(ConfigError, match=r"^training\.optimizer = 'torch\.optim:Muon': .*2D"):
        Federation(tmp_path, {"name": "fedavg"}, training={"optimizer": "torch.optim:Muon"})


def test_the_steps_of_the_site_are_tried_where_it_is_set_up(tmp_path: Path) -> None:
    """A schedule that reaches zero after five steps suits a site of four, and not this one."""
    schedule = {"schedule": "polynomial", "schedule_over": "steps", "schedule_options": {"total_iters": 5}}
    with pytest.raises(ConfigError, match=r"learning rate of round 1, step 6 is 0"):
        Federation(tmp_path, {"name": "fedavg"}, training={"epochs": 9, **schedule})


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, 1e6])
def test_what_the_algorithm_adds_to_the_gradient_is_clipped_with_it(tmp_path: Path, clip_norm: float) -> None:
    """A step is no longer than lr times the clipping norm, and no shorter if it would be."""

    class Pulled(LocalObjective):
        def add_to_gradients(self, parameters: Any) -> None:
            for parameter in parameters.values():
                parameter.grad += 2.0

    training = {"epochs": 1, "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5, "clip_norm": clip_norm}
    site = site_of(tmp_path, copies(2, 1), training)
    before = vector(Tensors.of_module(site.module))
    inputs, labels = site.examples.gather(torch.arange(2))
    loss = nn.functional.cross_entropy(site.module(inputs), labels)
    gradient = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(site.module.parameters()))]).numpy() + 2
    train_locally(site, task_of(site), Pulled(site, CrossEntropyConfig()))
    length = float(np.linalg.norm(gradient))
    expected = before - 0.5 * gradient * min(1.0, clip_norm / (length + 1e-6))
    np.testing.assert_allclose(vector(Tensors.of_module(site.module)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_cannot_be_clipped_names_the_site_and_the_step(tmp_path: Path, bad: float) -> None:
    class Breaks(LocalObjective):
        steps = 0

        def add_to_gradients(self, parameters: Any) -> None:
            self.steps += 1
            if self.steps == 3:
                next(iter(parameters.values())).grad[0] = bad

    site = site_of(tmp_path, copies(8, 1), {"clip_norm": 1.0})
    with pytest.raises(
        ClientError, match=rf"^client-0: round 2 local_train, step 3: the gradient's norm is {bad}, and training\.clip_norm = 1 "
    ):
        train_locally(site, task_of(site, number=2), Breaks(site, CrossEntropyConfig()))


def test_without_a_schedule_the_optimizers_rates_are_left_alone(tmp_path: Path) -> None:
    """So an optimizer that sets its own rates can do that."""
    site = site_of(tmp_path, copies(4, 1), {"momentum": 0.0})
    optimizer = LocalOptimizer(site, task_of(site), [nn.Parameter(torch.zeros(1))], 1)
    group = optimizer._optimizer.param_groups[0]
    group["lr"] = 7.0
    optimizer.step()
    assert group["lr"] == 7.0
    assert optimizer.mean_rate is None


def test_the_record_has_the_learning_rate_of_each_round(tmp_path: Path) -> None:
    """Cosine over three rounds: every round averages local models that were trained at its own rate."""
    schedule = {"schedule": "cosine", "lr": 0.25}
    federation = Federation(tmp_path, {"name": "fedavg"}, training=schedule)
    federation.run()
    rates = [exchange.metrics[LEARNING_RATE] for exchange in federation.follower.exchanges if exchange.id.name == "local_train"]
    assert rates == pytest.approx([0.25, 0.1875, 0.0625])


def test_without_a_schedule_the_record_says_nothing_of_the_learning_rate(tmp_path: Path) -> None:
    federation = Federation(tmp_path, {"name": "fedavg"}, training={"optimizer": "adamw", "clip_norm": 1.0})
    federation.run()
    assert all(LEARNING_RATE not in exchange.metrics for exchange in federation.follower.exchanges)
